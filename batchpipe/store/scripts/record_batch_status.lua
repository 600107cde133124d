-- Note what a list said of a batch. Needs no lease: it is a snapshot, and only of the batch that is recorded.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 member, 4 batch id, 5 fields
-- -> {'ok'} | {'other'} the shard waits for that batch no more
local now = clock(ARGV[1])
if get(KEYS[1], 'stage') ~= 'created' or get(KEYS[1], 'batch_id') ~= ARGV[4] then return { 'other' } end
local answered = tonumber(get(KEYS[1], 'answered') or '0')
write(KEYS[1], 5)
add_answered(KEYS[1], KEYS[2], answered, now)
redis.call('HSET', KEYS[1], 'snapshot_at', num(now))
if FINAL[get(KEYS[1], 'status')] then note_end_of_batch(ARGV[2], KEYS[1], KEYS[2], ARGV[3], now) end
return { 'ok' }
