-- Nothing is left to do for an ended job: it is closed. It leaves the due set and its output, and its record
-- expires; those of its shards do already (`expire_shards`), or, if they are few, from now on.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 member, 5 token, 6 time to live (s), 7 shards at most that
--   expire here (count; -1: they do already)
-- -> {'ok'} | {'lost'} | {'many'} it has more: nothing is changed
local now = clock(ARGV[1])
local prefix, id, ttl = ARGV[2], ARGV[3], ARGV[6]
if flag(KEYS[1], 'closed') == 1 then return { 'ok' } end
if not holds(KEYS[1], ARGV[5], now) then return { 'lost' } end
if tonumber(ARGV[7]) >= 0 then
  local count = math.max(tonumber(get(KEYS[1], 'shards') or '0'), tonumber(get(KEYS[1], 'drafted') or '0'))
  if count > tonumber(ARGV[7]) then return { 'many' } end
  expire_shards(prefix, id, 0, count - 1, ttl)
end
release(KEYS[1])
redis.call('HSET', KEYS[1], 'closed', '1', 'notified', '1')
redis.call('HDEL', KEYS[1], 'trouble')
redis.call('ZREM', KEYS[3], ARGV[4])
redis.call('EXPIRE', KEYS[1], ttl)
redis.call('EXPIRE', prefix .. 'log:' .. id, ttl)
for _, name in ipairs(cjson.decode(get(KEYS[1], 'owns') or '[]')) do
  local output = prefix .. 'output:' .. name
  if redis.call('GET', output) == id then redis.call('DEL', output) end
end
local key = get(KEYS[1], 'key')
if key and redis.call('GET', prefix .. 'key:' .. key) == id then redis.call('EXPIRE', prefix .. 'key:' .. key, ttl) end
return { 'ok' }
