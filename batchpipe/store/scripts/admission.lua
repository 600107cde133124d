-- Admission, prepended to every script after common.lua: who holds room at the provider, and who waits for it in which order.
--
-- A room is one resource: what is held of it, and its limit. A line is the queue of one account and model: its jobs by their
-- turn, and each job's waiting shards. Who is granted room is due at once, in the same script, so nobody has to be told.

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
-- See model/admission.py.
local RATIO_MARGIN = 1.05
-- Where no limit is known, so many tokens, or shards like the first, go at once; twice as much after each START_SECONDS.
local START_TOKENS, START_SHARDS, START_SECONDS = 1e6, 16, 60
local RAISED_AT_ONCE, LINES_AT_ONCE, DROPPED_AT_ONCE = 50, 16, 100

local function checksum(text, factor)
  local sum = 0
  for i = 1, #text do sum = (sum * factor + string.byte(text, i)) % 4294967291 end
  return sum
end

local function model_key(model)
  if not model or model == '' then return '-' end
  if model ~= '-' and #model <= 64 and string.find(model, '^[%w._-]+$') then return model end
  return string.format('~%08x%08x', checksum(model, 31), checksum(model, 131071))
end

local function account_of(job)
  return get(job, 'account') or 'default'
end

local function part_of(member)
  return checksum(member, 31) % PARTS
end

-- -- rooms ------------------------------------------------------------------------------------------------------------

local ROOM_FIELDS = { 'sum', 'sent', 'limit', 'learned', 'said', 'learned_at', 'try_at', 'try_wait', 'fails', 'retry_at', 'start', 'start_at' }
local read_rooms = {}
-- set by scripts that only read
local reading = false

-- one resource as it is, and as this script has changed it
local function room_of(prefix, account, kind, model)
  local short = BY_MODEL[kind] and kind .. ':' .. model or kind
  local name = account .. ':' .. short
  if read_rooms[name] then return read_rooms[name] end
  local room = { prefix = prefix, account = account, kind = kind, short = short, name = name, key = prefix .. 'room:' .. name }
  local found = redis.call('HMGET', room.key, unpack(ROOM_FIELDS))
  for i, field in ipairs(ROOM_FIELDS) do room[field] = tonumber(found[i] or '') end
  local flags = redis.call('HMGET', room.key, 'single', 'alone', 'trying')
  room.single, room.alone, room.trying = flags[1] == '1', flags[2], flags[3]
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

local function held_key(room, member)
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

-- once a script
local function note_use(room, now)
  if room.noted then return end
  room.noted = true
  redis.call('ZADD', room.prefix .. 'rooms:' .. room.account, num(now), room.short)
end

local function hold(room, member, amount, now)
  local key, part = held_key(room, member)
  if redis.call('HSETNX', key, member, string.format('%.0f', amount)) == 0 then return end
  if not room.noted then redis.call('PERSIST', room.key) end
  note_use(room, now)
  add_up(room, part, amount, 0)
end

-- a call is about to be made for what is held
local function mark_sent(room, member)
  local key, part = held_key(room, member)
  local text = redis.call('HGET', key, member)
  if not text then return end
  local amount, level = parse_hold(text)
  if level then return end
  add_up(room, part, 0, amount)
  redis.call('HSET', key, member, string.format('%.0f+%.0f', amount, room.sent))
end

-- returns what it held (nil: nothing), and what was at the provider with it when it was sent
local function let_go(room, member)
  local key, part = held_key(room, member)
  local text = redis.call('HGET', key, member)
  if not text then return nil end
  redis.call('HDEL', key, member)
  local amount, level = parse_hold(text)
  add_up(room, part, -amount, level and -amount or 0)
  room.noted = false
  if room.sum <= 0 then redis.call('EXPIRE', room.key, KEPT) end
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
  room.used = used(room, now) + amount
  redis.call('HINCRBY', key, slot, amount)
  if room.noted then return end
  redis.call('EXPIRE', key, math.ceil(SPAN[room.kind] * 1.1))
  redis.call('EXPIRE', room.key, KEPT)
  note_use(room, now)
