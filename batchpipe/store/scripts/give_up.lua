-- See to it that a job whose submit got no answer is not recorded any more, unless it is already.
-- KEYS 1 job. ARGV: skew, prefix, id, seconds to remember it   -> {'ok'|'known'}
if redis.call('EXISTS', KEYS[1]) == 1 then return { 'known' } end
redis.call('SET', ARGV[2] .. 'given_up:' .. ARGV[3], '1', 'EX', ARGV[4])
return { 'ok' }
