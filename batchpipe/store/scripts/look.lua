-- A token bucket: may the provider be asked now?
-- KEYS: 1 looks:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 looks per second (decimal text), 3 looks at once (decimal text)
-- -> time to wait (s) as one text, not a list; 0: now
local now = clock(ARGV[1])
local rate, burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local left = tonumber(get(KEYS[1], 'left') or ARGV[3])
local at = tonumber(get(KEYS[1], 'at') or now)
left = math.min(burst, left + math.max(0, now - at) * rate)
local wait = 0
if left >= 1 then left = left - 1 else wait = (1 - left) / rate end
redis.call('HSET', KEYS[1], 'left', num(left), 'at', num(now))
redis.call('EXPIRE', KEYS[1], 3600)
return num(wait)
