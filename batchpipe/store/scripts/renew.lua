-- Keep a lease. ARGV: skew, member, token, lease   -> {'ok', seconds, wake, cancel} | {'lost'}
local now = clock(ARGV[1])
if not holds(KEYS[1], ARGV[3], now) then return { 'lost' } end
local ends = math.min(now + tonumber(ARGV[4]), tonumber(get(KEYS[1], 'lease_end')))
redis.call('HSET', KEYS[1], 'lease_until', num(ends))
redis.call('ZADD', KEYS[3], num(ends), ARGV[2])
return { 'ok', num(ends - now), flag(KEYS[1], 'wake'), flag(KEYS[2], 'cancel') }
