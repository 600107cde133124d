-- Rooms, prepended to every script after common.lua: who holds room at the provider.
--
-- A room is one resource: what is held of it, and its limit. A line (lines.lua) is the queue of one account and model: its
-- jobs by their turn, and each job's waiting shards.

-- What a shard may need, in the order in which that is named to people. `span` (s): it is counted within that time, and
-- not held; else it is held until the batch has ended.
local KINDS = { 'tokens', 'batches', 'creations', 'uploads' }
local BY_MODEL = { tokens = true }
local SPAN = { creations = 3600, uploads = 60 }
-- All shards need as much of it: where the first does not fit, none does.
local SAME = { batches = true, creations = true, uploads = true }

local PARTS, SLOTS = 32, 60
local KEPT = 172800
-- Turns in a line: virtual time (thousands of tokens) below STEP, and STEP less for each step of priority.
local STEP, MOST_PRIORITY, RAISE_SECONDS = 1e12, 1000, 3600
-- Behind the first that does not fit so many are looked at, and go before it so often or so long.
local BEHIND, PASSES, PASS_SECONDS = 20, 10, 600
-- Learned limits: pauses between shards that try for more, and after refusals while nothing else was held.
local TRY_SECONDS, LONGEST_TRY, FORGET_SECONDS = 600, 21600, 86400
local FIRST_RETRY, LONGEST_RETRY = 5, 600
-- No account has a smaller queue, in tokens.
local LEAST_LEARNED = 1e5
-- The most that was there at once is remembered for so long.
local PEAK_SECONDS = 3600
-- After a refusal for a rate.
local PACED_SECONDS, CATCH_UP_SECONDS = 3600, 5
-- Where no limit is known, so many tokens, or shards like the first, go at once; twice as much after each START_SECONDS.
local START_TOKENS, START_SHARDS, START_SECONDS = 1e6, 16, 60
local RAISED_AT_ONCE, LINES_AT_ONCE, DROPPED_AT_ONCE, GRANTS_AT_ONCE = 50, 16, 100, 20

local function checksum(text, factor)
  local sum = 0
  for i = 1, #text do sum = (sum * factor + string.byte(text, i)) % 4294967291 end
  return sum
end

-- a model's name without the date of its version: versions share one limit
local function without_date(model)
  return (string.gsub(model, '%-%d%d%d%d%-%d%d%-%d%d$', ''))
end

local function model_key(model)
  if not model or model == '' then return '-' end
  model = without_date(model)
  if model ~= '-' and #model <= 64 and string.find(model, '^[%w._-]+$') then return model end
  return string.format('~%08x%08x', checksum(model, 31), checksum(model, 131071))
end

local function account_of(job)
  return get(job, 'account') or 'default'
end

local function part_of(member)
  return checksum(member, 31) % PARTS
end

local ROOM_FIELDS = {
  'sum', 'sent', 'limit', 'learned', 'said', 'learned_at', 'try_at', 'try_wait', 'fails', 'retry_at', 'start', 'start_at', 'noted_at',
  'peak', 'peak_at',
}
local read_rooms = {}
-- set by scripts that only read
local reading = false

local function short_name(kind, model)
  return BY_MODEL[kind] and kind .. ':' .. model or kind
end

-- One resource as it is, and as this script has changed it. `member`: of whom something is to be held or let go; the sums of
-- its part are read with the rest.
local function room_of(prefix, account, kind, model, member)
  local short = short_name(kind, model)
  local name = account .. ':' .. short
  if read_rooms[name] then return read_rooms[name] end
  local room = { prefix = prefix, account = account, kind = kind, short = short, name = name, key = prefix .. 'room:' .. name }
  local fields = { 'single', 'alone', 'trying', 'model', unpack(ROOM_FIELDS) }
  if member then
    local part = part_of(member)
    table.insert(fields, 'sum' .. part)
    table.insert(fields, 'sent' .. part)
  end
  learn(room.key, fields)
  local found = redis.call('HMGET', room.key, unpack(fields))
  for i, field in ipairs(ROOM_FIELDS) do room[field] = tonumber(found[i + 4] or '') end
  room.single, room.alone, room.trying, room.named = found[1] == '1', found[2], found[3], found[4] ~= false
  room.sum, room.sent, room.fails = room.sum or 0, room.sent or 0, room.fails or 0
  read_rooms[name] = room
  return room
