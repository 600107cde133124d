-- Prepended to every script, before `common`: within a script each record is read once and written once. Redis runs one
-- command for what a script does to a hash field by field, however many fields that are: `get` reads a record whole (that is quicker than to look up half of its fields), and what is written is kept until the
-- script ends (`flush`), or until another command names the same key. Scripts go on calling `redis.call`, which is this
-- one; of it, HSET and HDEL answer nothing.
local server = redis

-- for each key: {known: field -> its value, or false where there is none; whole: all of its fields are known; changed: field ->
-- true; order: the changed fields}
local hashes, keys = {}, {}
-- Commands that change nothing, and those that leave a hash as it was, too. Any other may change or replace it.
local READS, KEEPS = {}, { EXPIRE = true, PEXPIRE = true, PERSIST = true }
for _, name in ipairs({
  'EXISTS', 'GET', 'HEXISTS', 'HGET', 'HGETALL', 'HKEYS', 'HLEN', 'HMGET', 'HSCAN', 'HVALS', 'LRANGE', 'MGET', 'PTTL', 'TIME',
  'ZCARD', 'ZRANGE', 'ZRANGEBYSCORE', 'ZRANK', 'ZREVRANGE', 'ZREVRANGEBYSCORE', 'ZSCORE',
}) do
  READS[name], KEEPS[name] = true, true
end
-- Redis has taken a write of this script; from then on it refuses none for its own state (full, read-only)
local written = false

local function hash(key)
  local one = hashes[key]
  if not one then
    one = { known = {}, changed = {}, order = {} }
    hashes[key] = one
    table.insert(keys, key)
  end
  return one
end

-- as Redis would keep it
local function text(value)
  if type(value) == 'number' then return string.format('%.17g', value) end
  if type(value) ~= 'string' then error('a field or value of a hash is ' .. type(value), 0) end -- Redis refuses it, too
  return value
end

-- a number with which sums are exact, as Redis writes it; else nil
local function whole(value)
  local number = string.match(value, '^-?[1-9]%d*$') and #value < 16 and tonumber(value)
  return number or (value == '0' and 0) or nil
end

local function change(one, field, value)
  field = text(field)
  if one.known[field] == value then return end
  one.known[field] = value
  if not one.changed[field] then
    one.changed[field] = true
    table.insert(one.order, field)
  end
end

-- what was known of a hash holds no more
local function forget(key)
  local one = hashes[key]
  if one then one.known, one.changed, one.order, one.whole = {}, {}, {}, false end
end

