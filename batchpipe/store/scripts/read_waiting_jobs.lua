-- How many shards of jobs wait in the lines of their accounts, and where the first of them stands. Reads only.
-- KEYS: 1 due, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job ids (100 at most)
-- -> {for each: {shards that wait (count), place, of (count), what lacks} | {} none waits ..}
local now = clock(ARGV[1], true)
local answer = {}
reading = true
for i = 3, #ARGV do
  local id, count, first = ARGV[i], 0, nil
  local account = account_of(ARGV[2] .. 'job:' .. id)
  for _, model in ipairs(redis.call('ZRANGE', ARGV[2] .. 'lines:' .. account, 0, LINES_AT_ONCE - 1)) do
    local line = line_of(ARGV[2], account, model)
    local index = redis.call('ZRANGE', shards_key(line, id), 0, 0)[1]
    if index then
      count = count + redis.call('ZCARD', shards_key(line, id))
      local found = admission.place(line, ARGV[2] .. 'shard:' .. id .. ':' .. index, id, index, now)
      if not first or found[1] < first[1] then first = found end
    end
  end
  table.insert(answer, first and { count, unpack(first) } or {})
end
return answer
