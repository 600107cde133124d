-- Say that a shard's batch is late. Needs no lease: it is for people.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 member, 4 batch id, 5 how it is late (JSON, problem)
-- -> {'ok'} it is said now | {'known'} it was said before, or the shard waits for that batch no more
local now, rec = clock(ARGV[1]), KEYS[1]
local shard = redis.call('HMGET', rec, 'stage', 'batch_id', 'over_at', 'stalled_at')
if shard[1] ~= 'created' or shard[2] ~= ARGV[4] or shard[3] or shard[4] then return { 'known' } end
redis.call('HSET', rec, 'stalled_at', num(now), 'stall', ARGV[5])
redis.call('ZADD', ARGV[2] .. 'late:' .. (get(KEYS[2], 'account') or 'default'), num(now), ARGV[3])
return { 'ok' }
