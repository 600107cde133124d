-- Continue what `plan`, `restore` and `land` begin: make the next shards of a running job due, a chunk at a time.
-- Any process may do it, more than once; shards that are already due, or collected, are left as they are. `due_now`: their
-- records may have been about to expire, and they are past due at once.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 lease (s), 5 shards at most (count)
-- -> {shards that are left (count)}
local now = clock(ARGV[1])
local prefix, id, lease, job, due = ARGV[2], ARGV[3], ARGV[4], KEYS[1], KEYS[3]
local from = tonumber(get(job, 'due_from') or '')
if not from then return { 0 } end
if get(job, 'stage') ~= 'running' then -- it has gone on since
  redis.call('HDEL', job, 'due_from', 'due_now')
  return { 0 }
end
local function take_up(shard)
  redis.call('HDEL', shard, 'to_land', 'error', 'trouble', 'unseen_at', 'unfound', 'overdue_at', 'backoff', 'snapshot_at',
    'republish', 'cancel_sent', 'late_at', 'fetched', 'end_seen', 'slot_at', 'parked', 'park_until')
  redis.call('HSET', shard, 'landing', '1')
  redis.call('HINCRBY', shard, 'epoch', 1)
  set_stage(shard, 'created', now)
end

local shards, at_once = tonumber(get(job, 'shards') or '0'), flag(job, 'due_now') == 1
local last = math.min(from + tonumber(ARGV[5]), shards)
for index = from, last - 1 do
  local key, member = prefix .. 'shard:' .. id .. ':' .. index, id .. '/' .. index
  local shard = redis.call('HMGET', key, 'stage', 'batch_id', 'spent', 'to_land')
  if at_once then
    redis.call('PERSIST', key)
    if shard[2] then redis.call('PERSIST', prefix .. 'batch:' .. shard[2]) end
    for _, spent in ipairs(cjson.decode(shard[3] or '[]')) do redis.call('PERSIST', prefix .. 'batch:' .. spent) end
  end
  if at_once and shard[4] then
    take_up(key)
    shard[1] = 'created'
  end
  if shard[1] == 'created' then redis.call('ZADD', in_flight(prefix, job), get(key, 'created_at') or num(now), member) end
  if shard[1] == 'uploaded' then note_unanswered(prefix, key, job, member) end
  if shard[1] and shard[1] ~= 'collected' and not redis.call('ZSCORE', due, member) then
    if at_once then
      redis.call('HSET', key, 'next_at', num(now), 'wait', '0')
      redis.call('ZADD', due, num(now), member)
    else
      set_due(key, due, member, lease, now, 0)
    end
  end
end
if last >= shards then
  redis.call('HDEL', job, 'due_from', 'due_now')
  redis.call('ZREM', due, id .. '/-1')
  return { 0 }
end
redis.call('HSET', job, 'due_from', last)
redis.call('ZADD', due, num(now + tonumber(lease)), id .. '/-1') -- if this process dies, the sweep goes on
return { shards - last }
