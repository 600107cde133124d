-- A message that finds no free slot in its worker, and comes back later: its record is not overdue until then.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 epoch, 4 seconds until it comes back (s), 5 lease (s), 6 member, 7 bytes and 8 rows (count)
--   at most of what is small
-- -> {'small'} it needs no slot | {'later'} | {'claim'} it is void, or another holds the record: claim decides
local now = clock(ARGV[1])
local rec, job = KEYS[1], KEYS[2]
if redis.call('EXISTS', rec) == 0 or redis.call('EXISTS', job) == 0 then return { 'claim' } end
local queue = get(job, 'queue')
if queue and queue ~= '' then redis.call('ZADD', ARGV[2] .. 'taken', num(now), queue) end
if get(rec, 'epoch') ~= ARGV[3] or leased(rec, now) then return { 'claim' } end
-- a cancelled job sends nothing more, and one that has no shards reads or merges nothing
local nothing = get(rec, 'stage') == 'planned' or (rec == job and (get(job, 'shards') or '0') == '0')
if nothing and flag(job, 'cancel') == 1 then return { 'small' } end
-- before a job is prepared only the bytes are known, if its input is local
local bytes, rows = tonumber(get(rec, 'bytes') or 'inf'), tonumber(get(rec, 'rows') or get(rec, 'total') or '0')
if bytes <= tonumber(ARGV[7]) and rows <= tonumber(ARGV[8]) then return { 'small' } end
local due, score = now + tonumber(ARGV[4]) + tonumber(ARGV[5]), redis.call('ZSCORE', KEYS[3], ARGV[6])
if score and tonumber(score) < due then redis.call('ZADD', KEYS[3], num(due), ARGV[6]) end
return { 'later' }
