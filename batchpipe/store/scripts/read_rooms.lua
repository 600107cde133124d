-- All rooms of an account as they are, 300 at most. Reads only.
-- KEYS: 1 rooms:ACCOUNT, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 account
-- -> {a list for each: name, value ..; all text}
local now = clock(ARGV[1], true)
local prefix, account, answer, all = ARGV[2], ARGV[3], {}, 0
local waiting = {}
reading = true
for _, model in ipairs(redis.call('ZRANGE', prefix .. 'lines:' .. account, 0, 299)) do
  waiting[model] = tonumber(get(prefix .. 'fair:' .. account .. ':' .. model, 'waiting') or '0')
  all = all + waiting[model]
end
local function text(number)
  return number and string.format('%.0f', number) or ''
end
for _, short in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, 299)) do
  local kind, model = string.match(short, '^(%a+):?(.*)$')
  if BY_MODEL[kind] or SPAN[kind] or kind == 'batches' then
    local room = room_of(prefix, account, kind, model)
    local learned, holders = room.learned or room.said, 0
    if now - (room.learned_at or 0) > FORGET_SECONDS then learned = nil end
    for part = 0, SPAN[kind] and -1 or PARTS - 1 do
      holders = holders + redis.call('HLEN', prefix .. 'held:' .. room.name .. ':' .. part)
    end
    local sum = SPAN[kind] and used(room, now) or room.sum
    table.insert(answer, {
      'kind', kind, 'model', BY_MODEL[kind] and get(room.key, 'model') or '', 'held', text(sum), 'sent', text(room.sent),
      'limit', text(lower(room.limit, learned)), 'configured', text(room.limit), 'learned', text(learned),
      'holders', text(holders), 'waiting', text(BY_MODEL[kind] and (waiting[model] or 0) or all),
    })
  end
end
return answer
