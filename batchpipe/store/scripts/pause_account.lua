-- Nobody uses an account for so long. Its end is a time of ours: an expiry would be Redis' clock, which may go back.
-- KEYS: 1 pause:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 how long (s), 3 code, 4 message
-- -> {}
local seconds = tonumber(ARGV[2])
local ends = clock(ARGV[1]) + seconds
redis.call('HSET', KEYS[2], 'pauses_until', num(math.max(ends, pauses_until)))
redis.call('HSET', KEYS[1], 'until', num(ends), 'seconds', ARGV[2], 'code', ARGV[3], 'message', ARGV[4])
redis.call('EXPIRE', KEYS[1], math.ceil(seconds) + 86400)
return {}
