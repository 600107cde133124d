-- A sweep has come to its end; and as some process sweeps all the time, the clock is seen.
-- KEYS: 1 swept, 2 clock
-- ARGV: 1 skew (s)
-- -> {}
redis.call('SET', KEYS[1], num(clock(ARGV[1])))
return {}
