-- Lines, prepended to every script after rooms.lua: who waits for room, and in which order.
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
  count_waiting(line, 0 - redis.call('ZCARD', key)) -- of nothing that is 0; -0 is no number to Redis
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
  if not redis.call('ZSCORE', key, index) then
    redis.call('ZADD', key, index - (first and 1e9 or 0), index)
    count_waiting(line, 1)
  end
  -- also for one that was there: Redis may have lost the line, or the line's place among the others
  redis.call('ZADD', line.prefix .. 'lines:' .. line.account, 'NX', '0', line.model)
  if redis.call('ZSCORE', line.jobs, id) then return end
  local time = math.max(line_time(line), tonumber(redis.call('ZSCORE', line.served, id) or '0')) / 1000
  redis.call('ZREM', line.served, id)
  redis.call('ZADD', line.jobs, turn(priority_of(line, id), time), id)
  redis.call('ZADD', line.raise, num(now + RAISE_SECONDS), id)
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
