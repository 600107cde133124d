-- Claim names of a job's output under its lease: what the host that works on it sees. All or none.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 token, 5 all names that the job then owns (JSON [..])
-- -> {'ok'} | {'lost'} | {'output', id of its owner, the owner's state}
local now = clock(ARGV[1])
if not holds(KEYS[1], ARGV[4], now) then return { 'lost' } end
local owner, stage = claim_output(ARGV[2], ARGV[5], ARGV[3])
if owner then return { 'output', owner, stage } end
redis.call('HSET', KEYS[1], 'owns', ARGV[5])
return { 'ok' }
