-- The pause of an account. Reads only.
-- KEYS: 1 pause:ACCOUNT, 2 clock
-- ARGV: 1 skew (s)
-- -> {} there is none | {left of it (s), code, message}
return { pause_of(KEYS[1], function() return clock(ARGV[1], true) end) }
