-- Read a schedule's mark, the time up to which its runs are handled, and note that somebody did. A definition (crontab and
-- time zone) that is seen for the first time has handled all before now.
-- KEYS: 1 schedules, 2 clock
-- ARGV: 1 skew (s), 2 name, 3 fingerprint of the definition
-- -> {now (at), handled (at)}
local now = clock(ARGV[1])
local mine = ARGV[2] .. '/' .. ARGV[3]
redis.call('HSETNX', KEYS[1], mine, num(now))
redis.call('HSET', KEYS[1], mine .. '/looked', num(now))
-- during a deploy hosts with two definitions may take turns, so another one is removed only when no host has looked at it
-- for an hour; one that came back after a month would find a month of missed runs
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local name, print = string.match(all[i], '^([^/]+)/([^/]+)/looked$')
  if name == ARGV[2] and print ~= ARGV[3] and tonumber(all[i + 1]) < now - 3600 then
    redis.call('HDEL', KEYS[1], all[i], name .. '/' .. print)
  end
end
return { num(now), get(KEYS[1], mine) }
