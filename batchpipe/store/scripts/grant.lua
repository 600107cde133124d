-- Grant what is free in an account to those who wait: spans go by, pauses end, limits change.
-- KEYS: 1 due, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 account, 4 grants at most (count)
-- -> {member of each, which is due now ..}
local now = clock(ARGV[1])
return admission.grant(ARGV[2], ARGV[3], now, tonumber(ARGV[4]))
