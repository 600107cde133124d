-- Begin a look at an account's batches: one process at a time, and not before its time.
-- KEYS: 1 listed:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 token, 3 lease (s), 4 since the last one began, at least (s)
-- -> {'ok', begun (at)} | {'taken', left of another's lease (s)} | {'early', until its time (s)}
local now = clock(ARGV[1])
local key = KEYS[1]
local known = redis.call('HMGET', key, 'begun', 'token', 'lease_until')
if known[2] == ARGV[2] then return { 'ok', known[1] } end -- repeated by the client after a lost reply
local left = tonumber(known[3] or '0') - now
if known[2] and left > 0 then return { 'taken', num(left) } end
local early = math.abs(tonumber(known[1] or '0') - now)
if early < tonumber(ARGV[4]) then return { 'early', num(tonumber(ARGV[4]) - early) } end
redis.call('HSET', key, 'begun', num(now), 'token', ARGV[2], 'lease_until', num(now + tonumber(ARGV[3])))
return { 'ok', num(now) }
