-- End a job's hold as a person has decided. KEYS 1 job. ARGV: skew, 'resend' or 'land' (send nothing more),
-- prefix, id, shards that the caller wakes
-- -> {'gone'} | {'ended'|'none'|'ok', number of shards}
if redis.call('EXISTS', KEYS[1]) == 0 then return { 'gone' } end
local shards = tonumber(get(KEYS[1], 'shards') or '0')
if ENDED[get(KEYS[1], 'stage')] then return { 'ended', shards } end
if not get(KEYS[1], 'hold_at') then return { 'none', shards } end
redis.call('HDEL', KEYS[1], 'hold_at', 'hold')
if ARGV[2] == 'land' then redis.call('HSET', KEYS[1], 'send_no_more', '1') end
wake_rest(ARGV[3], ARGV[4], 'asleep', tonumber(ARGV[5]), shards)
return { 'ok', shards }
