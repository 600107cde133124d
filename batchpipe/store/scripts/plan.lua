-- Make the drafted shards of a round visible, or, if the job is being cancelled, send it on to its end.
-- Those of a small round come with the call, and are due at once. Others are not due yet: `due_from` says from which index on `make_due` goes on, and until then the job itself stays due.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 member, 5 token, 6 lease (s), 7 task ids of merge (JSON [..]), 8 shards (count),
--   9 the shards of a small round (JSON [[index, field, value ..] ..]; '': they are drafted), 10 the first turn of the only shard, which is claimed
--   at once (JSON {..}, see claiming.lua; '': none), 11 events for the job's log
--   (JSON [[event, data] ..]; '': none), 12 how long that lives (s), 13 fields (none is removed)
-- -> {'ok'; and if that was claimed, what `claim` answers} | {'cancel', epoch of merge} | {'lost'}
local now = clock(ARGV[1])
local prefix, id, lease = ARGV[2], ARGV[3], ARGV[6]
local job, due = KEYS[1], KEYS[3]
if get(job, 'last') == ARGV[5] then -- repeated by the client after a lost reply
  if get(job, 'stage') == 'finalizing' then return { 'cancel', tonumber(get(job, 'epoch')) } end
  local key = prefix .. 'shard:' .. id .. ':' .. (tonumber(get(job, 'shards') or '0') - 1)
  if not next_of(ARGV[10], key) then return { 'ok' } end
  local member = id .. '/' .. get(key, 'index')
  return { 'ok', claim_next(ARGV[10], prefix, key, job, due, id, member, now) or nil }
end
if not holds(job, ARGV[5], now) then return { 'lost' } end
release(job)
redis.call('HSET', job, 'last', ARGV[5])
if flag(job, 'cancel') == 1 then
  return { 'cancel', finalize(job, prefix, id, due, ARGV[4], lease, now, ARGV[7]) }
end
local first, count = tonumber(get(job, 'shards') or '0'), tonumber(ARGV[8])
note_events(prefix, id, ARGV[11])
if first > 0 then redis.call('EXPIRE', prefix .. 'log:' .. id, ARGV[12]) end -- else the submit has done so
for i = 13, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
local drafted = math.max(first, tonumber(get(job, 'drafted') or '0'))
redis.call('HSET', job, 'open', count, 'shards', first + count)
redis.call('HDEL', job, 'republish', 'trouble', 'due_now')
set_state(job, prefix, id, 'running', now)
if ARGV[9] ~= '' then
  for _, fields in ipairs(cjson.decode(ARGV[9])) do
    local index = tonumber(table.remove(fields, 1))
    local key = prefix .. 'shard:' .. id .. ':' .. index
    if index < drafted then redis.call('DEL', key) end -- a turn that died may have drafted another one
    is_new(key)
    redis.call('HSET', key, 'planned_at', num(now), unpack(fields))
    redis.call('HSET', key, 'next_at', num(now), 'wait', num(0)) -- as set_due() does with one that was not published again
    redis.call('ZADD', due, num(now + tonumber(lease)), id .. '/' .. index)
  end
  redis.call('ZREM', due, ARGV[4])
  if count == 1 then
    local key, member = prefix .. 'shard:' .. id .. ':' .. first, id .. '/' .. first
    return { 'ok', claim_next(ARGV[10], prefix, key, job, due, id, member, now) or nil }
  end
  return { 'ok' }
end
redis.call('HSET', job, 'due_from', first)
redis.call('ZADD', due, num(now + tonumber(lease)), ARGV[4])
return { 'ok' }
