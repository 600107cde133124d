-- Write the records of a running job that this Redis does not know (any more); its unfinished shards are due at once.
-- KEYS: 1 job, 2 job, 3 due, 4 key:KEY (or the job again, if it has none), 5 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 token of this call, 5 names of its output (JSON [..]), 6 fields (none is removed)
-- -> {'ok'} | {'known'} nothing was written | {'output', id of its owner, the owner's state}
local now = clock(ARGV[1])
local prefix, id, job, due = ARGV[2], ARGV[3], KEYS[1], KEYS[3]
if redis.call('EXISTS', job) == 1 then
  return { get(job, 'last') == ARGV[4] and 'ok' or 'known' } -- ok: repeated by the client after a lost reply
end
local owner, owner_stage = claim_output(prefix, ARGV[5], id)
if owner then return { 'output', owner, owner_stage } end
if KEYS[4] ~= job then
  local first = redis.call('GET', KEYS[4])
  -- a job that was since submitted under the same key keeps it
  if not first or redis.call('EXISTS', prefix .. 'job:' .. first) == 0 then redis.call('SET', KEYS[4], id) end
end

for i = 6, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
-- its shards are drafted: `make_due` makes them due, and keeps their records from expiring
redis.call('HSET', job, 'last', ARGV[4], 'due_from', '0', 'due_now', '1')
redis.call('ZADD', due, num(now), id .. '/-1')
if flag(job, 'cancel') == 1 then redis.call('ZADD', prefix .. 'jobs:cancelling', get(job, 'created_at') or '0', id) end
redis.call('HSET', job, 'running_at', num(now))
redis.call('ZADD', prefix .. 'accounts', num(now), get(job, 'account') or 'default') -- the sweep watches it
redis.call('ZADD', prefix .. 'jobs', get(job, 'created_at'), id)
redis.call('ZADD', prefix .. 'job_ids', 0, id)
redis.call('ZADD', prefix .. 'jobs:running', get(job, 'created_at'), id)
note_retry(prefix, job, id)
return { 'ok' }
