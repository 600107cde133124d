-- Prepended to every script. Times are Redis' own clock; `skew` is 0 but in tests, which move the time by it.
-- KEYS of every script about a record: 1 the record (job or shard), 2 its job, 3 the due set.
local NIL = '\0nil'
local ENDED = { succeeded = true, partial = true, failed = true, cancelled = true }

local function clock(skew)
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000 + tonumber(skew)
end

local function num(value)
  return string.format('%.6f', value)
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

-- how long after next_at sweep takes the message for lost: doubled with each re-publication, at most 30 minutes
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
end

local function flag(key, field)
  return get(key, field) == '1' and 1 or 0
end

-- make a job finalizing and due; answers the new epoch, under which the caller publishes merge
local function finalize(key, prefix, id, due, member, lease, now, task_ids)
  set_state(key, prefix, id, 'finalizing', now)
  local epoch = redis.call('HINCRBY', key, 'epoch', 1)
  redis.call('HSET', key, 'task_ids', task_ids)
  redis.call('HDEL', key, 'wake')
  set_due(key, due, member, lease, now, 0)
  return epoch
end
