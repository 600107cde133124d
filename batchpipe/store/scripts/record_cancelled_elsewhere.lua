-- A batch was cancelled, and not by us: note it with its shard, and let the job send nothing more for now, or at all.
-- Needs no lease: it is a fact.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 mode: wait | land | resend, 3 reason (JSON problem)
-- -> {'ok'} | {'known'} said before | {'asked'} the job is being cancelled | {'ended'} or is not known
local now = clock(ARGV[1])
local rec, job = KEYS[1], KEYS[2]
if redis.call('EXISTS', rec) == 0 or redis.call('EXISTS', job) == 0 then return { 'ended' } end
if ENDED[get(job, 'stage')] then return { 'ended' } end
if flag(job, 'cancel') == 1 then return { 'asked' } end
if flag(rec, 'cancelled_elsewhere') == 1 then return { 'known' } end
redis.call('HSET', rec, 'cancelled_elsewhere', '1')
if ARGV[2] == 'land' then
  redis.call('HSET', job, 'send_no_more', '1')
elseif ARGV[2] == 'wait' and flag(job, 'send_no_more') == 0 then
  redis.call('HSETNX', job, 'hold_at', num(now))
  redis.call('HSETNX', job, 'hold', ARGV[3])
end
return { 'ok' }
