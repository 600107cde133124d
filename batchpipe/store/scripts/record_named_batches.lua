-- Keep the ids of batches that an unclear answer to a create call named. Needs no lease: what was said is a fact.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 key of the shard (job:index:try), 3 ids at most (count), 4 ids (JSON {id: whether the
--   answer was about it})
-- -> {'ok'} | {'other'} the shard waits for no such answer any more
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
