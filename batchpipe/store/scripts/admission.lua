-- Admission, prepended to every script after lines.lua: who is given room, and what a refusal teaches. Who is granted some is
-- due at once, in the same script, so nobody has to be told.
--
-- Everywhere: `rec` and `job` are the keys of a shard's record and of its job's, `member` is the shard in sets (JOB/INDEX), `needs`
-- what it needs ({KIND: count}), `line` the line of its account and model (lines.lua), `room` one resource (rooms.lua).
--
-- The way of a shard, and where each thing is decided:
--   it asks                          `admission.let_in`: `lacking`, then `take`; else admit.lua has it join its line
--   it waits                         `admission.grant`, over the lines of an account; `grant_one`, over the shards of one
--   it is about to call              `admission.may_call`: sent from now on, or it has lost its room
--   its call was taken back          `admission.unsend`
--   it was refused for want of room  `admission.refused`: `learn_limit` of what is held, `slow_down` of what is counted
--   its batch has ended, or it never gets one  `admission.release`

-- what is read --------------------------------------------------------------------------------------------------------

-- fields of a record; none if they cannot be read: that must not keep others from their room
local function fields_of(key, ...)
  local fine, found = pcall(redis.call, 'HMGET', key, ...)
  return fine and found or {}
end

local function decoded(text)
  local fine, value = pcall(cjson.decode, text or '')
  return fine and type(value) == 'table' and value or nil
end

-- whether a shard holds what is held until its batch ends
local function is_in(prefix, account, member)
  return redis.call('HGET', held_key(prefix, account, 'batches', '', member), member) ~= false
end

local function is_paused(prefix, account, now)
  if now >= pauses_until then return false end
  local ends = get(prefix .. 'pause:' .. account, 'until')
  return ends ~= nil and tonumber(ends) > now
end

-- why a job's shards may not be sent now, if so: they leave the line, and ask again when they come round
local function is_out(job)
  local found = fields_of(job, 'stage', 'cancel', 'hold_at', 'send_no_more')
  if not found[1] or ENDED[found[1]] then return 'ended' end
  if found[2] == '1' then return 'ended' end
  if found[3] or found[4] == '1' then return 'hold' end
  return nil
end

-- the first kind of what a shard needs that does not fit (nil: all of it does), and the rooms in which it is one that tries
local function lacking(line, needs, now, member)
  local tries = {}
  for _, kind in ipairs(KINDS) do
    local amount = tonumber(needs[kind])
    if amount then
      local room = room_of(line.prefix, line.account, kind, line.model, member)
      local yes, as_try = fits(room, amount, now)
      if not yes then return kind end
      if as_try then tries[kind] = true end
    end
  end
  return nil, tries
end

-- who is given room ---------------------------------------------------------------------------------------------------

-- limits as the settings say them; those of what is not named are not known
function admission.set_limits(prefix, account, model, name, limits, member, now)
  for _, kind in ipairs(KINDS) do
    local room, limit = room_of(prefix, account, kind, model, member), tonumber(limits[kind])
    if limit ~= room.limit then
      if limit then set_room(room, 'limit', string.format('%.0f', limit)) else forget(room, 'limit') end
      note_use(room, now)
    end
    if BY_MODEL[kind] and name and not room.named then
      room.named = true
      redis.call('HSET', room.key, 'model', string.sub(without_date(name), 1, 200))
    end
  end
end

-- give a shard all that it needs
local function take(line, rec, member, needs, tries, now)
  for _, kind in ipairs(KINDS) do
    local amount = tonumber(needs[kind])
    if amount then
      local room = room_of(line.prefix, line.account, kind, line.model)
      if tries[kind] then try_more(room, member, now) end
      if room.fails > 0 then after_fails(room, now) end
      if SPAN[kind] then
        use(room, amount, now)
        keep_pace(room, now)
      else
        hold(room, member, amount, now)
      end
    end
  end
  redis.call('HSET', rec, 'admitted_at', num(now), 'needs', cjson.encode(needs))
  redis.call('HDEL', rec, 'waits_since')
end

