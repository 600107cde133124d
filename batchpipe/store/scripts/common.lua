-- Prepended to every script. Times are Redis' own clock; `skew` is 0 but in tests, which move the time by it.
-- KEYS of every script about a record: 1 the record (job or shard), 2 its job, 3 the due set. The last of all: the clock.
local NIL = '\0nil'
local ENDED = { succeeded = true, partial = true, failed = true, cancelled = true }

local function num(value)
  return string.format('%.6f', value)
end

-- how much our time is ahead of Redis' clock, once clock() was called
local ahead = 0

-- Our time: Redis' clock, but it never goes back. The hash `clock` keeps the highest time `seen` (written once a second)
-- and how far `ahead` of Redis' clock we are since that was set back. Our time then goes on from where it was, a twentieth
-- slower until Redis' clock has caught up, so leases, due times and marks keep their meaning, and the countdown of a
-- message on a host's clock stays within what claim allows. Less than five seconds are waited for. A leap forward cannot be
-- told from an hour without calls, so it is only noted: see the look for unanswered creates.
-- `peek`: write nothing, for calls that must work on a Redis that is full.
local function clock(skew, peek)
  local t = redis.call('TIME')
  local raw = tonumber(t[1]) + tonumber(t[2]) / 1000000 + tonumber(skew)
  local key = KEYS[#KEYS]
  local known = redis.call('HMGET', key, 'seen', 'ahead', 'leap_at', 'leap_by')
  local seen = tonumber(known[1] or raw)
  ahead = tonumber(known[2] or 0)
  local now = raw + ahead
  if raw >= seen then
    ahead = 0 -- it has caught up
    now = raw
  elseif now < seen - 5 then
    if not peek then
      redis.call('HSET', key, 'back_at', num(seen), 'back_by', num(seen - now))
      redis.call('HINCRBY', key, 'backs', 1)
    end
    ahead = seen - raw
    if not peek then redis.call('HSET', key, 'ahead', num(ahead)) end
    return seen
  elseif now < seen then
    return seen
  else
    ahead = math.max(0, ahead - (now - seen) / 20)
    now = raw + ahead
  end
  if not peek and (known[1] == false or now - seen >= 1) then
    redis.call('HSET', key, 'seen', num(now), 'ahead', num(ahead))
    local leap = now - seen
    -- a smaller one does not hide a larger one
    if leap > 30 and (leap >= tonumber(known[4] or 0) or now - tonumber(known[3]) > 3600) then
      redis.call('HSET', key, 'leap_at', num(now), 'leap_by', num(leap))
    end
  end
  return now
end

local function get(key, field)
  local value = redis.call('HGET', key, field)
  if value == false then return nil end
  return value
end

-- field, value, field, value ... from ARGV[first] on; NIL removes the field
local function write(key, first)
  for i = first, #ARGV, 2 do
    if ARGV[i + 1] == NIL then
      redis.call('HDEL', key, ARGV[i])
    else
      redis.call('HSET', key, ARGV[i], ARGV[i + 1])
    end
  end
end

local function leased(key, now)
  local ends = get(key, 'lease_until')
  return ends ~= nil and tonumber(ends) > now
end

local function holds(key, token, now)
  return get(key, 'token') == token and leased(key, now)
end

local function release(key)
  redis.call('HDEL', key, 'token', 'lease_until', 'lease_end')
end

-- how long after next_at the sweep considers the message lost: doubled with each re-publication, at most 30 minutes
local function margin(key, lease)
  local pubs = tonumber(get(key, 'pubs') or '0')
  return math.min(tonumber(lease) * 2 ^ math.min(pubs, 20), math.max(1800, tonumber(lease)))
end

local function set_due(key, due, member, lease, now, wait)
  redis.call('HSET', key, 'next_at', num(now + wait), 'wait', num(wait))
  redis.call('ZADD', due, num(now + wait + margin(key, lease)), member)
end

local function set_stage(key, stage, now)
  if get(key, 'stage') ~= stage then
    redis.call('HSET', key, 'stage', stage, stage .. '_at', num(now), 'tries', '0', 'lost', '0', 'overran', '0', 'pubs', '0')
  end
end

-- a job's state also decides in which list it stands
local function set_state(key, prefix, id, state, now)
  local old = get(key, 'stage')
  set_stage(key, state, now)
  local created = get(key, 'created_at') or num(now)
  if old and old ~= state then redis.call('ZREM', prefix .. 'jobs:' .. old, id) end
  redis.call('ZADD', prefix .. 'jobs:' .. state, created, id)
  if ENDED[state] then redis.call('ZREM', prefix .. 'jobs:cancelling', id) end
end

local function flag(key, field)
  return get(key, field) == '1' and 1 or 0
end

-- claim an output under all of its names (a JSON list), or none; returns the other job, not closed, that has one, and its stage
local function own(prefix, names, id)
  names = cjson.decode(names)
  for _, name in ipairs(names) do
    local owner = redis.call('GET', prefix .. 'output:' .. name)
    local job = prefix .. 'job:' .. (owner or '')
    local stage = owner and get(job, 'stage')
    if stage and owner ~= id and get(job, 'closed') ~= '1' then return owner, stage end
  end
  for _, name in ipairs(names) do redis.call('SET', prefix .. 'output:' .. name, id) end
  return nil
end

-- make a job finalizing and due; returns the new epoch, under which the caller publishes merge
local function finalize(key, prefix, id, due, member, lease, now, task_ids)
  set_state(key, prefix, id, 'finalizing', now)
  local epoch = redis.call('HINCRBY', key, 'epoch', 1)
  redis.call('HSET', key, 'task_ids', task_ids)
  redis.call('HDEL', key, 'wake')
  set_due(key, due, member, lease, now, 0)
  return epoch
end

-- let the sweep wake a job's shards from an index on
local function wake_rest(prefix, id, when, first, shards)
  if shards > first then redis.call('ZADD', prefix .. 'waking', first, id .. '/' .. when) end
end
