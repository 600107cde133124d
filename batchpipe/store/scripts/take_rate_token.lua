-- Take a token from an account's bucket: may the provider be asked now?
-- KEYS: 1 rate:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 tokens per second (decimal text), 3 tokens at most (decimal text)
-- -> time to wait (s) as one text, not a list; 0: now
local now = clock(ARGV[1])
local rate, burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens = tonumber(get(KEYS[1], 'tokens') or ARGV[3])
local at = tonumber(get(KEYS[1], 'at') or now)
tokens = math.min(burst, tokens + math.max(0, now - at) * rate)
local wait = 0
if tokens >= 1 then tokens = tokens - 1 else wait = (1 - tokens) / rate end
redis.call('HSET', KEYS[1], 'tokens', num(tokens), 'at', num(now))
redis.call('EXPIRE', KEYS[1], 3600)
return num(wait)
