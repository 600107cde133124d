-- The limit of a model's tokens that refusals have taught, for how large a shard may be. Reads only.
-- KEYS: 1 rooms:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 account, 4 model ('': none)
-- -> {tokens (count)} | {} none was learned
local now = clock(ARGV[1], true)
local room = room_of(ARGV[2], ARGV[3], 'tokens', model_key(ARGV[4]))
if not (room.learned or room.said) or now - (room.learned_at or 0) > FORGET_SECONDS then return {} end
-- What was not said may be no more than what others had left: a job must not be cut to dust for that.
return { string.format('%.0f', room.said or math.max(room.learned, LEAST_LEARNED)) }
