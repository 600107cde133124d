-- The runs of a schedule up to a time are handled; two processes at once never move the mark back.
-- KEYS: 1 schedules, 2 clock
-- ARGV: 1 skew (s), 2 name, 3 fingerprint, 4 handled (at; '': it stays), 5 time of the last run (at; '': none), 6 that run
--   (JSON {..}; '': none)
-- -> {}
local mine, at = ARGV[2] .. '/' .. ARGV[3], ARGV[2] .. '//at'
local mark, run = tonumber(get(KEYS[1], mine) or '0'), tonumber(ARGV[5])
local handled = tonumber(ARGV[4])
if handled and handled > mark then redis.call('HSET', KEYS[1], mine, ARGV[4]) end
-- trouble does not overwrite a run that another process has handled since
if run and run >= tonumber(get(KEYS[1], at) or '0') and (handled or run > mark) then
  redis.call('HSET', KEYS[1], at, ARGV[5], ARGV[2] .. '//last', ARGV[6])
end
return {}
