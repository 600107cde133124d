-- A sweep has come to its end; and as some process sweeps all the time, the clock is seen.
-- KEYS: 1 swept, 2 taken, 3 clock
-- ARGV: 1 skew (s)
-- -> {}
local now = clock(ARGV[1])
redis.call('SET', KEYS[1], num(now))
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', num(now - 172800))
return {}
