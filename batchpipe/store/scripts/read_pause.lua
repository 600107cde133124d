-- The pause of an account. Reads only.
-- KEYS: 1 pause:ACCOUNT, 2 clock
-- ARGV: 1 skew (s)
-- -> {} there is none | {left of it (s), code, message}
local found = redis.call('HMGET', KEYS[1], 'until', 'code', 'message', 'seconds')
if found[1] == false then return {} end
local left = math.min(tonumber(found[1]) - clock(ARGV[1], true), tonumber(found[4]))
if left <= 0 then return {} end
return { num(left), found[2] or '', found[3] or '' }
