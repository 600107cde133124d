-- End a look, note what it has learned, and let the next one begin at its time.
-- KEYS: 1 listed:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 token, 3 for so long from now polls may be parked (s; 0: that stays as it is), 4 fields
-- -> {'ok', ended (at)} | {'lost'}: another look may be under way, so nothing is noted
local now = clock(ARGV[1])
local known = redis.call('HMGET', KEYS[1], 'token', 'lease_until', 'last', 'ended')
if known[3] == ARGV[2] then return { 'ok', known[4] } end -- repeated by the client after a lost reply
if known[1] ~= ARGV[2] or tonumber(known[2]) <= now then return { 'lost' } end
write(KEYS[1], 4)
if tonumber(ARGV[3]) > 0 then redis.call('HSET', KEYS[1], 'until', num(now + tonumber(ARGV[3]))) end
redis.call('HSET', KEYS[1], 'last', ARGV[2], 'ended', num(now))
redis.call('HDEL', KEYS[1], 'token', 'lease_until')
return { 'ok', num(now) }
