-- Take the next shards that are to be published again: of the job of which fewest were. They count as published; one that
-- is forgotten by a crash learns of a cancel with its next turn.
-- KEYS: 1 to_republish, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 shards at most (count)
-- -> {} there are none | {job id, when, first index, index after the last}
while true do
  local found = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  if #found == 0 then return {} end
  local id, when = string.match(found[1], '^(.*)/(%a+)$')
  local job, first = ARGV[2] .. 'job:' .. (id or ''), tonumber(found[2])
  local shards = id and tonumber(redis.call('HGET', job, 'shards') or '0') or 0
  if first < shards and not ENDED[get(job, 'stage')] then
    local last = math.min(first + tonumber(ARGV[3]), shards)
    redis.call('ZADD', KEYS[1], last, found[1])
    return { id, when, first, last }
  end
  redis.call('ZREM', KEYS[1], found[1])
end
