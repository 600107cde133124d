-- Keep the ids of batches that an unclear answer to a create call named. Needs no lease: what an answer said is a fact.
-- ARGV: skew, key of the shard, most, ids as JSON (true: the answer was about it) -> {'ok'} | {'other'} the shard no longer waits for such an answer
local rec = KEYS[1]
local key = (get(rec, 'job') or '') .. ':' .. (get(rec, 'index') or '') .. ':' .. (get(rec, 'try') or '1')
if key ~= ARGV[2] or get(rec, 'batch_id') or get(rec, 'stage') ~= 'uploaded' then return { 'other' } end
local names, count = cjson.decode(get(rec, 'named') or '{}'), 0
for _ in pairs(names) do count = count + 1 end
for name, about in pairs(cjson.decode(ARGV[4])) do
  if names[name] ~= nil then
    names[name] = names[name] or about
  elseif count < tonumber(ARGV[3]) then
    names[name], count = about, count + 1
  end
end
if count > 0 then redis.call('HSET', rec, 'named', cjson.encode(names)) end
return { 'ok' }
