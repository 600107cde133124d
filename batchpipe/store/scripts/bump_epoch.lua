-- Void all messages of a record and take a new epoch for new ones.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 member, 3 lease (s), 4 task ids of the new messages (JSON [..]), 5 when, 6 until the new one is
--   meant to run (s)
-- when: overdue: its message is lost; waiting: also if it waits for its time; always: even if one is under way
-- -> {'ok', epoch, stage, queue, old task ids (JSON [..])} | {'lease'} left to its holder: `republish` | {'later'} not now
--  | {'ended'} | {'gone'} | {'undue'} not all of its shards are due yet: `make_due` goes on
local now = clock(ARGV[1])
local rec, due = KEYS[1], KEYS[3]
if redis.call('EXISTS', rec) == 0 or redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', due, ARGV[2])
  return { 'gone' }
end
local stage = get(rec, 'stage')
if stage == 'running' and get(rec, 'due_from') then return { 'undue' } end
if stage == 'collected' or stage == 'running' or get(rec, 'closed') == '1' then
  redis.call('ZREM', due, ARGV[2])
  return { 'ended' }
end
local lives = leased(rec, now)
if ARGV[5] ~= 'always' and not lives then
  local score = redis.call('ZSCORE', due, ARGV[2])
  local waiting = ARGV[5] == 'waiting' and tonumber(get(rec, 'next_at') or '0') > now
  -- a message that is under way is not repeated before it is overdue: else new ones outrun the workers
  -- (0.05: two readings of a clock; what another script has just made due is)
  if score and tonumber(score) > now + 0.05 and not waiting then return { 'later' } end
end
if ARGV[5] == 'overdue' and lives then return { 'later' } end
if lives then
  redis.call('HSET', rec, 'republish', '1')
  return { 'lease' }
end
-- It is due from now on: the time in which it was due and nobody looked is forgiven here (as by `attended` of lateness.py).
local unattended = now - tonumber(get(rec, 'next_at') or now) - math.max(tonumber(get(rec, 'wait') or '0'), 10)
if unattended > 0 then
  for _, name in ipairs({ 'late_at', 'unseen_at', 'refused_at', 'other_at' }) do
    local since = tonumber(get(rec, name) or '')
    if since then redis.call('HSET', rec, name, num(math.min(since + unattended, now))) end
  end
end
local old = get(rec, 'task_ids') or '[]'
local epoch = redis.call('HINCRBY', rec, 'epoch', 1)
redis.call('HINCRBY', rec, 'pubs', 1)
redis.call('HSET', rec, 'task_ids', ARGV[4])
redis.call('HDEL', rec, 'republish', 'parked', 'park_until')
set_due(rec, due, ARGV[2], ARGV[3], now, tonumber(ARGV[6]))
return { 'ok', epoch, stage, get(KEYS[2], 'queue') or '', old }
