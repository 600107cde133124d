-- Take the lease on a record.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 epoch, 5 stages that it may be in (',stage,stage,'), 6 stage to go to ('': it
--   stays; else the record is a job), 7 token, 8 lease (s), 9 deadline (s), 10 longest deadline (s), 11 member
-- -> {'ok', the record's hash, the job's hash, seconds of the lease (s), deadline (s), 1 if the turn before met
--    its own, else 0; and if the account is paused left of that (s), code, message}
--  | {'gone'} | {'epoch'} | {'stage'} | {'lease', left of another's (s)} | {'early', until its time (s)}
-- The order of the checks matters: a message of another epoch must not wait for somebody else's lease.
local now = clock(ARGV[1])
local queue = get(KEYS[2], 'queue')
if queue and queue ~= '' then -- a message was taken from it, though it may be void: see the sweep
  redis.call('ZADD', ARGV[2] .. 'taken', num(now), queue)
end
local wanted = { epoch = ARGV[4], stages = ARGV[5], enter = ARGV[6], token = ARGV[7], lease = ARGV[8], deadline = ARGV[9] }
wanted.longest = ARGV[10]
return take_lease(ARGV[2], KEYS[1], KEYS[2], KEYS[3], ARGV[3], ARGV[11], wanted, now)
