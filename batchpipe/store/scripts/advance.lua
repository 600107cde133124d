-- End a turn: new stage, fields and time, and the lease is released. Fenced by the token.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 member, 5 member of the job itself, 6 token, 7 stage ('': it stays), 8 wait (s),
--   9 tries: keep | refund | reset, 10 lease (s), 11 task ids of merge (JSON [..]),
--   12 the next turn of this visit, which is claimed if it is its turn now (JSON {..}, see claiming.lua; '': none),
--   13 events for the job's log (JSON [[event, data] ..]; '': none), 14 fields
-- -> {'ok', republish, cancel, epoch of merge or 0, shards that were granted room by it (count); and if the next turn was
--  claimed, what `claim` answers, and if that is merge and this is the job's only shard, its hash} | {'lost'}
-- A parked shard has no message, and so no task ids. Redis keeps a hash of short values in a third of the space, but not
-- one that has ever had a long value: it is written anew.
local function pack(key)
  redis.call('HDEL', key, 'task_ids')
  local left, fields = redis.call('PTTL', key), redis.call('HGETALL', key)
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(fields))
  if left > 0 then redis.call('PEXPIRE', key, left) end
end

-- merge reads all shards of its job: of a single one this script has the record
local function of_only_one(rec, job)
  return get(job, 'shards') == '1' and redis.call('HGETALL', rec) or nil
end

local now = clock(ARGV[1])
local rec, job, due = KEYS[1], KEYS[2], KEYS[3]
local token, stage, wait, lease = ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[10]
if get(rec, 'last') == token then -- repeated by the client after a lost reply
  local key = next_of(ARGV[12], rec, job)
  local claimed = key and claim_next(ARGV[12], ARGV[2], key, job, due, ARGV[3], key == rec and ARGV[4] or ARGV[5], now)
  if not claimed or key ~= job then return { 'ok', 0, 0, 0, 0, claimed or nil } end
  return { 'ok', 0, 0, tonumber(get(job, 'epoch')), 0, claimed, of_only_one(rec, job) }
end
if not holds(rec, token, now) then return { 'lost' } end
local from = get(rec, 'stage')
if stage == '' then stage = from end
local status, counts, batch = get(rec, 'status'), get(rec, 'counts'), get(rec, 'batch_id')
local counted = rec ~= job and (from == 'created' or stage == 'collected')
local answered = counted and tonumber(get(rec, 'answered') or '0')
local landing = stage == 'collected' and flag(rec, 'landing') == 1
write(rec, 14)
note_events(ARGV[2], ARGV[3], ARGV[13])
if from == 'created' then
  -- a look has seen the end meanwhile: that is not replaced by what was read before, or by a server that lags
  if stage == 'created' and FINAL[status] and not FINAL[get(rec, 'status')] and get(rec, 'batch_id') == batch then
    redis.call('HSET', rec, 'status', status, 'counts', counts or '{}')
  end
  if stage ~= 'created' then
    redis.call('ZREM', in_flight(ARGV[2], job), ARGV[4])
  else -- a worker of an earlier version may have settled it
    redis.call('ZADD', in_flight(ARGV[2], job), 'NX', get(rec, 'created_at') or num(now), ARGV[4])
  end
  if stage ~= 'created' or FINAL[get(rec, 'status')] then note_end_of_batch(ARGV[2], rec, job, ARGV[4], now) end
end
if from == 'uploaded' then
  -- the turn that made the latest call has its answer, however unclear: from now on lists show what it made
  if get(rec, 'latest_call') == token then redis.call('HSET', rec, 'call_over_at', num(now)) end
end
release(rec)
redis.call('HSET', rec, 'last', token)
if ARGV[9] == 'refund' then
  if tonumber(get(rec, 'tries') or '0') > 0 then redis.call('HINCRBY', rec, 'tries', -1) end
elseif ARGV[9] == 'reset' then
  redis.call('HSET', rec, 'tries', '0', 'lost', '0')
end
set_stage(rec, stage, now)
if get(rec, 'full') then
  admission.refused(ARGV[2], rec, job, ARGV[4], now)
elseif from == 'created' and stage == 'uploaded' then
  admission.let_go(ARGV[2], rec, job, ARGV[4]) -- something is wrong with the account: nobody is granted what it held
elseif from == 'ended' and stage == 'collected' and status ~= 'failed' and get(rec, 'over_at') then
  -- what it held was given back with the end of its batch
elseif stage == 'collected' or (from == 'created' and stage ~= 'created') then
  admission.release(ARGV[2], rec, job, ARGV[4], now)
end
if from == 'uploaded' then note_unanswered(ARGV[2], rec, job, ARGV[4]) end
local republish, cancel = flag(rec, 'republish'), flag(job, 'cancel')
if counted then add_answered(rec, job, answered, now) end
if stage == 'collected' then
  if from == 'created' and FINAL[get(rec, 'status')] then redis.call('HSET', rec, 'ended_at', num(now)) end -- seen and fetched in one turn
  if not landing then add_reasons(rec, job) end -- else the merge counts anew
  redis.call('ZREM', due, ARGV[4])
  local open = redis.call('HINCRBY', job, 'open', -1)
  if open == 0 and get(job, 'stage') == 'running' then
    local epoch = finalize(job, ARGV[2], ARGV[3], nil, ARGV[5], lease, now, ARGV[11])
    local claimed = claim_next(ARGV[12], ARGV[2], job, job, due, ARGV[3], ARGV[5], now)
    if not claimed then
      set_due(job, due, ARGV[5], lease, now, 0)
      return { 'ok', 0, cancel, epoch, admission.told }
    end
    return { 'ok', 0, cancel, epoch, admission.told, claimed, of_only_one(rec, job) }
  end
  return { 'ok', 0, cancel, 0, admission.told }
end
if republish == 1 then wait = 0 end
if republish == 0 and wait == 0 then
  redis.call('HSET', rec, 'next_at', num(now), 'wait', num(0))
  local claimed = claim_next(ARGV[12], ARGV[2], rec, job, due, ARGV[3], ARGV[4], now)
  if claimed then return { 'ok', 0, cancel, 0, admission.told, claimed } end
end
set_due(rec, due, ARGV[4], lease, now, wait)
if republish == 1 then
  redis.call('HDEL', rec, 'parked', 'park_until')
elseif flag(rec, 'parked') == 1 then
  redis.call('ZADD', due, num(now + wait), ARGV[4]) -- no message is on its way that could be late
  pack(rec)
end
return { 'ok', republish, cancel, 0, admission.told }
