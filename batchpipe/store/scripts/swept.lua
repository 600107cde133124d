-- Note that a sweep is complete; and as sweeps run all the time, update the clock. KEYS 1 swept. ARGV: skew   -> {}
redis.call('SET', KEYS[1], num(clock(ARGV[1])))
return {}
