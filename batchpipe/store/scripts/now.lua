-- Our time, and what is known about it. Reads only. ARGV: skew
-- -> {now, seconds ahead of Redis' clock, when that went back, by how much, when it leapt forward, by how much}
local now = clock(ARGV[1], true)
local known = redis.call('HMGET', KEYS[1], 'back_at', 'back_by', 'leap_at', 'leap_by')
return { num(now), num(ahead), known[1] or '0', known[2] or '0', known[3] or '0', known[4] or '0' }
