-- Tokens per byte of requests to a model.
-- KEYS: 1 clock
-- ARGV: 1 skew (s), 2 prefix, 3 model ('': none)
-- -> {tokens per byte (decimal text)} | {} nothing is known
local found = redis.call('HMGET', ARGV[2] .. 'ratio:' .. model_key(ARGV[3]), 'bytes', 'tokens')
if not found[1] or not found[2] then return {} end
return { string.format('%.9f', tonumber(found[2]) / tonumber(found[1])) }
