-- Record a notification, due now, unless it is known, or the same was told a while ago: being told of the same thing twice
-- changes nothing. One that finds no room is counted.
-- KEYS: 1 notification:ID, 2 outbox, 3 told:HEX, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 id, 4 notifications that wait at most (count), 5 how long the same is not told again (s; 0:
--   the key says nothing), 6 fields
-- -> {'ok'} | {'known'} | {'full'} too many wait
local now = clock(ARGV[1])
local once = tonumber(ARGV[5])
local told = once > 0 and tonumber(redis.call('GET', KEYS[3]) or '-inf')
if redis.call('EXISTS', KEYS[1]) == 1 or (told and now - told < once) then return { 'known' } end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then
  redis.call('HINCRBYFLOAT', ARGV[2] .. 'metrics', '["notifications_dropped"]', 1)
  return { 'full' }
end
write(KEYS[1], 6)
redis.call('HSET', KEYS[1], 'created_at', num(now), 'due_at', num(now), 'tries', '0')
redis.call('ZADD', KEYS[2], num(now), ARGV[3])
if once > 0 then redis.call('SET', KEYS[3], num(now), 'EX', ARGV[5]) end
return { 'ok' }
