-- The result files of a closed job lie elsewhere now. KEYS 1 job. ARGV: skew, where, the same without links   -> {'ok'|'gone'}
if (get(KEYS[1], 'results') or '') == '' then return { 'gone' } end
redis.call('HSET', KEYS[1], 'results', ARGV[2], 'real', ARGV[3])
return { 'ok' }
