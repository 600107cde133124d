-- Let the records of an ended job's shards expire, a chunk at a time, before `close_job` closes it.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 token, 5 time to live (s), 6 first index, 7 shards at most (count)
-- -> {'ok', shards in all, drafts too (count); 0 if the job is closed} | {'lost'}
local now = clock(ARGV[1])
local prefix, id, ttl, first = ARGV[2], ARGV[3], ARGV[5], tonumber(ARGV[6])
if flag(KEYS[1], 'closed') == 1 then return { 'ok', 0 } end -- repeated by the client after a lost reply
if not holds(KEYS[1], ARGV[4], now) then return { 'lost' } end
local count = math.max(tonumber(get(KEYS[1], 'shards') or '0'), tonumber(get(KEYS[1], 'drafted') or '0'))
expire_shards(prefix, id, first, math.min(first + tonumber(ARGV[7]), count) - 1, ttl)
return { 'ok', count }
