-- Take up an ended job again, to land shards that were given up and are marked (`mark_for_landing`): their batches are read
-- again. Nothing is sent again.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 token of this call, 5 lease (s), 6 in output: 1: its results go to its
--   output, which it claims again | 0: they lie elsewhere
-- -> {'ok'} | {'gone'} | {'running'} it has not ended | {'not_closed'} its receivers are not all notified
--  | {'none'} nothing is marked | {'output'} its output is that of another job that is not closed
local now = clock(ARGV[1])
local prefix, id, token, lease, job, due = ARGV[2], ARGV[3], ARGV[4], ARGV[5], KEYS[1], KEYS[3]
if redis.call('EXISTS', job) == 0 then return { 'gone' } end
if get(job, 'last') == token then return { 'ok' } end -- repeated by the client after a lost reply
if not ENDED[get(job, 'stage')] then return { 'running' } end
if flag(job, 'closed') == 0 then return { 'not_closed' } end
local count = get(job, 'to_land')
if not count then return { 'none' } end
if ARGV[6] == '1' and claim_output(prefix, get(job, 'owns') or '[]', id) then return { 'output' } end

redis.call('PERSIST', job)
redis.call('PERSIST', prefix .. 'log:' .. id)
local key = get(job, 'key')
if key and redis.call('GET', prefix .. 'key:' .. key) == id then redis.call('PERSIST', prefix .. 'key:' .. key) end
redis.call('HDEL', job, 'closed', 'notified', 'notify_attempts', 'receiver_errors', 'cleanup_attempts',
  'ended_at', 'error', 'republish', 'hold', 'hold_at', 'to_land')
redis.call('HSET', job, 'last', token, 'open', count, 'send_no_more', '1')
redis.call('HINCRBY', job, 'epoch', 1)
set_state(job, prefix, id, 'running', now)
-- `make_due` makes the marked ones due, and keeps the records of all its shards
redis.call('HSET', job, 'due_from', '0', 'due_now', '1')
redis.call('ZADD', due, num(now + tonumber(lease)), id .. '/-1')
return { 'ok' }
