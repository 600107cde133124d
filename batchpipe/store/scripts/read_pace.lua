-- Read the sketch of a model's turnarounds, and how old some of the batches are that have not ended. Reads only.
-- KEYS: 1 inflight:ACCOUNT, 2 paces:ACCOUNT, 3 clock
-- ARGV: 1 skew (s), 2 prefix, 3 account, 4 model, 5 how many in flight are looked at (count)
-- -> {now, [field, value, field, value ..], for how many in flight each age stands (decimal text), [age (s) ..]}
local now = clock(ARGV[1], true)
local key = ARGV[2] .. 'pace:' .. ARGV[3] .. ':' .. ARGV[4]
if redis.call('EXISTS', key) == 0 and redis.call('ZCARD', KEYS[2]) >= 200 then key = ARGV[2] .. 'pace:' .. ARGV[3] .. ':' end
local all, most = redis.call('ZCARD', KEYS[1]), tonumber(ARGV[5])
local looked, ages = math.min(all, most), {}
for i = 0, looked - 1 do
  local rank = math.floor(i * all / looked) -- spread over all
  local found = redis.call('ZRANGE', KEYS[1], rank, rank, 'WITHSCORES')
  local id, index = string.match(found[1] or '', '^(.*)/(%d+)$')
  if id then
    local shard = redis.pcall('HMGET', ARGV[2] .. 'shard:' .. id .. ':' .. index, 'model', 'over_at')
    if not shard.err and (shard[1] or '') == ARGV[4] and not shard[2] then
      table.insert(ages, num(math.max(now - tonumber(found[2]), 0)))
    end
  end
end
return { num(now), redis.call('HGETALL', key), num(looked > 0 and all / looked or 1), ages }
