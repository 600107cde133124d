-- How many rows of a job are ok, failed and missing together with its retries.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 counts (JSON {text: count})
-- -> {'ok'} | {'gone'} the job is not known
if not get(KEYS[1], 'stage') then return { 'gone' } end
redis.call('HSET', KEYS[1], 'retried', ARGV[2])
return { 'ok' }