end

-- What refusals have taught is forgotten after a day without one. What was proven to fit goes at once, more bit by bit.
local function forget_old(room, now)
  if not room.learned or now - (room.learned_at or 0) <= FORGET_SECONDS then return end
  set_room(room, 'start', string.format('%.0f', room.learned), 'start_at', num(now))
  forget(room, 'learned', 'learned_at', 'said', 'try_at', 'try_wait', 'trying', 'fails', 'retry_at', 'single', 'alone')
  room.fails = 0
end

local function lower(a, b)
  if a and b then return math.min(a, b) end
  return a or b
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

-- whether so much fits; second: as one that tries for more than the learned limit
local function fits(room, amount, now)
  forget_old(room, now)
  local limit = lower(room.limit, room.learned)
  if SPAN[room.kind] then return not limit or used(room, now) + amount <= limit end
  if room.retry_at and now < room.retry_at then return false end
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
    local raised = math.max(room.learned * 1.05, room.sum)
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

-- -- lines ------------------------------------------------------------------------------------------------------------

local function line_of(prefix, account, model)
  local name = account .. ':' .. model
  return {
    prefix = prefix,
    account = account,
    model = model,
    name = name,
    jobs = prefix .. 'line:' .. name,
    raise = prefix .. 'raise:' .. name,
    served = prefix .. 'served:' .. name,
    fair = prefix .. 'fair:' .. name,
  }
end

local function shards_key(line, id)
  return line.prefix .. 'shards:' .. line.name .. ':' .. id
end

-- priority and virtual time of a job in a line
local function parse_turn(score)
  local priority = -math.floor(score / STEP)
  return priority, score + priority * STEP
end

local function turn(priority, time)
  return string.format('%.4f', math.max(0, math.min(time, STEP - 1)) - priority * STEP)
end

local function priority_of(line, id)
  local found = tonumber(get(line.prefix .. 'job:' .. id, 'priority') or '') or 0
  return math.max(-MOST_PRIORITY, math.min(MOST_PRIORITY, math.floor(found)))
end

local function line_time(line)
  return tonumber(get(line.fair, 'now') or '0')
end

local function count_waiting(line, by)
  if redis.call('HINCRBY', line.fair, 'waiting', by) <= 0 then redis.call('HSET', line.fair, 'waiting', '0') end
end

-- Nobody waits any more: what the line remembers of turns has no meaning.
local function close(line)
  redis.call('ZREM', line.prefix .. 'lines:' .. line.account, line.model)
  redis.call('UNLINK', line.raise, line.served, line.fair)
end

local function drop_job(line, id)
  local key = shards_key(line, id)
  count_waiting(line, -redis.call('ZCARD', key))
  redis.call('UNLINK', key)
  redis.call('ZREM', line.jobs, id)
  redis.call('ZREM', line.raise, id)
end

-- a shard leaves the line; returns whether others of its job stay
local function drop_shard(line, id, index)
  local key = shards_key(line, id)
  if redis.call('ZREM', key, index) == 1 then count_waiting(line, -1) end
  if redis.call('EXISTS', key) == 1 then return true end
  redis.call('ZREM', line.jobs, id)
  redis.call('ZREM', line.raise, id)
  return false
end

-- a shard comes into the line, as the first of its job if it was there before; a repeat changes nothing
local function join(line, rec, id, index, now, first)
  redis.call('HSETNX', rec, 'waits_since', num(now))
  local key = shards_key(line, id)
  if redis.call('ZSCORE', key, index) then return end
  redis.call('ZADD', key, index - (first and 1e9 or 0), index)
  count_waiting(line, 1)
  if redis.call('ZSCORE', line.jobs, id) then return end
  local time = math.max(line_time(line), tonumber(redis.call('ZSCORE', line.served, id) or '0')) / 1000
  redis.call('ZREM', line.served, id)
  redis.call('ZADD', line.jobs, turn(priority_of(line, id), time), id)
  redis.call('ZADD', line.raise, num(now + RAISE_SECONDS), id)
  redis.call('ZADD', line.prefix .. 'lines:' .. line.account, 'NX', '0', line.model)
