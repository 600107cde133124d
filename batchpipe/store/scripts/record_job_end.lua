-- Fix a job's end. The cancel flag wins. The lease stays: the holder goes on to notify receivers, and the job stays due.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 token, 5 state, 6 what its event says besides the state (JSON {..}), 7 fields
-- -> {'ok', state that it became, the job's hash} | {'lost'}
local now = clock(ARGV[1])
if not holds(KEYS[1], ARGV[4], now) then return { 'lost' } end
local stage = get(KEYS[1], 'stage')
if ENDED[stage] then return { 'ok', stage, redis.call('HGETALL', KEYS[1]) } end
write(KEYS[1], 7)
local state = ARGV[5]
if flag(KEYS[1], 'cancel') == 1 then state = 'cancelled' end
set_state(KEYS[1], ARGV[2], ARGV[3], state, now)
redis.call('HSET', KEYS[1], 'ended_at', num(now))
redis.call('HDEL', KEYS[1], 'trouble')
local said = '{"state":"' .. state .. '"' .. (ARGV[6] == '{}' and '}' or ',' .. string.sub(ARGV[6], 2))
redis.pcall('XADD', ARGV[2] .. 'log:' .. ARGV[3], 'MAXLEN', '~', '2000', '*', 'event', 'ended', 'data', said) -- for people
return { 'ok', state, redis.call('HGETALL', KEYS[1]) }
