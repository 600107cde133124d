-- What became of a try to deliver a notification, or that the caller cannot try. Late words of a sender that counted as
-- dead change nothing once it has been delivered.
-- KEYS: 1 notification:ID, 2 outbox, 3 outbox:dead, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 id, 4 delivered | failed | lacking (not tried, as the caller lacks something: no try is
--   counted) | left (the same, and it stays due for others) | dead, 5 until the next try (s), 6 error (text), 7 after which it
--   is given up (s), 8 how long one that was delivered is remembered (s), 9 and one that was given up (s), 10 of these, how many
--   are kept (count)
-- -> {'ok'} | {'dead'} it was given up | {'gone'}
local now = clock(ARGV[1])
local note, outbox, dead, id, what = KEYS[1], KEYS[2], KEYS[3], ARGV[3], ARGV[4]
if redis.call('EXISTS', note) == 0 or not redis.call('ZSCORE', outbox, id) then return { 'gone' } end
if what == 'delivered' then
  redis.call('ZREM', outbox, id)
  redis.call('HDEL', note, 'body', 'error')
  redis.call('HSET', note, 'delivered_at', num(now))
  redis.call('EXPIRE', note, ARGV[8])
  return { 'ok' }
end
if what ~= 'lacking' and what ~= 'left' then
  redis.call('HINCRBY', note, 'tries', 1)
  redis.call('HSET', note, 'error', ARGV[6])
elseif (get(note, 'tries') or '0') == '0' then -- else why the last try failed says more
  redis.call('HSET', note, 'error', ARGV[6])
end
if what == 'left' then return { 'ok' } end
local since = tonumber(get(note, 'since') or get(note, 'created_at') or now)
local next_at = now + tonumber(ARGV[5])
if what ~= 'dead' and next_at - since < tonumber(ARGV[7]) then
  redis.call('HSET', note, 'due_at', num(next_at))
  redis.call('ZADD', outbox, num(next_at), id)
  return { 'ok' }
end
redis.call('ZREM', outbox, id)
redis.call('ZADD', dead, num(now), id)
redis.call('HSET', note, 'dead', '1')
redis.call('EXPIRE', note, ARGV[9])
for _, old in ipairs(redis.call('ZRANGE', dead, 0, -1 - tonumber(ARGV[10]))) do
  redis.call('DEL', ARGV[2] .. 'notification:' .. old)
  redis.call('ZREM', dead, old)
end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', dead, '-inf', num(now - tonumber(ARGV[9])), 'LIMIT', 0, 100)) do
  redis.call('ZREM', dead, old)
end
return { 'dead' }
