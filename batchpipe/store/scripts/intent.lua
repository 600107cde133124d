-- Say, before the paid call, that it will be made. The time of the first intent under a key is never overwritten; a call
-- clears the time of the empty search, and the ids that answers to earlier ones named: whoever calls has settled them. Only
-- the last few calls are kept.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 token, 4 time of the caller's host (at), 5 member, 6 how long the call may be under way, at
--   most, if its worker vanishes (s), 7 whose key it is made with ('': not known), 8 admitted, 9 stage that the shard has
--   come to in the same turn, which is recorded with it ('': none), 10 events of that for the job's log (JSON [[event, data] ..];
--   '': none), 11 its fields
-- admitted: '1': the shard must hold room; '0': it is not asked
-- -> {'ok', republish, cancel} | {'lost'}
--  | {'no_hold', republish, 0} there is no room for it; no intent is recorded
--  | {'held', republish, 0} the job sends nothing more until somebody decides, or at all; no intent is recorded
local now = clock(ARGV[1])
if not holds(KEYS[1], ARGV[3], now) then return { 'lost' } end
if (get(KEYS[2], 'hold_at') or flag(KEYS[2], 'send_no_more') == 1) and flag(KEYS[2], 'cancel') == 0 then
  return { 'held', flag(KEYS[1], 'republish'), 0 }
end
if ARGV[8] == '1' and not admission.may_call(ARGV[2], KEYS[1], KEYS[2], ARGV[5], now) then
  return { 'no_hold', flag(KEYS[1], 'republish'), 0 }
end
local calls = cjson.decode(get(KEYS[1], 'calls') or '[]')
local known = false
for _, call in ipairs(calls) do known = known or call == ARGV[3] end
if ARGV[9] ~= '' and not known then
  write(KEYS[1], 11)
  note_events(ARGV[2], get(KEYS[1], 'job'), ARGV[10])
  set_stage(KEYS[1], ARGV[9], now)
  redis.call('HSET', KEYS[1], 'tries', '1') -- the one that is under way
end
if redis.call('HSETNX', KEYS[1], 'intent_at', num(now)) == 1 then
  -- the list is read back to the earliest time that the call may have had at the provider
  redis.call('HSET', KEYS[1], 'intent_ahead', num(math.max(ahead, now - tonumber(ARGV[4]))))
end
redis.call('HDEL', KEYS[1], 'empty_at', 'named')
if not known then
  -- calls with several keys, or by a worker that does not say with which: then nothing is known of all of them
  local as = ARGV[7]
  if #calls > 0 and (get(KEYS[1], 'latest_call') ~= calls[#calls] or get(KEYS[1], 'called_as') ~= as) then as = '' end
  table.insert(calls, ARGV[3])
  redis.call('HSET', KEYS[1], 'latest_call', ARGV[3], 'call_over_at', num(now + tonumber(ARGV[6])))
  if as == '' then redis.call('HDEL', KEYS[1], 'called_as') else redis.call('HSET', KEYS[1], 'called_as', as) end
end
while #calls > 20 do table.remove(calls, 1) end
redis.call('HSET', KEYS[1], 'calls', cjson.encode(calls))
note_unanswered(ARGV[2], KEYS[1], KEYS[2], ARGV[5])
redis.call('ZADD', ARGV[2] .. 'accounts', num(now), get(KEYS[2], 'account') or 'default')
return { 'ok', flag(KEYS[1], 'republish'), flag(KEYS[2], 'cancel') }
