-- Write fields under a living lease and keep it. ARGV: skew, token, fields...   -> {'ok', wake, cancel} | {'lost'}
local now = clock(ARGV[1])
if not holds(KEYS[1], ARGV[2], now) then return { 'lost' } end
write(KEYS[1], 3)
return { 'ok', flag(KEYS[1], 'wake'), flag(KEYS[2], 'cancel') }
