-- End a job's hold as somebody has decided.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 decision: resend | land (send nothing more), 3 prefix, 4 job id, 5 shards that the caller
--   publishes again (count): the sweep does the rest
-- -> {'ok', shards (count)} | {'none', shards} it is not held | {'ended', shards} | {'gone'}
if redis.call('EXISTS', KEYS[1]) == 0 then return { 'gone' } end
local shards = tonumber(get(KEYS[1], 'shards') or '0')
if ENDED[get(KEYS[1], 'stage')] then return { 'ended', shards } end
if not get(KEYS[1], 'hold_at') then return { 'none', shards } end
redis.call('HDEL', KEYS[1], 'hold_at', 'hold')
if ARGV[2] == 'land' then redis.call('HSET', KEYS[1], 'send_no_more', '1') end
republish_rest(ARGV[3], ARGV[4], 'waiting', tonumber(ARGV[5]), shards)
return { 'ok', shards }
