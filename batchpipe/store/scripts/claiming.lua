-- Prepended to every script after common.lua: how a turn is given the lease on its record. `claim` does that for a message;
-- a script that ends a turn may do it for the next one of the same visit.

-- wanted: epoch (text), stages (',stage,stage,'), enter ('': the stage stays; else the record is a job), token, lease (s),
-- deadline (s), longest (s): the longest deadline. Returns what `claim` answers.
local function take_lease(prefix, rec, job, due, id, member, wanted, now)
  redis.call('HGETALL', rec) -- they are answered whole: what follows reads nothing more
  redis.call('HGETALL', job)
  if redis.call('EXISTS', rec) == 0 or redis.call('EXISTS', job) == 0 then return { 'gone' } end
  if get(rec, 'epoch') ~= wanted.epoch then return { 'epoch' } end
  local stage, overran = get(rec, 'stage'), 0
  if string.find(wanted.stages, ',' .. stage .. ',', 1, true) == nil or get(rec, 'closed') == '1' then return { 'stage' } end
  if get(rec, 'token') ~= wanted.token then -- else: our own claim, repeated by the client after a lost reply
    if leased(rec, now) then return { 'lease', num(tonumber(get(rec, 'lease_until')) - now) } end
    local early = tonumber(get(rec, 'next_at') or '0') - now
    -- Celery's countdown runs on host clocks: a little early counts as due
    if early > math.max(2, tonumber(get(rec, 'wait') or '0') / 10) then return { 'early', num(early) } end
    local vanished = get(rec, 'token') ~= nil
    if wanted.enter ~= '' then set_state(rec, prefix, id, wanted.enter, now) end
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
  local longer = 2 ^ math.min(tonumber(get(rec, 'overran') or '0'), 20)
  local deadline = math.min(tonumber(wanted.deadline) * longer, tonumber(wanted.longest))
  local ends = math.min(now + tonumber(wanted.lease), now + deadline)
  redis.call('HSET', rec, 'token', wanted.token, 'lease_until', num(ends), 'lease_end', num(now + deadline), 'pubs', '0')
  if flag(rec, 'republish') == 1 then redis.call('HDEL', rec, 'republish') end
  redis.call('HDEL', rec, 'parked', 'park_until')
  redis.call('ZADD', due, num(ends), member)
  return { 'ok', redis.call('HGETALL', rec), redis.call('HGETALL', job), num(ends - now), num(deadline), overran,
    pause_now(prefix, get(job, 'account') or 'default', now) }
end

-- The next turn of the same visit is claimed at once (`text`: JSON of what it wants, but for the epoch; '': there is none).
-- Returns what a granted claim answers; false: none was asked for, or its own claim says why it is not granted.
local function claim_next(text, prefix, rec, job, due, id, member, now)
  if text == '' then return false end
  local wanted = cjson.decode(text)
  wanted.epoch = get(rec, 'epoch')
  local answer = take_lease(prefix, rec, job, due, id, member, wanted, now)
  return answer[1] == 'ok' and answer
end

-- For a script that is repeated by the client: which of these records was claimed with it, and still is.
local function next_of(text, ...)
  local token = text ~= '' and cjson.decode(text).token
  for _, key in ipairs({ ... }) do
    if token and get(key, 'token') == token then return key end
  end
  return nil
end