end

local function set_room(room, ...)
  local fields = { ... }
  for i = 1, #fields, 2 do
    room[fields[i]] = tonumber(fields[i + 1])
    if not reading then redis.call('HSET', room.key, fields[i], fields[i + 1]) end
  end
end

local function forget(room, ...)
  for _, field in ipairs({ ... }) do room[field] = nil end
  if not reading then redis.call('HDEL', room.key, ...) end
end

local function held_key(prefix, account, kind, model, member)
  local part = part_of(member)
  return prefix .. 'held:' .. account .. ':' .. short_name(kind, model) .. ':' .. part, part
end

local function held_in(room, member)
  local part = part_of(member)
  return room.prefix .. 'held:' .. room.name .. ':' .. part, part
end

local function add_up(room, part, sum, sent)
  room.sum, room.sent = room.sum + sum, room.sent + sent
  if sum ~= 0 then
    redis.call('HINCRBY', room.key, 'sum', sum)
    redis.call('HINCRBY', room.key, 'sum' .. part, sum)
  end
  if sent ~= 0 then
    redis.call('HINCRBY', room.key, 'sent', sent)
    redis.call('HINCRBY', room.key, 'sent' .. part, sent)
  end
end

-- what a member holds: the amount; and, once a call was made, what was at the provider with it
local function parse_hold(text)
  local amount, level = string.match(text, '^(%d+)%+?(%d*)$')
  return tonumber(amount or '0'), tonumber(level or '')
end

-- That a room is used is noted once in so many seconds; what nobody has used for KEPT goes (`admission.tidy`).
local NOTED = 600

local function note_use(room, now)
  if room.noted_at and now >= room.noted_at and now - room.noted_at < NOTED then return end
  set_room(room, 'noted_at', num(now))
  redis.call('ZADD', room.prefix .. 'rooms:' .. room.account, num(now), room.short)
  redis.call('ZADD', room.prefix .. 'admitting', num(now), room.account)
end

local function hold(room, member, amount, now)
  local key, part = held_in(room, member)
  if redis.call('HSETNX', key, member, string.format('%.0f', amount)) == 0 then return end
  note_use(room, now)
  add_up(room, part, amount, 0)
end

-- a call is about to be made for what is held
local function mark_sent(room, member, now)
  local key, part = held_in(room, member)
  local text = redis.call('HGET', key, member)
  if not text then return end
  local amount, level = parse_hold(text)
  if level then return end
  add_up(room, part, 0, amount)
  redis.call('HSET', key, member, string.format('%.0f+%.0f', amount, room.sent))
  if room.sent >= (room.peak or 0) or now - (room.peak_at or 0) > PEAK_SECONDS then
    set_room(room, 'peak', string.format('%.0f', room.sent), 'peak_at', num(now))
  end
end

-- returns what it held (nil: nothing), and what was at the provider with it when it was sent
local function let_go(room, member)
  local key, part = held_in(room, member)
  local text = redis.call('HGET', key, member)
  if not text then return nil end
  redis.call('HDEL', key, member)
  local amount, level = parse_hold(text)
  add_up(room, part, -amount, level and -amount or 0)
  return amount, level
end

-- how much was used within the span
local function used(room, now)
  if room.used then return room.used end
  local key, slot = room.prefix .. 'used:' .. room.name, math.floor(now / (SPAN[room.kind] / SLOTS))
  local flat, sum = redis.call('HGETALL', key), 0
  for i = 1, #flat, 2 do
    if tonumber(flat[i]) >= slot - SLOTS then
      sum = sum + tonumber(flat[i + 1])
    elseif not reading then
      redis.call('HDEL', key, flat[i])
    end
  end
  room.used = sum
  return sum
end

