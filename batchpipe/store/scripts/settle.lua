-- Record the id of a created batch. Needs no lease: the batch is a fact, and paid.
-- ARGV: skew, prefix, member, token ('' for none), key, batch id, wait, lease, fields...
-- -> {'ok', wake, cancel} from the live holder: the turn is over | {'late'} recorded for a shard that is due now
--  | {'known'} nothing to do | {'cancel'} the caller cancels the batch it made
local now = clock(ARGV[1])
local rec, job, due = KEYS[1], KEYS[2], KEYS[3]
local token, batch, lease = ARGV[4], ARGV[6], ARGV[8]
if redis.call('EXISTS', rec) == 0 then return { 'cancel' } end
for _, spent in ipairs(cjson.decode(get(rec, 'spent') or '[]')) do
  if spent == batch then return { 'known' } end
end
local recorded = get(rec, 'batch_id')
if recorded == batch then
  if get(rec, 'last') == token and token ~= '' then return { 'ok', 0, 0 } end -- repeated after a lost answer
  return { 'known' }
end
local key = get(rec, 'job') .. ':' .. get(rec, 'index') .. ':' .. (get(rec, 'try') or '1')
if key ~= ARGV[5] or recorded or get(rec, 'stage') ~= 'uploaded' then return { 'cancel' } end
write(rec, 9)
redis.call('HSET', rec, 'batch_id', batch)
redis.call('HDEL', rec, 'calls', 'empty_at', 'trouble', 'refusal', 'unfound')
redis.call('SET', ARGV[2] .. 'batch:' .. batch, ARGV[3])
local live = token ~= '' and holds(rec, token, now)
set_stage(rec, 'created', now)
release(rec)
if not live then
  redis.call('HSET', rec, 'next_at', num(now), 'wait', '0')
  redis.call('ZADD', due, num(now), ARGV[3])
  return { 'late' }
end
redis.call('HSET', rec, 'last', token)
local wake, wait = flag(rec, 'wake'), tonumber(ARGV[7])
if wake == 1 then wait = 0 end
set_due(rec, due, ARGV[3], lease, now, wait)
return { 'ok', wake, flag(job, 'cancel') }
