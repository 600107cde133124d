-- Set the cancel flag of a job that has not ended.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 shards that the caller publishes again (count): the sweep does the rest
-- -> {'ok', shards (count)} | {'ended', shards} | {'gone'}
if redis.call('EXISTS', KEYS[1]) == 0 then return { 'gone' } end
local shards = tonumber(get(KEYS[1], 'shards') or '0')
if ENDED[get(KEYS[1], 'stage')] then return { 'ended', shards } end
redis.call('HSET', KEYS[1], 'cancel', '1')
redis.call('ZADD', ARGV[2] .. 'jobs:cancelling', get(KEYS[1], 'created_at') or '0', ARGV[3])
republish_rest(ARGV[2], ARGV[3], 'always', tonumber(ARGV[4]), shards)
return { 'ok', shards }
