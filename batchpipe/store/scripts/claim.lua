-- Take the lease on a record.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 epoch, 5 stages that it may be in (',stage,stage,'), 6 stage to go to ('': it
--   stays; else the record is a job), 7 token, 8 lease (s), 9 deadline (s), 10 longest deadline (s), 11 member
-- -> {'ok', the record's hash, the job's hash, seconds of the lease (s), deadline (s), 1 if the turn before met
--    its own, else 0; and if the account is paused left of that (s), code, message}
--  | {'gone'} | {'epoch'} | {'stage'} | {'lease', left of another's (s)} | {'early', until its time (s)}
-- The order of the checks matters: a message of another epoch must not wait for somebody else's lease.
local now = clock(ARGV[1])
local token, lease = ARGV[7], tonumber(ARGV[8])
local overran = 0
local rec, job = KEYS[1], KEYS[2]
redis.call('HGETALL', rec) -- they are answered whole: what follows reads nothing more
redis.call('HGETALL', job)
if redis.call('EXISTS', rec) == 0 or redis.call('EXISTS', job) == 0 then return { 'gone' } end
local queue = get(job, 'queue')
if queue and queue ~= '' then -- a message was taken from it, though it may be void: see the sweep
  redis.call('ZADD', ARGV[2] .. 'taken', num(now), queue)
end
if get(rec, 'epoch') ~= ARGV[4] then return { 'epoch' } end
local stage = get(rec, 'stage')
if string.find(ARGV[5], ',' .. stage .. ',', 1, true) == nil or get(rec, 'closed') == '1' then return { 'stage' } end
if get(rec, 'token') ~= token then -- else: our own claim, repeated by the client after a lost reply
  if leased(rec, now) then return { 'lease', num(tonumber(get(rec, 'lease_until')) - now) } end
  local early = tonumber(get(rec, 'next_at') or '0') - now
  -- Celery's countdown runs on host clocks: a little early counts as due
  if early > math.max(2, tonumber(get(rec, 'wait') or '0') / 10) then return { 'early', num(early) } end
  local vanished = get(rec, 'token') ~= nil
  if ARGV[6] ~= '' then set_state(rec, ARGV[2], ARGV[3], ARGV[6], now) end
  if vanished then
    redis.call('HINCRBY', rec, 'lost', 1) -- its holder vanished; that try was counted when it claimed
    local last = tonumber(get(rec, 'lease_end') or 'inf')
    if tonumber(get(rec, 'lease_until') or '0') >= last then -- or it was alive without progress
      overran = 1
      redis.call('HINCRBY', rec, 'overran', 1)
    end
  else
    redis.call('HINCRBY', rec, 'tries', 1)
  end
end
local deadline = math.min(tonumber(ARGV[9]) * 2 ^ math.min(tonumber(get(rec, 'overran') or '0'), 20), tonumber(ARGV[10]))
local ends = math.min(now + lease, now + deadline)
redis.call('HSET', rec, 'token', token, 'lease_until', num(ends), 'lease_end', num(now + deadline), 'pubs', '0')
if flag(rec, 'republish') == 1 then redis.call('HDEL', rec, 'republish') end
redis.call('HDEL', rec, 'parked', 'park_until')
redis.call('ZADD', KEYS[3], num(ends), ARGV[11])
local function time() return now end
return { 'ok', redis.call('HGETALL', rec), redis.call('HGETALL', job), num(ends - now), num(deadline), overran,
  pause_of(ARGV[2] .. 'pause:' .. (get(job, 'account') or 'default'), time) }
