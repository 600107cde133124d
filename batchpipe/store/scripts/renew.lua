-- Keep a lease.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 member, 3 token, 4 lease (s), 5 until its deadline (s) if its holder made progress, else 0
-- -> {'ok', what the lease lasts from now on (s), republish, cancel} | {'lost'}
local now = clock(ARGV[1])
if not holds(KEYS[1], ARGV[3], now) then return { 'lost' } end
local last = math.max(tonumber(get(KEYS[1], 'lease_end')), now + tonumber(ARGV[5]))
if tonumber(ARGV[5]) == 0 then last = tonumber(get(KEYS[1], 'lease_end')) end
redis.call('HSET', KEYS[1], 'lease_end', num(last))
local ends = math.min(now + tonumber(ARGV[4]), last)
redis.call('HSET', KEYS[1], 'lease_until', num(ends))
redis.call('ZADD', KEYS[3], num(ends), ARGV[2])
return { 'ok', num(ends - now), flag(KEYS[1], 'republish'), flag(KEYS[2], 'cancel') }
