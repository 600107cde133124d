-- Write the records of a running job that this Redis does not know (any more); its unfinished shards are due at once.
-- KEYS 1 job, 3 due; 4 the idempotency key's key (or the job's own).
-- ARGV: skew, prefix, id, token, names of its output (JSON), number of job fields, job fields..., number of shards, then for each:
-- index, number of fields, fields...   -> {'ok'} | {'known'} | {'output', id of its owner, the owner's stage}
local now = clock(ARGV[1])
local prefix, id, job, due = ARGV[2], ARGV[3], KEYS[1], KEYS[3]
if redis.call('EXISTS', job) == 1 then
  return { get(job, 'last') == ARGV[4] and 'ok' or 'known' } -- ok: repeated by the client after a lost answer
end
local owner, owner_stage = own(prefix, ARGV[5], id)
if owner then return { 'output', owner, owner_stage } end
if KEYS[4] ~= job then
  local first = redis.call('GET', KEYS[4])
  -- a job that was submitted under the same key meanwhile keeps it
  if not first or redis.call('EXISTS', prefix .. 'job:' .. first) == 0 then redis.call('SET', KEYS[4], id) end
end

local function fields(key, at)
  local count = tonumber(ARGV[at])
  for i = at + 1, at + count, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
  return at + count + 1
end

local at = fields(job, 6)
redis.call('HSET', job, 'last', ARGV[4])
local count = tonumber(ARGV[at])
at = at + 1
for _ = 1, count do
  local member = id .. '/' .. ARGV[at]
  local key = prefix .. 'shard:' .. id .. ':' .. ARGV[at]
  redis.call('DEL', key) -- what may be left of it is of a time before
  at = fields(key, at + 1)
  local batch = get(key, 'batch_id')
  if batch then redis.call('SET', prefix .. 'batch:' .. batch, member) end
  for _, spent in ipairs(cjson.decode(get(key, 'spent') or '[]')) do
    redis.call('SET', prefix .. 'batch:' .. spent, member)
  end
  if get(key, 'stage') ~= 'collected' then
    redis.call('HSET', key, 'next_at', num(now), 'wait', '0')
    redis.call('ZADD', due, num(now), member)
  end
end
redis.call('HSET', job, 'running_at', num(now))
redis.call('ZADD', prefix .. 'accounts', num(now), get(job, 'account') or 'default') -- sweep looks after it
redis.call('ZADD', prefix .. 'jobs', get(job, 'created_at'), id)
redis.call('ZADD', prefix .. 'jobs:running', get(job, 'created_at'), id)
return { 'ok' }