end

-- Jobs that were granted nothing for an hour go up by one step of priority.
local function raise_old(line, now)
  local old = redis.call('ZRANGEBYSCORE', line.raise, '-inf', num(now), 'LIMIT', 0, RAISED_AT_ONCE)
  for _, id in ipairs(old) do
    local score = redis.call('ZSCORE', line.jobs, id)
    if score then
      local priority, time = parse_turn(tonumber(score))
      redis.call('ZADD', line.jobs, turn(math.min(priority + 1, 2 * MOST_PRIORITY), time), id)
      redis.call('ZADD', line.raise, num(now + RAISE_SECONDS), id)
    else
      redis.call('ZREM', line.raise, id)
    end
  end
end

-- A job was served: its virtual time grows by what its shard took, that of the line by the share of each that waits.
local function charge(line, id, cost, stays, now)
  local time = line.time_of[id]
  local waiting = redis.call('ZCARD', line.jobs) + (stays and 0 or 1)
  local reached = math.max(line_time(line), time * 1000) + cost / waiting
  redis.call('HSET', line.fair, 'now', num(reached))
  if stays then
    redis.call('ZADD', line.jobs, turn(priority_of(line, id), time + cost / 1000), id)
    redis.call('ZADD', line.raise, num(now + RAISE_SECONDS), id)
  else
    redis.call('ZADD', line.served, num(time * 1000 + cost), id)
  end
  local passed = redis.call('ZRANGEBYSCORE', line.served, '-inf', num(reached), 'LIMIT', 0, RAISED_AT_ONCE)
  if #passed > 0 then redis.call('ZREM', line.served, unpack(passed)) end
end

-- -- admission ---------------------------------------------------------------------------------------------------------

-- the first kind of what a shard needs that does not fit (nil: all of it does), and the rooms in which it is one that tries
local function lacking(line, needs, now)
  local tries = {}
  for _, kind in ipairs(KINDS) do
    local amount = tonumber(needs[kind])
    if amount then
      local room = room_of(line.prefix, line.account, kind, line.model)
      local yes, as_try = fits(room, amount, now)
      if not yes then return kind end
      if as_try then tries[kind] = true end
    end
  end
  return nil, tries
end

-- give a shard all that it needs
local function take(line, rec, member, needs, tries, now)
  for _, kind in ipairs(KINDS) do
    local amount = tonumber(needs[kind])
    if amount then
      local room = room_of(line.prefix, line.account, kind, line.model)
      if tries[kind] then try_more(room, member, now) end
      if room.fails > 0 then after_fails(room, now) end
      if SPAN[kind] then use(room, amount, now) else hold(room, member, amount, now) end
    end
  end
  redis.call('HSET', rec, 'admitted_at', num(now), 'needs', cjson.encode(needs))
  redis.call('HDEL', rec, 'waits_since')
end

-- whether a shard holds what is held until its batch ends
local function is_in(prefix, account, member)
  local key = held_key(room_of(prefix, account, 'batches', ''), member)
  return redis.call('HEXISTS', key, member) == 1
end

local function is_paused(prefix, account, now)
  local ends = get(prefix .. 'pause:' .. account, 'until')
  return ends ~= nil and tonumber(ends) > now
end

-- why a job's shards may not be sent now, if so: they leave the line, and ask again when they come round
local function is_out(job)
  local found = redis.call('HMGET', job, 'stage', 'cancel', 'hold_at', 'send_no_more')
  if not found[1] or ENDED[found[1]] then return 'ended' end
  if found[2] == '1' then return 'ended' end
  if found[3] or found[4] == '1' then return 'hold' end
  return nil
end

