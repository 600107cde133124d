-- End a look, and let the next one begin at its time.
-- KEYS: 1 listed:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 token
-- -> {'ok', ended (at)} | {'lost'}: another look may be under way, so nothing is noted
local now = clock(ARGV[1])
local known = redis.call('HMGET', KEYS[1], 'token', 'lease_until')
if known[1] ~= ARGV[2] or tonumber(known[2]) <= now then return { 'lost' } end
redis.call('HDEL', KEYS[1], 'token', 'lease_until')
return { 'ok', num(now) }
