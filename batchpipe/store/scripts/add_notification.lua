-- Record a notification, due now, unless it is known: being told of the same thing twice changes nothing.
-- KEYS: 1 notification:ID, 2 outbox, 3 outbox:dead, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 id, 4 notifications that wait at most (count), 5 time to live of one that was delivered
--   (s), 6 fields
-- -> {'ok'} | {'known'} | {'full'} too many wait
local now = clock(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then return { 'known' } end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then return { 'full' } end
write(KEYS[1], 6)
redis.call('HSET', KEYS[1], 'created_at', num(now), 'due_at', num(now), 'tries', '0')
redis.call('ZADD', KEYS[2], num(now), ARGV[3])
return { 'ok' }
