-- After a submit without an answer: make sure that the job will not be recorded any more, unless it already is.
-- KEYS 1 job. ARGV: skew, prefix, id, seconds to remember it   -> {'ok'|'known'}
if redis.call('EXISTS', KEYS[1]) == 1 then return { 'known' } end
redis.call('SET', ARGV[2] .. 'given_up:' .. ARGV[3], '1', 'EX', ARGV[4])
return { 'ok' }
