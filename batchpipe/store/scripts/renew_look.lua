-- Keep the lease of a look, before each page.
-- KEYS: 1 listed:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 token, 3 lease (s)
-- -> {'ok'} | {'lost'}
local now = clock(ARGV[1])
local known = redis.call('HMGET', KEYS[1], 'token', 'lease_until')
if known[1] ~= ARGV[2] or tonumber(known[2]) <= now then return { 'lost' } end
redis.call('HSET', KEYS[1], 'lease_until', num(now + tonumber(ARGV[3])))
return { 'ok' }