-- Give a shard what it needs if nobody waits and there is room; returns whether it has it now. `uploads`: its upload calls with
-- the one that follows, noted then ('': as they are).
function admission.let_in(prefix, rec, job, member, needs, limits, uploads, now)
  local account, model = account_of(job), model_key(get(rec, 'model'))
  if not is_in(prefix, account, member) then
    admission.set_limits(prefix, account, model, get(rec, 'model'), limits, member, now)
    if is_out(job) or is_paused(prefix, account, now) or redis.call('EXISTS', prefix .. 'lines:' .. account) == 1 then return false end
    local line = line_of(prefix, account, model)
    local kind, tries = lacking(line, needs, now, member)
    if kind then return false end
    admission.leave(prefix, rec, job, member)
    take(line, rec, member, needs, tries, now)
  else
    admission.leave(prefix, rec, job, member) -- a line that Redis has lost in part may still name it
  end
  if uploads ~= '' then redis.call('HSET', rec, 'uploads', uploads) end
  return true
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

-- See model/admission.py.
local RATIO_MARGIN = 1.05

-- what a waiting shard needs; nil: it waits no more. Its tokens by what is known of its model now: it may have waited for hours
-- since its own estimate, which was the first of its model
local function waiting_needs(line, rec)
  local found = fields_of(rec, 'stage', 'waits_since', 'needs', 'bytes')
  local needs, bytes = decoded(found[3]), tonumber(found[4] or '')
  if not (found[1] == 'planned' or found[1] == 'uploaded') or not found[2] or not needs then return nil end
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
    local kind, tries = lacking(line, needs, now, member)
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
    if member then table.insert(granted, member) end
    -- also where there is no room for it: those that are not looked at this time come next
    if member or #models == LINES_AT_ONCE then redis.call('ZADD', prefix .. 'lines:' .. account, 'XX', num(now), line.model) end
    if redis.call('EXISTS', line.jobs) == 0 then
      close(line)
    elseif member or again then
      rank(line)
    end
  end
  return granted
end

-- those who were granted something by a script that answers something else; `told` counts them
admission.told = 0
function admission.announce(prefix, members, own)
  local key = prefix .. 'granted'
  for _, member in ipairs(members) do
    if member ~= own then
      redis.call('RPUSH', key, member)
      admission.told = admission.told + 1
    end
  end
  if #members > 0 then redis.call('LTRIM', key, -10000, -1) end
end

-- what is given back --------------------------------------------------------------------------------------------------

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
    if not SPAN[kind] and redis.call('HGET', held_key(prefix, account, kind, model, member), member) then
      let_go(room_of(prefix, account, kind, model, member), member)
      any = true
    end
  end
  return any
end

-- Give it back, leave the line, and grant it to those who wait; where many are released at once, the script grants when it has
-- released all of them (`together`), if that has `freed` something.
function admission.release(prefix, rec, job, member, now)
  admission.leave(prefix, rec, job, member)
  if not admission.let_go(prefix, rec, job, member) then return end
  if admission.together then
    admission.freed = true
  else
    admission.announce(prefix, admission.grant(prefix, account_of(job), now, GRANTS_AT_ONCE))
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

-- the call, and what a refusal of it teaches --------------------------------------------------------------------------

-- Whether a shard may make its call. One that was admitted, but for which there is no room left since a refusal has lowered the
-- limit, loses what it holds and waits as the first of its job.
function admission.may_call(prefix, rec, job, member, now)
  local account, model = account_of(job), model_key(get(rec, 'model'))
  if not is_in(prefix, account, member) then return false end
  local creations = room_of(prefix, account, 'creations', model)
  local over = creations.retry_at and now < creations.retry_at
  for _, kind in ipairs(KINDS) do
    if not SPAN[kind] then
      local room = room_of(prefix, account, kind, model, member)
      local amount, level = parse_hold(redis.call('HGET', held_in(room, member), member) or '')
      local limit = limit_of(room)
      over = over or (limit and not level and room.sent > 0 and room.sent + amount > limit and room.trying ~= member)
    end
  end
  if not over then
    for _, kind in ipairs(KINDS) do
      if not SPAN[kind] then mark_sent(room_of(prefix, account, kind, model), member, now) end
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
      local room = room_of(prefix, account, kind, model, member)
      local key, part = held_in(room, member)
      local amount, level = parse_hold(redis.call('HGET', key, member) or '')
      if level then
        redis.call('HSET', key, member, string.format('%.0f', amount))
        add_up(room, part, 0, -amount)
        redis.call('HSET', rec, 'admitted_at', num(now))
      end
    end
  end