-- who was granted something is due now; a living turn of it learns of it at its end
local function wake(prefix, rec, member, now)
  if leased(rec, now) then
    redis.call('HSET', rec, 'republish', '1')
    return
  end
  redis.call('HSET', rec, 'next_at', num(now), 'wait', '0')
  redis.call('ZADD', prefix .. 'due', num(now), member)
end

-- what a waiting shard needs; nil: it waits no more. Its tokens by what is known of its model now: it may have waited for hours
-- since its own estimate, which was the first of its model
local function waiting_needs(line, rec)
  local found = redis.call('HMGET', rec, 'stage', 'waits_since', 'needs', 'bytes')
  if not (found[1] == 'planned' or found[1] == 'uploaded') or not found[2] or not found[3] then return nil end
  local needs, bytes = cjson.decode(found[3]), tonumber(found[4] or '')
  if not line.ratio then
    local known = redis.call('HMGET', line.prefix .. 'ratio:' .. line.model, 'bytes', 'tokens')
    line.ratio = known[1] and known[2] and tonumber(known[2]) / tonumber(known[1]) or 0
  end
  if needs.tokens and bytes and line.ratio > 0 then needs.tokens = math.max(math.ceil(bytes * line.ratio * RATIO_MARGIN), 1) end
  return needs
end

-- the first does not fit: whether others may still go before it
local function may_pass(line, member, kind, needs, now)
  local known = redis.call('HMGET', line.fair, 'head', 'since', 'passed')
  if known[1] ~= member then
    redis.call('HSET', line.fair, 'head', member, 'blocked', kind, 'since', num(now), 'passed', '0')
    known = { member, num(now), '0' }
  else
    redis.call('HSET', line.fair, 'blocked', kind)
  end
  if SAME[kind] then return false end
  local room = room_of(line.prefix, line.account, kind, line.model)
  if room.retry_at and now < room.retry_at then return false end
  if room.alone == member then return true end -- it is too large, whatever the others do
  return tonumber(known[3] or '0') < PASSES and now - tonumber(known[2] or now) < PASS_SECONDS
end

-- Grant room to one shard of a line: the first that fits. Returns its member, if there is one. `own`: this one is running,
-- and is not woken.
local function grant_one(line, now, own)
  local jobs, looked, dropped, first = redis.call('ZRANGE', line.jobs, 0, BEHIND, 'WITHSCORES'), 0, 0, nil
  line.time_of = {}
  local at = 1
  local function look(id, index)
    local member, rec = id .. '/' .. index, line.prefix .. 'shard:' .. id .. ':' .. index
    local needs = waiting_needs(line, rec)
    if not needs then
      drop_shard(line, id, index)
      dropped = dropped + 1
      return 'dropped'
    end
    looked = looked + 1
    local kind, tries = lacking(line, needs, now)
    if kind then
      if first then return 'next' end
      first = { id = id, index = index }
      return may_pass(line, member, kind, needs, now) and 'next' or 'stop'
    end
    if first then redis.call('HINCRBY', line.fair, 'passed', 1) else redis.call('HDEL', line.fair, 'head', 'blocked', 'since', 'passed') end
    take(line, rec, member, needs, tries, now)
    charge(line, id, tonumber(needs.tokens) or 1, drop_shard(line, id, index), now)
    if member ~= own then wake(line.prefix, rec, member, now) end
    return 'taken', member
  end
  while at <= #jobs and dropped < DROPPED_AT_ONCE do
    local id, verdict, member = jobs[at], nil, nil
    line.time_of[id] = select(2, parse_turn(tonumber(jobs[at + 1])))
    if is_out(line.prefix .. 'job:' .. id) then
      drop_job(line, id)
      dropped = dropped + 1
      at = at + 2
    else
      local index = redis.call('ZRANGE', shards_key(line, id), 0, 0)[1]
      if index then verdict, member = look(id, index) else drop_job(line, id) end
      if verdict == 'taken' then return member end
      if verdict == 'stop' then return nil end
      if verdict ~= 'dropped' then at = at + 2 end -- else the next shard of this job
    end
  end
  -- fewer jobs than may be looked at: the first one's further shards
  if first and looked <= BEHIND and at > #jobs then
    for _, index in ipairs(redis.call('ZRANGE', shards_key(line, first.id), 1, BEHIND + 1 - looked)) do
      local verdict, member = look(first.id, index)
      if verdict == 'taken' then return member end
    end
  end
  line.dropped = (line.dropped or 0) + dropped
  return nil, dropped > 0 and not first and line.dropped < DROPPED_AT_ONCE
