-- Note why a record does not get on. Needs no lease: it is said by who could not take it.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 fields
-- -> {}
local stage = get(KEYS[1], 'stage')
if stage and stage ~= 'collected' and not ENDED[stage] then write(KEYS[1], 2) end
return {}
