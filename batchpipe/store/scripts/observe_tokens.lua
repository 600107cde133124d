-- So many bytes of requests to a model came to so many tokens. Old ones weigh less: both sums are halved now and then.
-- KEYS: 1 clock
-- ARGV: 1 skew (s), 2 prefix, 3 model ('': none), 4 bytes (count), 5 tokens (count)
-- -> {}
local key = ARGV[2] .. 'ratio:' .. model_key(ARGV[3])
local bytes = redis.call('HINCRBY', key, 'bytes', ARGV[4])
local tokens = redis.call('HINCRBY', key, 'tokens', ARGV[5])
if bytes > 1e9 then redis.call('HSET', key, 'bytes', math.floor(bytes / 2), 'tokens', math.floor(tokens / 2)) end
redis.call('EXPIRE', key, 2592000)
return {}
