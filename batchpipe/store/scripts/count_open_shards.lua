-- Count unfinished shards by stage. Reads only.
-- KEYS: 1 due, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 first rank in `due`, 4 last rank
-- -> {members read (count), age of the oldest shard (s), shards in trouble (count), stage, count, stage, count ..}
local now = clock(ARGV[1], true)
local members = redis.call('ZRANGE', KEYS[1], ARGV[3], ARGV[4])
local oldest, troubled, stages = 0, 0, {}
for _, member in ipairs(members) do
  local id, index = string.match(member, '^(.*)/(%d+)$') -- a job itself has the index -1
  if id then
    local shard = redis.pcall('HMGET', ARGV[2] .. 'shard:' .. id .. ':' .. index, 'stage', 'planned_at', 'trouble')
    local stage, planned = shard[1], tonumber(shard[2] or '')
    if stage and stage ~= 'collected' and not shard.err then
      stages[stage] = (stages[stage] or 0) + 1
      if planned then oldest = math.max(oldest, now - planned) end
      if shard[3] then troubled = troubled + 1 end
    end
  end
end
local answer = { #members, num(oldest), troubled }
for stage, count in pairs(stages) do
  table.insert(answer, stage)
  table.insert(answer, count)
end
return answer
