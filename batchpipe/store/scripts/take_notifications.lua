-- Take the notifications that are due: nobody else sends them for a while, after which the caller counts as dead.
-- KEYS: 1 not used, 2 outbox, 3 outbox:dead, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 not used, 4 at most (count), 5 how long they are the caller's (s)
-- -> {ID ..}
local now = clock(ARGV[1])
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', num(now), 'LIMIT', 0, ARGV[4])
local taken = {}
for _, id in ipairs(found) do
  local key = ARGV[2] .. 'notification:' .. id
  if redis.call('EXISTS', key) == 1 then
    local due = num(now + tonumber(ARGV[5]))
    redis.call('HSET', key, 'due_at', due)
    redis.call('ZADD', KEYS[2], due, id)
    taken[#taken + 1] = id
  else
    redis.call('ZREM', KEYS[2], id)
  end
end
return taken
