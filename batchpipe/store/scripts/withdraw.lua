-- A call was clearly refused, or never made: take it off the list of unanswered ones; with the last the intent goes.
-- Needs no lease (the answer is a fact) and may be repeated.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 member, 4 key of the shard (job:index:try), 5 call: the token of the turn that made it
-- -> {'ok', calls that are left (count)}
local now = clock(ARGV[1])
if get(KEYS[1], 'job') .. ':' .. get(KEYS[1], 'index') .. ':' .. (get(KEYS[1], 'try') or '1') ~= ARGV[4] then
  return { 'ok', 0 }
end
local left, found = {}, false
for _, call in ipairs(cjson.decode(get(KEYS[1], 'calls') or '[]')) do
  if call == ARGV[5] then found = true else table.insert(left, call) end
end
if #left > 0 then
  redis.call('HSET', KEYS[1], 'calls', cjson.encode(left))
  if found and get(KEYS[1], 'latest_call') == ARGV[5] then -- the older ones were over before this one was made
    redis.call('HSET', KEYS[1], 'latest_call', left[#left], 'call_over_at', num(now))
  end
elseif found then
  redis.call('HDEL', KEYS[1], 'calls', 'intent_at', 'empty_at', 'named', 'latest_call', 'call_over_at', 'called_as', 'walk_from')
end
note_unanswered(ARGV[2], KEYS[1], KEYS[2], ARGV[3])
return { 'ok', #left }
