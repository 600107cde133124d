-- Set the cancel flag of a job that has not ended. KEYS 1 job   -> {'gone'} | {'ok'|'ended', number of shards}
if redis.call('EXISTS', KEYS[1]) == 0 then return { 'gone' } end
local shards = tonumber(get(KEYS[1], 'shards') or '0')
if ENDED[get(KEYS[1], 'stage')] then return { 'ended', shards } end
redis.call('HSET', KEYS[1], 'cancel', '1')
return { 'ok', shards }
