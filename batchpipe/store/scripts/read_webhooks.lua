-- What is known about the webhooks of an account. Writes nothing.
-- KEYS: 1 webhooks:ACCOUNT, 2 clock
-- ARGV: 1 skew (s)
-- -> {seen (at), ours (at), trusted (1 or 0)}; '' for never. trusted: they come, so that looks may be seldom
local now = clock(ARGV[1], true)
local found = redis.call('HMGET', KEYS[1], 'seen', 'ours', 'silent_at')
return { found[1] or '', found[2] or '', trusts(found[2], found[3], now) and 1 or 0 }