end

-- Grant what is free in an account, at most so many times: by priority, then in turn over its lines. Returns the members.
function admission.grant(prefix, account, now, most, own)
  local granted, lines = {}, {}
  local models = redis.call('ZRANGE', prefix .. 'lines:' .. account, 0, LINES_AT_ONCE - 1)
  if #models == 0 or is_paused(prefix, account, now) then return granted end
  local function rank(line)
    local head = redis.call('ZRANGE', line.jobs, 0, 0, 'WITHSCORES')
    line.priority = head[2] and parse_turn(tonumber(head[2])) or -2 * MOST_PRIORITY
    local place = #lines + 1
    while place > 1 and lines[place - 1].priority < line.priority do place = place - 1 end
    table.insert(lines, place, line)
  end
  for _, model in ipairs(models) do
    local line = line_of(prefix, account, model)
    raise_old(line, now)
    rank(line)
  end
  while #granted < most and #lines > 0 do
    local line = table.remove(lines, 1)
    local member, again = grant_one(line, now, own)
    if member then
      table.insert(granted, member)
      redis.call('ZADD', prefix .. 'lines:' .. account, 'XX', num(now), line.model)
    end
    if redis.call('EXISTS', line.jobs) == 0 then
      close(line)
    elseif member or again then
      rank(line)
    end
  end
  return granted
end

-- those who were granted something by a script that answers something else
function admission.announce(prefix, members, own)
  local key = prefix .. 'granted'
  for _, member in ipairs(members) do
    if member ~= own then redis.call('RPUSH', key, member) end
  end
  if #members > 0 then redis.call('LTRIM', key, -10000, -1) end
end

-- leave the line, if it is in one
function admission.leave(prefix, rec, job, member)
  if not get(rec, 'waits_since') then return end
  local id, index = string.match(member, '^(.*)/(%d+)$')
  local line = line_of(prefix, account_of(job), model_key(get(rec, 'model')))
  drop_shard(line, id, index)
  if redis.call('EXISTS', line.jobs) == 0 then close(line) end
  redis.call('HDEL', rec, 'waits_since')
end

-- Give back what a shard holds; a repeat changes nothing. Returns whether it held something.
function admission.let_go(prefix, rec, job, member)
  local account, model, any = account_of(job), model_key(get(rec, 'model')), false
  for _, kind in ipairs(KINDS) do
    if not SPAN[kind] and let_go(room_of(prefix, account, kind, model), member) then any = true end
  end
  return any
end

-- Give it back, leave the line, and grant it to those who wait.
function admission.release(prefix, rec, job, member, now)
  admission.leave(prefix, rec, job, member)
  if admission.let_go(prefix, rec, job, member) then
    admission.announce(prefix, admission.grant(prefix, account_of(job), now, 20))
  end
end

-- A final status was recorded. Why a batch has failed is read by the shard's turn: if the provider's queue was full, what it
-- held is granted to nobody (`full`). That turn is due now, so it waits until then.
function admission.release_ended(prefix, rec, job, member, now)
  local found = redis.call('HMGET', rec, 'stage', 'status')
  if found[1] == 'created' and FINAL[found[2]] and found[2] ~= 'failed' then
    admission.release(prefix, rec, job, member, now)
  end
end

