-- Take those of these notifications that are still due: nobody else sends them for a while, after which the caller counts
-- as dead.
-- KEYS: 1 outbox, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 how long they are the caller's (s), 4 IDs
-- -> {ID ..}
local now = clock(ARGV[1])
local taken = {}
for at = 4, #ARGV do
  local id, key = ARGV[at], ARGV[2] .. 'notification:' .. ARGV[at]
  local due = tonumber(redis.call('ZSCORE', KEYS[1], id) or 'inf')
  if redis.call('EXISTS', key) == 0 then
    redis.call('ZREM', KEYS[1], id)
  elseif due <= now then
    local over = num(now + tonumber(ARGV[3]))
    redis.call('HSET', key, 'due_at', over)
    redis.call('ZADD', KEYS[1], over, id)
    taken[#taken + 1] = id
  end
end
return taken
