-- Note why a record makes no progress. Needs no lease: whoever notes it could not take one.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 fields
-- -> {}
local stage = get(KEYS[1], 'stage')
if stage and stage ~= 'collected' and not ENDED[stage] then write(KEYS[1], 2) end
return {}