-- lower the limit of a room that has refused so much; `level`: what was there with it when it was sent
local function learn(room, member, amount, level, said, now)
  level = math.max(level or 0, amount)
  local alone = level <= amount
  if said and said >= 1 then set_room(room, 'said', string.format('%.0f', said)) else said = nil end
  if room.trying == member and room.learned then -- the limit was right
    forget(room, 'trying')
    set_room(room, 'try_wait', math.min((room.try_wait or TRY_SECONDS) * 2, LONGEST_TRY))
    set_room(room, 'learned', string.format('%.0f', lower(room.learned, said)))
  else
    local learned = said and said < level and said or math.max(0.9 * level, math.min(amount, said or amount))
    local fresh = room.learned and now - (room.learned_at or 0) <= FORGET_SECONDS
    set_room(room, 'learned', string.format('%.0f', fresh and math.min(learned, room.learned) or learned))
    forget(room, 'trying')
  end
  set_room(room, 'learned_at', num(now), 'try_at', num(now + (room.try_wait or TRY_SECONDS)))
  if not alone then return end
  redis.call('HSET', room.key, 'alone', member)
  room.alone = member
  if not (said and amount > said) then
    set_room(room, 'fails', room.fails + 1)
    forget(room, 'single')
    set_room(room, 'retry_at', num(now + math.min(FIRST_RETRY * 2 ^ math.min(room.fails, 20), LONGEST_RETRY)))
  end
end

-- The provider's queue was full (`full` of the record, which goes): the limit is lowered, the shard gives back what it holds and
-- waits as the first of its job; nobody is granted anything.
function admission.refused(prefix, rec, job, member, now)
  local full = get(rec, 'full')
  if not full then return end
  redis.call('HDEL', rec, 'full')
  full = cjson.decode(full)
  local account, model = account_of(job), model_key(get(rec, 'model'))
  local needs = cjson.decode(get(rec, 'needs') or '{}')
  for _, kind in ipairs(KINDS) do
    local room = room_of(prefix, account, kind, model)
    local said = type(full.limit) == 'number' and full.limit or nil
    if SPAN[kind] then
      if kind == full.kind then learn(room, member, 1, used(room, now), said, now) end
    else
      local amount, level = let_go(room, member)
      if kind == full.kind and amount then learn(room, member, amount, level or room.sent + amount, said, now) end
    end
  end
  local stage = get(rec, 'stage')
  if next(needs) == nil or not (stage == 'planned' or stage == 'uploaded') or is_out(job) then return end
  if stage == 'uploaded' then
    needs.uploads = nil
    redis.call('HSET', rec, 'needs', cjson.encode(needs))
  end
  local id, index = string.match(member, '^(.*)/(%d+)$')
  join(line_of(prefix, account, model), rec, id, index, now, true)
end

-- limits as the settings say them; those of what is not named are not known
function admission.set_limits(prefix, account, model, name, limits)
  for _, kind in ipairs(KINDS) do
    local room, limit = room_of(prefix, account, kind, model), tonumber(limits[kind])
    if limit ~= room.limit then
      if limit then set_room(room, 'limit', string.format('%.0f', limit)) else forget(room, 'limit') end
      if room.sum <= 0 then redis.call('EXPIRE', room.key, KEPT) end
    end
    if BY_MODEL[kind] and name then redis.call('HSETNX', room.key, 'model', string.sub(name, 1, 200)) end
  end
end

-- how many shards of each job of a line wait, in the order of the jobs
local function cards_of(line)
  local cards = {}
  for i, id in ipairs(redis.call('ZRANGE', line.jobs, 0, -1)) do cards[i] = redis.call('ZCARD', shards_key(line, id)) end
  return cards
end

-- what a waiting shard lacks: a kind; paused; hold: its job sends nothing; turn: others go first
local function what_lacks(line, rec, id, now)
  local needs = get(rec, 'needs') or '{}'
  line.known = line.known or {}
  if not line.known[id .. needs] then
    local kind
    if is_paused(line.prefix, line.account, now) then
      kind = 'paused'
    elseif is_out(line.prefix .. 'job:' .. id) then
      kind = 'hold'
    else
      kind = lacking(line, cjson.decode(needs), now) or get(line.fair, 'blocked') or 'turn'
    end
    line.known[id .. needs] = kind
  end
  return line.known[id .. needs]