local function use(room, amount, now)
  local key, slot = room.prefix .. 'used:' .. room.name, math.floor(now / (SPAN[room.kind] / SLOTS))
  local first = redis.call('HINCRBY', key, slot, amount) == amount
  if first then redis.call('EXPIRE', key, math.ceil(SPAN[room.kind] * 1.1)) end
  if room.used then
    room.used = room.used + amount
  elseif first then
    used(room, now) -- slots of the time before go
  end
  note_use(room, now)
end

-- What refusals have taught is forgotten after a day without one. What was proven to fit goes at once, more bit by bit.
local function forget_old(room, now)
  if not (room.learned or room.said) or now - (room.learned_at or 0) <= FORGET_SECONDS then return end
  if room.learned then set_room(room, 'start', string.format('%.0f', room.learned), 'start_at', num(now)) end
  forget(room, 'learned', 'learned_at', 'said', 'try_at', 'try_wait', 'trying', 'fails', 'retry_at', 'single', 'alone')
  room.fails = 0
end

local function lower(a, b)
  if a and b then return math.min(a, b) end
  return a or b
end

-- What the settings say, and what refusals have taught: by what came of them, else by their words.
local function limit_of(room)
  return lower(room.limit, room.learned or room.said)
end

-- Where no limit is known: whether it is not too much at once. A queue that is full is learned of minutes after the call, and
-- until then every further call would be refused, too.
local function may_start(room, amount, now)
  if not BY_MODEL[room.kind] then return true end
  local start = math.max(room.start or START_TOKENS, START_SHARDS * amount)
  if room.sum + amount <= start then return true end
  if not room.start_at then
    set_room(room, 'start', string.format('%.0f', start), 'start_at', num(now))
  elseif now - room.start_at >= START_SECONDS then
    set_room(room, 'start', string.format('%.0f', 2 * start), 'start_at', num(now))
    return room.sum + amount <= 2 * start
  end
  return false
end

-- After a call was refused as one too many, those who wait are not let in all at once: seconds between two of them, by the rate
-- that was said, else one a second for an hour. nil: no call was refused lately.
local function pace_of(room, now)
  if not SPAN[room.kind] then return nil end
  if room.learned then return SPAN[room.kind] / room.learned end
  return room.retry_at and now - room.retry_at < PACED_SECONDS and 1 or nil
end

-- one was let in; who is late for it, for grants come with sweeps, may catch up on a few seconds
local function keep_pace(room, now)
  local pace = pace_of(room, now)
  if pace then set_room(room, 'try_at', num(math.max(room.try_at or 0, now - CATCH_UP_SECONDS) + pace)) end
end

-- whether so much fits; second: as one that tries for more than the learned limit
local function fits(room, amount, now)
  forget_old(room, now)
  local limit = limit_of(room)
  if room.retry_at and now < room.retry_at then return false end
  if SPAN[room.kind] then
    if pace_of(room, now) and now < (room.try_at or 0) then return false end
    return not limit or used(room, now) + amount <= limit
  end
  if room.sum <= 0 then return true end -- whoever is too large for it goes alone
  local then_held = room.sum + amount
  if not limit then return may_start(room, amount, now) end
  if then_held <= limit then return true end
  local most = lower(room.limit, room.said)
  if room.learned and now >= (room.try_at or 0) and (not most or then_held <= most) then return true, true end
  return false
end

-- One goes beyond the learned limit. That the one before it did, and was not refused, raises the limit.
local function try_more(room, member, now)
  if room.trying then
    local raised = math.max(math.ceil(room.learned * 1.05), room.sum)
    set_room(room, 'learned', string.format('%.0f', lower(lower(raised, room.said), room.limit)), 'try_wait', TRY_SECONDS)
  end
  room.trying = member
  redis.call('HSET', room.key, 'trying', member)
  set_room(room, 'try_at', num(now + (room.try_wait or TRY_SECONDS)))
end

-- After a refusal with nothing else held one goes at a time. If the one before it was not refused, all is well.
local function after_fails(room, now)
  if room.single then
    forget(room, 'fails', 'retry_at', 'single')
    room.fails = 0
    return
  end
  room.single = true
  redis.call('HSET', room.key, 'single', '1')
  set_room(room, 'retry_at', num(now + math.min(FIRST_RETRY * 2 ^ math.min(room.fails, 20), LONGEST_RETRY)))
end
