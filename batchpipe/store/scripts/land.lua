-- Take up an ended job again, to land shards that were given up: their batches are read anew. Nothing is sent again.
-- KEYS 1 job, 3 due. ARGV: skew, prefix, id, token, lease, number of shards, then for each: index, its task ids
-- -> {'ok', epoch of each shard...} | {'gone'} | {'running'} it has not ended | {'untold'} its end is still being told
--  | {'output'} its output is that of another job that is not closed
local now = clock(ARGV[1])
local prefix, id, token, lease, job, due = ARGV[2], ARGV[3], ARGV[4], ARGV[5], KEYS[1], KEYS[3]
local count = tonumber(ARGV[6])
if redis.call('EXISTS', job) == 0 then return { 'gone' } end

local function shard_of(i)
  local index = ARGV[5 + 2 * i]
  return prefix .. 'shard:' .. id .. ':' .. index, id .. '/' .. index, ARGV[6 + 2 * i]
end

local answer = { 'ok' }
if get(job, 'last') == token then -- repeated by the client after a lost answer
  for i = 1, count do table.insert(answer, tonumber(get((shard_of(i)), 'epoch'))) end
  return answer
end
if not ENDED[get(job, 'stage')] then return { 'running' } end
if flag(job, 'told') == 0 then return { 'untold' } end
if own(prefix, get(job, 'owns') or '[]', id) then return { 'output' } end

for i = 1, count do
  local shard, member, task_ids = shard_of(i)
  redis.call('HDEL', shard, 'error', 'trouble', 'unseen_at', 'unfound', 'overdue_at', 'backoff', 'snapshot_at',
    'wake', 'cancel_sent', 'late_at', 'fetched')
  redis.call('HSET', shard, 'landing', '1', 'task_ids', task_ids)
  set_stage(shard, 'created', now)
  table.insert(answer, redis.call('HINCRBY', shard, 'epoch', 1))
  set_due(shard, due, member, lease, now, 0)
end
redis.call('PERSIST', job)
redis.call('PERSIST', prefix .. 'log:' .. id)
local key = get(job, 'key')
if key and redis.call('GET', prefix .. 'key:' .. key) == id then redis.call('PERSIST', prefix .. 'key:' .. key) end
redis.call('HDEL', job, 'told', 'notified', 'untold', 'raised', 'untidied', 'ended_at', 'error', 'wake', 'hold', 'hold_at')
redis.call('HSET', job, 'last', token, 'open', count, 'send_no_more', '1')
redis.call('HINCRBY', job, 'epoch', 1)
set_state(job, prefix, id, 'running', now)
-- `make_due` lets the records of all its shards live on
redis.call('HSET', job, 'due_from', '0', 'due_now', '1')
redis.call('ZADD', due, num(now + tonumber(lease)), id .. '/-1')
return answer
