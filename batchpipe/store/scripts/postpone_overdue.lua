-- Look at overdue records again later: their messages still wait.
-- KEYS: 1 due, 2 clock
-- ARGV: 1 skew (s), 2 how much later (s), 3 and on: a member each
-- -> {}
local now = clock(ARGV[1])
for i = 3, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) <= now then redis.call('ZADD', KEYS[1], num(now + tonumber(ARGV[2])), ARGV[i]) end
end
return {}
