-- Note why a record makes no progress. Needs no lease: the caller could not get it. ARGV: skew, fields...   -> {}
local stage = get(KEYS[1], 'stage')
if stage and stage ~= 'collected' and not ENDED[stage] then write(KEYS[1], 2) end
return {}