-- send what was changed of a hash
local function flush_one(key)
  local one = hashes[key]
  if not one or #one.order == 0 then return end
  local set, gone = {}, {}
  for _, field in ipairs(one.order) do
    local value = one.known[field]
    if value == false then
      table.insert(gone, field)
    else
      table.insert(set, field)
      table.insert(set, value)
    end
  end
  one.changed, one.order = {}, {}
  for first = 1, #set, 1000 do
    server.call('HSET', key, unpack(set, first, math.min(first + 999, #set)))
    written = true
  end
  for first = 1, #gone, 1000 do
    server.call('HDEL', key, unpack(gone, first, math.min(first + 999, #gone)))
    written = true
  end
end

-- One hash that cannot be written (somebody else's key of another type) does not keep the others from it, unless nothing is
-- written yet: then nothing shall be.
local function flush()
  local trouble
  for _, key in ipairs(keys) do
    local fine, raised = pcall(flush_one, key)
    if not fine then
      trouble = trouble or raised
      if not written then break end
    end
  end
  if trouble then error(trouble, 0) end
end

-- Run a script and write what it has changed. If it raises, then what it did up to there stands, whichever command did it;
-- if that was changes of hashes only, none of it.
local function run(script)
  local fine, answer = pcall(script)
  if fine then
    flush()
    return answer
  end
  if written then pcall(flush) end
  error(answer, 0)
end

local function learn(key, fields)
  local one = hash(key)
  local found = server.call('HMGET', key, unpack(fields))
  for place, field in ipairs(fields) do
    if one.known[field] == nil then one.known[field] = found[place] end
  end
end

-- all fields of a hash, as they are here
local function learn_whole(one, found)
  for place = 1, #found, 2 do
    if one.known[found[place]] == nil then one.known[found[place]] = found[place + 1] end
  end
  one.whole = true
end

local function is_record(key)
  return string.find(key, 'job:', 1, true) or string.find(key, 'shard:', 1, true)
end

-- a record that is not there yet: nothing of it need be read
local function is_new(key)
  hash(key).whole = true
end

local function read(key, field)
  local one = hash(key)
  field = text(field)
  if one.known[field] == nil and not one.whole then
    if is_record(key) then learn_whole(one, server.call('HGETALL', key)) else learn(key, { field }) end
  end
  return one.known[field] or false
end

local OWN = {
  HGET = function(key, field) return read(key, field) end,
  HMGET = function(key, ...)
    if not hashes[key] then return server.call('HMGET', key, ...) end
    local asked, unknown, values = { ... }, {}, {}
    for place, field in ipairs(asked) do asked[place] = text(field) end
    for _, field in ipairs(asked) do
      if hashes[key].known[field] == nil and not hashes[key].whole then table.insert(unknown, field) end
    end
    if #unknown > 0 then learn(key, unknown) end
    for place, field in ipairs(asked) do values[place] = hashes[key].known[field] or false end
    return values
  end,
  HGETALL = function(key)
    local one, flat = hash(key), {}
    if not one.whole then learn_whole(one, server.call('HGETALL', key)) end
    for field, value in pairs(one.known) do
      if value ~= false then
        table.insert(flat, field)
        table.insert(flat, value)
      end
    end
    return flat
  end,
  HSET = function(key, ...)
    local one, given = hash(key), { ... }
    for place = 1, #given, 2 do change(one, text(given[place]), text(given[place + 1])) end
  end,
  HDEL = function(key, ...)
    local one = hash(key)
    for _, name in ipairs({ ... }) do
      local field = text(name)
      if one.known[field] ~= nil or not one.whole then change(one, field, false) end
    end
  end,
  HSETNX = function(key, field, value)
    if read(key, field) then return 0 end
    change(hash(key), field, text(value))
    return 1
  end,
  HINCRBY = function(key, field, by)
    local old, more = whole(read(key, field) or '0'), whole(text(by))
    if not old or not more then -- Redis says what is wrong
      flush_one(key)
      forget(key)
      return server.call('HINCRBY', key, field, by)
    end
    change(hash(key), field, string.format('%.0f', old + more))
    return old + more
  end,
  EXISTS = function(key)
    local one = hashes[key]
    if not one and is_record(key) then -- most likely: read it, unless it is of another type
      local found = server.pcall('HGETALL', key)
      if found.err then return server.call('EXISTS', key) end
      one = hash(key)
      learn_whole(one, found)
    end
    if one then
      for _, value in pairs(one.known) do
        if value then return 1 end
      end
      if one.whole then return 0 end
      flush_one(key)
    end
    return server.call('EXISTS', key)
  end,
}

-- before another command, which is given a key and more: its answer is about what is written
local function prepare(command, key, ...)
  if command == 'DEL' or command == 'UNLINK' then
    for _, name in ipairs({ key, ... }) do
      flush_one(name) -- it is counted
      forget(name)
    end
  elseif hashes[key] then
    flush_one(key)
    if not KEEPS[command] then forget(key) end
  end
end

local redis = {
  call = function(command, key, ...)
    if key == nil then return server.call(command) end
    if OWN[command] then return OWN[command](key, ...) end
    prepare(command, key, ...)
    local answer = server.call(command, key, ...)
    written = written or not READS[command]
    return answer
  end,
  pcall = function(command, key, ...)
    prepare(command, key, ...)
    local answer = server.pcall(command, key, ...)
    written = written or not READS[command]
    return answer
  end,
}
