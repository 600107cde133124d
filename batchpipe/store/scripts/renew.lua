-- Keep a lease. ARGV: skew, member, token, lease, seconds until its deadline if its holder has made progress, else 0
-- -> {'ok', seconds, wake, cancel} | {'lost'}
local now = clock(ARGV[1])
if not holds(KEYS[1], ARGV[3], now) then return { 'lost' } end
local last = math.max(tonumber(get(KEYS[1], 'lease_end')), now + tonumber(ARGV[5]))
if tonumber(ARGV[5]) == 0 then last = tonumber(get(KEYS[1], 'lease_end')) end
redis.call('HSET', KEYS[1], 'lease_end', num(last))
local ends = math.min(now + tonumber(ARGV[4]), last)
redis.call('HSET', KEYS[1], 'lease_until', num(ends))
redis.call('ZADD', KEYS[3], num(ends), ARGV[2])
return { 'ok', num(ends - now), flag(KEYS[1], 'wake'), flag(KEYS[2], 'cancel') }
