-- Write fields under a living lease and keep it.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 token, 3 fields
-- -> {'ok', republish, cancel} | {'lost'}
local now = clock(ARGV[1])
if not holds(KEYS[1], ARGV[2], now) then return { 'lost' } end
write(KEYS[1], 3)
return { 'ok', flag(KEYS[1], 'republish'), flag(KEYS[2], 'cancel') }
