-- Record the id of a created batch. Needs no lease: the batch is a fact, and paid.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 member, 4 token ('': none), 5 key of the shard (job:index:try), 6 batch id, 7 wait (s),
--   8 lease (s), 9 sure, 10 the batch was made then, as the provider says (at; '': unknown), 11 events for
--   the job's log if it is recorded (JSON [[event, data] ..]; '': none), 12 fields
-- sure: '1' if the batch itself shows our key or file; else '0', and one that a record names is that shard's
-- -> {'ok', republish, cancel, told} from the live holder: the turn is over | {'late', 0, cancel, told} recorded for a shard
--   that is due now; told: 1 if a webhook has said already that the batch has ended
--  | {'known'} nothing to do | {'cancel'} the caller cancels the batch it made
--  | {'other'} it is the batch of another shard: the answer that named it was wrong
local function belongs_to_another(prefix, batch, member, account)
  local owner = redis.call('GET', prefix .. 'batch:' .. batch)
  if not owner or owner == member then return false end
  local id, index = string.match(owner, '^(.*)/(%d+)$')
  if not id or get(prefix .. 'job:' .. id, 'account') ~= account then return false end -- ids may repeat over accounts
  local shard = prefix .. 'shard:' .. id .. ':' .. index
  if get(shard, 'batch_id') == batch then return true end
  for _, spent in ipairs(cjson.decode(get(shard, 'spent') or '[]')) do
    if spent == batch then return true end
  end
  return false
end

local now = clock(ARGV[1])
local rec, job, due = KEYS[1], KEYS[2], KEYS[3]
local token, batch, lease = ARGV[4], ARGV[6], ARGV[8]

-- what to answer where it is not recorded
local function verdict()
  if redis.call('EXISTS', rec) == 0 then return { 'cancel' } end
  for _, spent in ipairs(cjson.decode(get(rec, 'spent') or '[]')) do
    if spent == batch then return { 'known' } end
  end
  local recorded = get(rec, 'batch_id')
  if recorded == batch then
    if get(rec, 'last') == token and token ~= '' then return { 'ok', 0, 0, flag(rec, 'news') } end -- repeated after a lost reply
    return { 'known' }
  end
  local key = get(rec, 'job') .. ':' .. get(rec, 'index') .. ':' .. (get(rec, 'try') or '1')
  if key ~= ARGV[5] or recorded or get(rec, 'stage') ~= 'uploaded' then return { 'cancel' } end
  return nil
end

local answer, name = verdict(), ARGV[2] .. 'batch:' .. batch
local is_new_name = not answer and redis.call('SETNX', name, ARGV[3]) == 1 -- else somebody's, or an old one of this shard's
if not is_new_name and ARGV[9] ~= '1' and belongs_to_another(ARGV[2], batch, ARGV[3], get(job, 'account')) then
  return { 'other' }
end
if answer then return answer end
if not is_new_name then redis.call('SET', name, ARGV[3]) end
local waited = get(rec, 'walk_from') ~= nil
redis.call('HDEL', rec, 'made_at', 'in_progress_at', 'finished_at', 'expires_at', 'stalled_at', 'stall')
local answered = tonumber(get(rec, 'answered') or '0')
write(rec, 12)
if ARGV[10] ~= '' then redis.call('HSET', rec, 'made_at', ARGV[10]) end
redis.call('HSET', rec, 'batch_id', batch)
redis.call('HDEL', rec, 'over_at', 'news', 'news_at', 'end_seen', 'slot_at', 'parked', 'park_until', 'calls', 'empty_at', 'named', 'trouble', 'refusal', 'unfound', 'refused_at', 'unseen_at', 'other_at')
redis.call('HDEL', rec, 'latest_call', 'call_over_at', 'called_as', 'walk_from')
note_events(ARGV[2], get(rec, 'job'), ARGV[11])
local live = token ~= '' and holds(rec, token, now)
set_stage(rec, 'created', now)
admission.leave(ARGV[2], rec, job, ARGV[3])
add_answered(rec, job, answered, now)
note_unanswered(ARGV[2], rec, job, ARGV[3], waited)
redis.call('ZADD', in_flight(ARGV[2], job), ARGV[10] ~= '' and ARGV[10] or num(now), ARGV[3])
local account, told = get(job, 'account') or 'default', 0
if redis.call('ZREM', ARGV[2] .. 'news:' .. account, batch) == 1 then -- its webhook was quicker than the answer
  told = 1
  redis.call('HSET', rec, 'news', '1', 'news_at', num(now))
  note_news(ARGV[2], account, batch, now)
end
if FINAL[get(rec, 'status')] then note_end_of_batch(ARGV[2], rec, job, ARGV[3], now) end
release(rec)
if not live then
  redis.call('HSET', rec, 'next_at', num(now), 'wait', '0')
  redis.call('ZADD', due, num(now), ARGV[3])
  return { 'late', 0, flag(job, 'cancel'), told }
end
redis.call('HSET', rec, 'last', token)
local republish, wait = flag(rec, 'republish'), tonumber(ARGV[7])
if republish == 1 or told == 1 then wait = 0 end
set_due(rec, due, ARGV[3], lease, now, wait)
return { 'ok', republish, flag(job, 'cancel'), told }
