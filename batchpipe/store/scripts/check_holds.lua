-- Look at the next holds of an account: those that their shards have no use for go, and sums are computed anew.
-- KEYS: 1 due, 2 clock
-- ARGV: 1 skew (s), 2 prefix, 3 account, 4 unused so long after an admission (s), 5 holds at most (count), 6 where to go on
--   (text; '': at the beginning)
-- -> {where to go on; '': that was all, holds that went (count), sums that were wrong (count)}
local now = clock(ARGV[1])
local prefix, account, most = ARGV[2], ARGV[3], tonumber(ARGV[5])
local rooms_key = prefix .. 'rooms:' .. account

local function needs_it(member)
  local id, index = string.match(member, '^(.*)/(%d+)$')
  if not id then return false end
  local rec, job = prefix .. 'shard:' .. id .. ':' .. index, prefix .. 'job:' .. id
  for _, key in ipairs({rec, job}) do -- one that cannot be read keeps its hold, and hides no other
    local kind = redis.call('TYPE', key).ok
    if kind ~= 'hash' and kind ~= 'none' then return true end
  end
  local found = redis.call('HMGET', rec, 'stage', 'status', 'intent_at', 'admitted_at', 'lease_until')
  local stage = found[1]
  if not stage or redis.call('EXISTS', job) == 0 or account_of(job) ~= account then return false end
  if stage == 'created' then return not FINAL[found[2]] or found[2] == 'failed' end
  if stage ~= 'planned' and stage ~= 'uploaded' then return false end
  if found[3] or (found[5] and tonumber(found[5]) > now) then return true end
  return found[4] and now - tonumber(found[4]) < tonumber(ARGV[4]) or false
end

-- a part of a room, a step at a time; returns where HSCAN goes on, holds looked at, and those that went
local function check_part(room, part, cursor)
  local key = prefix .. 'held:' .. room.name .. ':' .. part
  local scan = redis.call('HSCAN', key, cursor, 'COUNT', 50)
  local gone = 0
  for i = 1, #scan[2], 2 do
    if not needs_it(scan[2][i]) then
      if not let_go(room, scan[2][i]) then redis.call('HDEL', key, scan[2][i]) end -- else it is in a part of others
      gone = gone + 1
    end
  end
  return scan[1], #scan[2] / 2, gone
end

-- what a part adds to the sums of its room
local function add_anew(room, part)
  local sum, sent = 0, 0
  for _, text in ipairs(redis.call('HVALS', prefix .. 'held:' .. room.name .. ':' .. part)) do
    local amount, level = parse_hold(text)
    sum, sent = sum + amount, sent + (level and amount or 0)
  end
  local known = redis.call('HMGET', room.key, 'sum' .. part, 'sent' .. part)
  sum, sent = sum - tonumber(known[1] or '0'), sent - tonumber(known[2] or '0')
  add_up(room, part, sum, sent)
  return (sum ~= 0 or sent ~= 0) and 1 or 0
end

-- the sum of a room is that of its parts
local function add_parts(room)
  local names = {}
  for part = 0, PARTS - 1 do
    table.insert(names, 'sum' .. part)
    table.insert(names, 'sent' .. part)
  end
  local found, sum, sent = redis.call('HMGET', room.key, unpack(names)), 0, 0
  for i = 1, #found, 2 do sum, sent = sum + tonumber(found[i] or '0'), sent + tonumber(found[i + 1] or '0') end
  local wrong = sum ~= room.sum or sent ~= room.sent
  if wrong then redis.call('HSET', room.key, 'sum', string.format('%.0f', sum), 'sent', string.format('%.0f', sent)) end
  room.sum, room.sent = sum, sent
  return wrong and 1 or 0
end

local short, part, cursor = string.match(ARGV[6], '^(.*) (%d+) (%d+)$')
local looked, gone, wrong = 0, 0, 0
part, cursor = tonumber(part or '0'), cursor or '0'
-- rooms by name, whatever their order is by then
local names = redis.call('ZRANGE', rooms_key, 0, 999)
table.sort(names)
for _, name in ipairs(names) do
  local kind, model = string.match(name, '^(%a+):?(.*)$')
  if (not short or name >= short) and not SPAN[kind] then
    if name ~= short then part, cursor = 0, '0' end
    local room = room_of(prefix, account, kind, model)
    while part < PARTS do
      local count, went
      cursor, count, went = check_part(room, part, cursor)
      looked, gone = looked + count + 1, gone + went
      if cursor == '0' then
        wrong = wrong + add_anew(room, part)
        part = part + 1
      end
      if looked >= most and part < PARTS then return { name .. ' ' .. part .. ' ' .. cursor, gone, wrong } end
    end
    wrong = wrong + add_parts(room)
    short = nil
  end
end
admission.tidy(prefix, account, now)
return { '', gone, wrong }
