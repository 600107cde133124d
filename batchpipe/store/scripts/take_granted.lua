-- Take the members of shards that were granted something and are not yet told of.
-- KEYS: 1 granted, 2 clock
-- ARGV: 1 skew (s), 2 members at most (count)
-- -> {member ..}
local found = redis.call('LRANGE', KEYS[1], 0, ARGV[2] - 1)
if #found > 0 then redis.call('LTRIM', KEYS[1], #found, -1) end
return found
