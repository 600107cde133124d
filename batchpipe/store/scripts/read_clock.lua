-- Our time, and what is known of it. Reads only.
-- KEYS: 1 clock
-- ARGV: 1 skew (s)
-- -> {now (at), ahead of Redis' clock (s), when that went back (at), by how much (s), when it leapt forward (at), by how
--    much (s)}; '0' for what never was
local now = clock(ARGV[1], true)
local known = redis.call('HMGET', KEYS[1], 'back_at', 'back_by', 'leap_at', 'leap_by')
return { num(now), num(ahead), known[1] or '0', known[2] or '0', known[3] or '0', known[4] or '0' }
