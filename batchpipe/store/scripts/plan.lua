-- Make the drafted shards of a round visible, or, if the job is being cancelled, send it on to its end.
-- Those of a small round come with the call, and are due at once. Others are not due yet: `due_from` says from which index on `make_due` goes on, and until then the job itself stays due.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 member, 5 token, 6 lease (s), 7 the round (JSON {..}, see below),
--   8 task ids of merge (JSON [..]), 9 the first turn of the only shard, which is claimed at once (JSON {..}, see claiming.lua;
--   '': none), 10 events for the job's log (JSON [[event, data] ..]; '': none), 11 how long that lives (s), 12 fields (none is
--   removed)
-- the round: count: its shards; drafts: [[index, field, value ..] ..], absent: they are drafted; needs, limits: {KIND: count},
--   of the only shard: it is let in with the claim of its turn, if there is room at once, absent: it asks itself
-- -> {'ok'; and if that was claimed, 1 if it is let in, else 0, what `claim` answers} | {'cancel', epoch of merge} | {'lost'}
local now = clock(ARGV[1])
local prefix, id, lease = ARGV[2], ARGV[3], ARGV[6]
local job, due = KEYS[1], KEYS[3]

-- the only shard's first turn
local function begin(index, round)
  local key, member = prefix .. 'shard:' .. id .. ':' .. index, id .. '/' .. index
  local inside = round.needs and ARGV[9] ~= ''
    and admission.let_in(prefix, key, job, member, round.needs, round.limits, '1', now)
  local claimed = claim_next(ARGV[9], prefix, key, job, due, id, member, now)
  if not claimed then return { 'ok' } end
  return { 'ok', inside and 1 or 0, claimed }
end

if get(job, 'last') == ARGV[5] then -- repeated by the client after a lost reply
  if get(job, 'stage') == 'finalizing' then return { 'cancel', tonumber(get(job, 'epoch')) } end
  local index = tonumber(get(job, 'shards') or '0') - 1
  if not next_of(ARGV[9], prefix .. 'shard:' .. id .. ':' .. index) then return { 'ok' } end
  return begin(index, cjson.decode(ARGV[7]))
end
if not holds(job, ARGV[5], now) then return { 'lost' } end
release(job)
redis.call('HSET', job, 'last', ARGV[5])
if flag(job, 'cancel') == 1 then
  return { 'cancel', finalize(job, prefix, id, due, ARGV[4], lease, now, ARGV[8]) }
end
local round = cjson.decode(ARGV[7])
local first, count = tonumber(get(job, 'shards') or '0'), round.count
note_events(prefix, id, ARGV[10])
if first > 0 then redis.call('EXPIRE', prefix .. 'log:' .. id, ARGV[11]) end -- else the submit has done so
for i = 12, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
local drafted = math.max(first, tonumber(get(job, 'drafted') or '0'))
redis.call('HSET', job, 'open', count, 'shards', first + count)
redis.call('HDEL', job, 'republish', 'trouble', 'due_now')
set_state(job, prefix, id, 'running', now)
if not round.drafts then
  redis.call('HSET', job, 'due_from', first)
  redis.call('ZADD', due, num(now + tonumber(lease)), ARGV[4])
  return { 'ok' }
end
local scores = {}
for _, fields in ipairs(round.drafts) do
  local index = tonumber(table.remove(fields, 1))
  local key = prefix .. 'shard:' .. id .. ':' .. index
  if index < drafted then redis.call('DEL', key) end -- a turn that died may have drafted another one
  is_new(key)
  redis.call('HSET', key, 'planned_at', num(now), unpack(fields))
  redis.call('HSET', key, 'next_at', num(now), 'wait', num(0)) -- as set_due() does with one that was not published again
  table.insert(scores, num(now + tonumber(lease)))
  table.insert(scores, id .. '/' .. index)
end
redis.call('ZREM', due, ARGV[4])
local begun = count == 1 and begin(first, round)
if begun and begun[3] then return begun end -- its claim has made it due
redis.call('ZADD', due, unpack(scores))
return { 'ok' }
