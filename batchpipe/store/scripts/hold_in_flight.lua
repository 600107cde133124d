-- Look at a page of the shards in flight of an account: those that hold nothing are given what they have taken. Those that are
-- not `created` any more leave (workers of earlier versions do not see to that).
-- KEYS: 1 inflight:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 account, 4 tokens per byte where nothing is known, 5 first rank, 6 shards at most (count)
-- -> {holds that were added (count), shards after this page (count), those that left (count)}
local now = clock(ARGV[1])
local prefix, account, first, most = ARGV[2], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
local added, left, ratios = 0, 0, {}

local function tokens_of(model, bytes)
  if not ratios[model] then
    local found = redis.call('HMGET', prefix .. 'ratio:' .. model, 'bytes', 'tokens')
    ratios[model] = found[1] and found[2] and tonumber(found[2]) / tonumber(found[1]) or tonumber(ARGV[4])
  end
  return math.max(1, math.ceil(bytes * ratios[model]))
end

for _, member in ipairs(redis.call('ZRANGE', KEYS[1], first, first + most - 1)) do
  local id, index = string.match(member, '^(.*)/(%d+)$')
  local rec = prefix .. 'shard:' .. (id or '') .. ':' .. (index or '')
  local found = redis.pcall('HMGET', rec, 'stage', 'status', 'landing', 'model', 'bytes', 'needs')
  if found.err then found = { 'unreadable' } end -- it hides no other
  local ended = FINAL[found[2]] and found[2] ~= 'failed'
  if found[1] == 'created' and not ended and found[3] ~= '1' and not is_in(prefix, account, member) then
    local model = model_key(found[4])
    local needs = decoded(found[6]) or {}
    local tokens = tonumber(needs.tokens) or tokens_of(model, tonumber(found[5] or '0'))
    for kind, amount in pairs({ tokens = tokens, batches = 1 }) do
      local room = room_of(prefix, account, kind, model, member)
      hold(room, member, amount, now)
      mark_sent(room, member)
    end
    redis.call('ZADD', prefix .. 'admitting', num(now), account)
    added = added + 1
  elseif found[1] ~= 'created' and found[1] ~= 'unreadable' then
    left = left + redis.call('ZREM', KEYS[1], member)
  end
end
return { added, math.max(0, redis.call('ZCARD', KEYS[1]) - first - most + left), left }
