-- The result files of a closed job lie elsewhere now.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 where (path or URL), 3 the same without links
-- -> {'ok'} | {'gone'} the job is not known, or has no results
if (get(KEYS[1], 'results') or '') == '' then return { 'gone' } end
redis.call('HSET', KEYS[1], 'results', ARGV[2], 'real', ARGV[3])
return { 'ok' }