end

-- {place from 1, shards that wait, what lacks}. The place is that of a fair order in which jobs take turns; exact as far as
-- the line has few jobs.
function admission.place(line, rec, id, index, now)
  local rank = redis.call('ZRANK', line.jobs, id)
  local before = redis.call('ZRANK', shards_key(line, id), index)
  local of = tonumber(get(line.fair, 'waiting') or '0')
  if not rank or not before then return { 0, of, 'turn' } end
  local jobs, place = redis.call('ZCARD', line.jobs), before
  if jobs > 50 then
    place = before * jobs + rank
  else
    line.cards = line.cards or cards_of(line)
    for i, card in ipairs(line.cards) do
      if i ~= rank + 1 then place = place + math.min(card, before + (i <= rank and 1 or 0)) end
    end
  end
  return { math.min(place + 1, math.max(of, 1)), of, what_lacks(line, rec, id, now) }
end

-- forget rooms and accounts that were not used for long and hold nothing
function admission.tidy(prefix, account, now)
  local key = prefix .. 'rooms:' .. account
  for _, short in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', num(now - KEPT), 'LIMIT', 0, 100)) do
    local sum = tonumber(get(prefix .. 'room:' .. account .. ':' .. short, 'sum') or '0')
    if sum <= 0 then redis.call('ZREM', key, short) end
  end
  local at = redis.call('ZSCORE', prefix .. 'admitting', account)
  local idle = redis.call('EXISTS', key) == 0 and redis.call('EXISTS', prefix .. 'lines:' .. account) == 0
  if at and tonumber(at) < now - KEPT and idle then redis.call('ZREM', prefix .. 'admitting', account) end
end

-- Whether a shard may make its call. One that was admitted, but for which there is no room left since a refusal has lowered the
-- limit, loses what it holds and waits as the first of its job.
function admission.may_call(prefix, rec, job, member, now)
  local account, model = account_of(job), model_key(get(rec, 'model'))
  if not is_in(prefix, account, member) then return false end
  local over = false
  for _, kind in ipairs(KINDS) do
    if not SPAN[kind] then
      local room = room_of(prefix, account, kind, model)
      local key = held_key(room, member)
      local amount, level = parse_hold(redis.call('HGET', key, member) or '')
      local limit = lower(room.limit, room.learned)
      over = over or (limit and not level and room.sent > 0 and room.sent + amount > limit and room.trying ~= member)
    end
  end
  if not over then
    for _, kind in ipairs(KINDS) do
      if not SPAN[kind] then mark_sent(room_of(prefix, account, kind, model), member) end
    end
    return true
  end
  admission.let_go(prefix, rec, job, member)
  use(room_of(prefix, account, 'creations', model), -1, now)
  local needs = cjson.decode(get(rec, 'needs') or '{}')
  needs.uploads = nil
  redis.call('HSET', rec, 'needs', cjson.encode(needs))
  local id, index = string.match(member, '^(.*)/(%d+)$')
  join(line_of(prefix, account, model), rec, id, index, now, true)
  return false
end

-- Its last call was taken back: nothing of it is at the provider. It keeps what it holds, for it calls again, or is given up; if
-- it does neither for long, it loses that (`check_holds`).
function admission.unsend(prefix, rec, job, member, now)
  local account, model = account_of(job), model_key(get(rec, 'model'))
  for _, kind in ipairs(KINDS) do
    if not SPAN[kind] then
      local room = room_of(prefix, account, kind, model)
      local key, part = held_key(room, member)
      local amount, level = parse_hold(redis.call('HGET', key, member) or '')
      if level then
        redis.call('HSET', key, member, string.format('%.0f', amount))
        add_up(room, part, 0, -amount)
        redis.call('HSET', rec, 'admitted_at', num(now))
      end
    end
  end
end
