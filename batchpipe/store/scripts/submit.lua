-- Record a new job, unless its key is taken or its output is that of another job that is not closed.
-- With it goes what else a submit needs, so that it is one call: the first event of its log, and whether a worker listens.
-- KEYS: 1 job, 2 job, 3 due, 4 key:KEY (or the job again, if it has none), 5 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 member, 5 lease (s), 6 replace: '' | '1': any | id of the
--   one job that may be replaced, 7 how long its id is an alias if its key is taken (s; 0: it is none), 8 names of its output (JSON [..]),
--   9 data of its first event (JSON {..}; '': none), 10 how long the log lives (s), 11 after how long without news a worker
--   counts as gone (s), 12 fields
-- -> {'ok', id, when it was recorded (at), 1 if a worker listens on its queue, else 0} | {'exists', id of the first job} | {'output', id of its owner, the owner's state}
local now = clock(ARGV[1])
local prefix, id, replace = ARGV[2], ARGV[3], ARGV[6]
local function listens()
  local queue, since = get(KEYS[1], 'queue') or '', num(now - tonumber(ARGV[11]))
  local members = redis.call('ZREVRANGEBYSCORE', prefix .. 'listening', '+inf', since, 'LIMIT', 0, 100)
  for _, member in ipairs(members) do
    if string.sub(member, 1, #queue + 1) == queue .. '\n' then return 1 end
  end
  return 0
end

if redis.call('EXISTS', KEYS[1]) == 1 then -- repeated by the client after a lost reply
  return { 'ok', id, get(KEYS[1], 'created_at') or num(now), listens() }
end
if KEYS[4] ~= KEYS[1] then
  local first = redis.call('GET', KEYS[4])
  if first and redis.call('EXISTS', prefix .. 'job:' .. first) == 1 and replace ~= '1' and replace ~= first then
    if tonumber(ARGV[7]) > 0 then redis.call('SET', prefix .. 'alias:' .. id, first, 'EX', ARGV[7]) end
    return { 'exists', first }
  end
end
local owner, owner_stage = claim_output(prefix, ARGV[8], id)
if owner then return { 'output', owner, owner_stage } end
if KEYS[4] ~= KEYS[1] then redis.call('SET', KEYS[4], id) end
write(KEYS[1], 12)
redis.call('HSET', KEYS[1], 'created_at', num(now))
note_retry(prefix, KEYS[1], id)
redis.call('ZADD', prefix .. 'jobs', num(now), id)
redis.call('ZADD', prefix .. 'job_ids', 0, id)
redis.call('ZADD', prefix .. 'jobs:pending', num(now), id)
set_due(KEYS[1], KEYS[3], ARGV[4], ARGV[5], now, 0)
if ARGV[9] ~= '' then
  redis.call('XADD', prefix .. 'log:' .. id, '*', 'event', 'submitted', 'data', ARGV[9])
  redis.call('EXPIRE', prefix .. 'log:' .. id, ARGV[10])
end
return { 'ok', id, num(now), listens() }