end

-- Lower the limit of a room that has refused so much; `level`: what was there with it when it was sent, `admitted`: when (at). A
-- provider may look at batches in another order than that in which they came, so others that were sent later may have been
-- let in before it. What is there with it now was not refused yet. And if it was sent before the limit was learned, with all that had
-- been sent by then, it says nothing against the number that was said. Where others fill the queue, by all that is known of it, what
-- we have there says nothing of how much it takes: the next one is tried later.
local function learn_limit(room, member, amount, level, said, admitted, now)
  level = math.max(level or 0, amount, room.sent + amount)
  local known = room.learned and now - (room.learned_at or 0) <= FORGET_SECONDS
  if said and level > amount then
    if not known then level = math.max(level, room.peak or 0) end
    if known and admitted < room.learned_at and said == room.said then return end
  end
  if said and said >= 1 then set_room(room, 'said', string.format('%.0f', said)) else said = nil end
  local alone, too_large = level <= amount, said and amount > said
  local of_others = not too_large and (alone or (said and level < said / 2))
  if room.trying == member and room.learned then -- the limit was right
    forget(room, 'trying')
    set_room(room, 'try_wait', math.min((room.try_wait or TRY_SECONDS) * 2, LONGEST_TRY))
    set_room(room, 'learned', string.format('%.0f', lower(room.learned, said)))
  elseif not of_others then
    local learned = said and said < level and said or math.max(math.floor(0.9 * level), math.min(amount, said or amount))
    set_room(room, 'learned', string.format('%.0f', known and math.min(learned, room.learned) or learned))
    forget(room, 'trying')
  end
  set_room(room, 'learned_at', num(now), 'try_at', num(now + (room.try_wait or TRY_SECONDS)))
  if alone then
    redis.call('HSET', room.key, 'alone', member)
    room.alone = member
  end
  if of_others then
    set_room(room, 'fails', room.fails + 1)
    forget(room, 'single')
    set_room(room, 'retry_at', num(now + math.min(FIRST_RETRY * 2 ^ math.min(room.fails, 20), LONGEST_RETRY)))
  end
end

-- The provider took a call for one too many within its span: it does not count, and nobody is let in before `after` (s) has
-- passed. `said`, in that span, is the limit if no more was used: a number of which more was is one of another span.
local function slow_down(room, said, after, now)
  use(room, -1, now)
  local ends = now + math.min(after or 0, SPAN[room.kind])
  set_room(room, 'retry_at', num(ends), 'try_at', num(ends))
  if said and said >= 1 and used(room, now) <= said + math.ceil(said / SLOTS) then
    set_room(room, 'learned', string.format('%.0f', said), 'learned_at', num(now))
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
  local needs, admitted = cjson.decode(get(rec, 'needs') or '{}'), tonumber(get(rec, 'admitted_at') or '0')
  for _, kind in ipairs(KINDS) do
    local room = room_of(prefix, account, kind, model, member)
    local said = type(full.limit) == 'number' and full.limit or nil
    if SPAN[kind] then
      if kind == 'creations' and full.kind == 'uploads' then use(room, -1, now) end -- no create call was made
      if kind == full.kind then slow_down(room, said, type(full.after) == 'number' and full.after or nil, now) end
    else
      local amount, level = let_go(room, member)
      if kind == full.kind and amount then learn_limit(room, member, amount, level, said, admitted, now) end
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

-- what people see, and what is forgotten ------------------------------------------------------------------------------

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
      kind = lacking(line, decoded(needs) or {}, now) or get(line.fair, 'blocked') or 'turn'
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
    if sum <= 0 then
      redis.call('ZREM', key, short)
      redis.call('DEL', prefix .. 'room:' .. account .. ':' .. short)
    end
  end
  local at = redis.call('ZSCORE', prefix .. 'admitting', account)
  local idle = redis.call('EXISTS', key) == 0 and redis.call('EXISTS', prefix .. 'lines:' .. account) == 0
  if at and tonumber(at) < now - KEPT and idle then redis.call('ZREM', prefix .. 'admitting', account) end
end
