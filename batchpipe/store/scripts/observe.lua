-- Note what a list shows of a batch. Needs no lease: it is a snapshot, and only of the batch that is recorded.
-- ARGV: skew, batch id, fields...   -> {'ok'} | {'other'}
local now = clock(ARGV[1])
if get(KEYS[1], 'stage') ~= 'created' or get(KEYS[1], 'batch_id') ~= ARGV[2] then return { 'other' } end
write(KEYS[1], 3)
redis.call('HSET', KEYS[1], 'snapshot_at', num(now))
return { 'ok' }
