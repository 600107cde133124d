-- Plan the shards of a round, or, if the job is being cancelled, send it on to its end.
-- ARGV: skew, prefix, id, member, token, lease, merge task ids, number of job fields, job fields...,
-- number of shards, then for each: index, number of fields, fields...
-- -> {'ok'} | {'cancel', epoch of merge} | {'lost'}
local now = clock(ARGV[1])
local prefix, id, lease = ARGV[2], ARGV[3], ARGV[6]
local job, due = KEYS[1], KEYS[3]
if get(job, 'last') == ARGV[5] then -- repeated by the client after a lost answer
  if get(job, 'stage') == 'finalizing' then return { 'cancel', tonumber(get(job, 'epoch')) } end
  return { 'ok' }
end
if not holds(job, ARGV[5], now) then return { 'lost' } end
release(job)
redis.call('HSET', job, 'last', ARGV[5])
if flag(job, 'cancel') == 1 then
  return { 'cancel', finalize(job, prefix, id, due, ARGV[4], lease, now, ARGV[7]) }
end
local at = 9
for i = 1, tonumber(ARGV[8]) / 2 do
  redis.call('HSET', job, ARGV[at], ARGV[at + 1])
  at = at + 2
end
local count = tonumber(ARGV[at])
at = at + 1
for _ = 1, count do
  local index, fields = ARGV[at], tonumber(ARGV[at + 1])
  local key = prefix .. 'shard:' .. id .. ':' .. index
  at = at + 2
  for _ = 1, fields / 2 do
    redis.call('HSET', key, ARGV[at], ARGV[at + 1])
    at = at + 2
  end
  redis.call('HSET', key, 'planned_at', num(now))
  set_due(key, due, id .. '/' .. index, lease, now, 0)
end
redis.call('HSET', job, 'open', count, 'shards', tonumber(get(job, 'shards') or '0') + count)
redis.call('HDEL', job, 'wake', 'trouble')
set_state(job, prefix, id, 'running', now)
redis.call('ZREM', due, ARGV[4])
return { 'ok' }
