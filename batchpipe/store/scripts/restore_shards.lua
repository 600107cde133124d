-- Write the records of shards of a job that this Redis does not know, a chunk at a time, before `restore` writes the
-- job's. Until that they expire, for whoever writes them may die.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 token of the call, 5 time to live (s), 6 and on: a shard each
--   (JSON [index, field, value ..])
-- -> {'ok'} | {'known'} nothing was written
local prefix, id, job, ttl = ARGV[2], ARGV[3], KEYS[1], ARGV[5]
if redis.call('EXISTS', job) == 1 then
  return { get(job, 'last') == ARGV[4] and 'ok' or 'known' } -- ok: repeated by the client after a lost reply
end
for i = 6, #ARGV do
  local fields = cjson.decode(ARGV[i])
  local index = table.remove(fields, 1)
  local member, key = id .. '/' .. index, prefix .. 'shard:' .. id .. ':' .. index
  redis.call('DEL', key) -- remove what is left of an earlier record
  redis.call('HSET', key, unpack(fields))
  redis.call('EXPIRE', key, ttl)
  local shard = redis.call('HMGET', key, 'batch_id', 'spent')
  if shard[1] then redis.call('SET', prefix .. 'batch:' .. shard[1], member, 'EX', ttl) end
  for _, spent in ipairs(cjson.decode(shard[2] or '[]')) do
    redis.call('SET', prefix .. 'batch:' .. spent, member, 'EX', ttl)
  end
end
return { 'ok' }
