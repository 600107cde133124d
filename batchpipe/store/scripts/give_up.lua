-- See to it that a job whose submit got no answer is not recorded any more, unless it is already.
-- KEYS: 1 job, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 how long that is remembered (s)
-- -> {'ok'} | {'known'} it is recorded
if redis.call('EXISTS', KEYS[1]) == 1 then return { 'known' } end
redis.call('SET', ARGV[2] .. 'given_up:' .. ARGV[3], '1', 'EX', ARGV[4])
return { 'ok' }
