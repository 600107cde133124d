-- Where shards stand in their lines, and what they lack. Reads only.
-- KEYS: 1 due, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 members (100 at most)
-- -> {for each: {place, of (count), what lacks} | {} it waits in no line ..}
local now = clock(ARGV[1], true)
local answer, lines = {}, {}
reading = true
for i = 3, #ARGV do
  local id, index = string.match(ARGV[i], '^(.*)/(%d+)$')
  local job, rec = ARGV[2] .. 'job:' .. (id or ''), ARGV[2] .. 'shard:' .. (id or '') .. ':' .. (index or '')
  local found = {}
  if id and get(rec, 'waits_since') then
    local line = line_of(ARGV[2], account_of(job), model_key(get(rec, 'model')))
    lines[line.name] = lines[line.name] or line
    found = admission.place(lines[line.name], rec, id, index, now)
  end
  table.insert(answer, found)
end
return answer
