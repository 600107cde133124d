-- Try a notification again that was given up, or waits: now, and for another day.
-- KEYS: 1 notification:ID, 2 outbox, 3 outbox:dead, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 id
-- -> {'ok'} | {'gone'} it was delivered, or is not known
local now = clock(ARGV[1])
if not get(KEYS[1], 'body') then return { 'gone' } end
redis.call('HSET', KEYS[1], 'since', num(now), 'due_at', num(now))
redis.call('HDEL', KEYS[1], 'dead')
redis.call('PERSIST', KEYS[1])
redis.call('ZREM', KEYS[3], ARGV[3])
redis.call('ZADD', KEYS[2], num(now), ARGV[3])
return { 'ok' }
