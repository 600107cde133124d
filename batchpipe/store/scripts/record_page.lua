-- Compare a page of an account's list with the records of its shards, and write what has changed. Needs no lease: it is a
-- snapshot, and only of batches that are recorded.
-- KEYS: 1 watched:ACCOUNT, 2 due, 3 clock
-- ARGV: 1 skew (s), 2 prefix, 3 name of the account, 4 counts that are younger are left as they are (s), 5 safety net of
--   parked polls (s), 6 batches: each its id, status ('': unknown), counts (JSON), what else is written with a new status (JSON
--   [field, value ..])
-- -> {batches that are their shards' (their numbers from 0 in this page ..), members in flight that were met .., members to
--    publish again .., members that were granted room and are due now ..}, each a list
-- A final status is never replaced. An end makes its shard due at once, unless its message is under way; one that is not
-- taken up is told again by each look, for its caller may have died.
local now = clock(ARGV[1])
local prefix, account, every, net = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('EXISTS', KEYS[1]) == 1 then every = 0 end
local recorded, met, wake = {}, {}, {}
local jobs = {}

local function job_of(id)
  if not jobs[id] then
    local found = redis.pcall('HMGET', prefix .. 'job:' .. id, 'account', 'cancel')
    jobs[id] = found.err and {} or found
  end
  return jobs[id]
end

-- its message is neither in a queue nor in a worker's hands
local function waits(shard, member)
  local score = redis.call('ZSCORE', KEYS[2], member)
  return shard[6] == '1' or tonumber(shard[9] or '0') > now or not score or tonumber(score) <= now
end

local function make_due_now(rec, member)
  redis.call('HSET', rec, 'next_at', num(now), 'wait', '0')
  redis.call('ZADD', KEYS[2], num(now), member)
end

local function write_more(rec, fields)
  local more = cjson.decode(fields)
  for at = 1, #more, 2 do redis.call('HSET', rec, more[at], more[at + 1]) end
end

local function ended(rec, id, member, shard, i)
  redis.call('HSET', rec, 'status', ARGV[i + 1], 'counts', ARGV[i + 2], 'snapshot_at', num(now))
  write_more(rec, ARGV[i + 3])
  add_answered(rec, prefix .. 'job:' .. id, tonumber(get(rec, 'answered') or '0'), now)
  note_end_of_batch(prefix, rec, prefix .. 'job:' .. id, member, now)
  if leased(rec, now) then
    redis.call('HSET', rec, 'republish', '1') -- the turn under way may not know it
  elseif waits(shard, member) then
    make_due_now(rec, member)
    wake[#wake + 1] = member
  end
end

-- somebody else is cancelling it: a turn must say so
local function is_cancelled_elsewhere(status, shard, id)
  local known = shard[11] == '1' or shard[12] == '1' or shard[13] or shard[14] == '1' or job_of(id)[2] == '1'
  return status == 'cancelling' and not known
end

local function lives(rec, id, member, shard, i)
  local status = ARGV[i + 1]
  local changed = status ~= '' and status ~= shard[3]
  if changed or now - tonumber(shard[4] or '0') >= every then
    redis.call('HSET', rec, 'counts', ARGV[i + 2], 'snapshot_at', num(now))
    if changed then
      redis.call('HSET', rec, 'status', status)
      write_more(rec, ARGV[i + 3])
    end
    add_answered(rec, prefix .. 'job:' .. id, tonumber(get(rec, 'answered') or '0'), now)
  end
  if leased(rec, now) then return end
  if is_cancelled_elsewhere(status, shard, id) and waits(shard, member) then
    wake[#wake + 1] = member
  elseif shard[6] == '1' and not shard[15] and tonumber(shard[9] or '0') - now < net / 2 then
    local later = now + net * (0.8 + 0.2 * math.random())
    if shard[7] then later = math.min(later, tonumber(shard[7])) end
    if later > tonumber(shard[9] or '0') then
      redis.call('HSET', rec, 'next_at', num(later), 'wait', num(net))
      redis.call('ZADD', KEYS[2], num(later), member)
    end
  end
end

-- what all ends of a page have freed is granted once: it may be room for thousands
admission.together = true
local names = {}
for i = 6, #ARGV, 4 do names[#names + 1] = prefix .. 'batch:' .. ARGV[i] end
local members = #names > 0 and redis.call('MGET', unpack(names)) or {}
for number, member in ipairs(members) do
  local i = 6 + 4 * (number - 1)
  local id, index = string.match(member or '', '^(.*)/(%d+)$')
  if id and job_of(id)[1] == account then
    local rec = prefix .. 'shard:' .. id .. ':' .. index
    local shard = redis.pcall('HMGET', rec, 'stage', 'batch_id', 'status', 'snapshot_at', 'counts', 'parked', 'park_until',
      'late_at', 'next_at', 'end_seen', 'cancel_sent', 'cancelled_elsewhere', 'overdue_at', 'landing',
      'news')
    if not shard.err and shard[2] == ARGV[i] then
      recorded[#recorded + 1] = number - 1
      if shard[1] == 'created' then
        met[#met + 1] = member
        if FINAL[shard[3]] then
          if not shard[8] and not leased(rec, now) and waits(shard, member) then wake[#wake + 1] = member end
        elseif FINAL[ARGV[i + 1]] then
          ended(rec, id, member, shard, i)
        else
          lives(rec, id, member, shard, i)
        end
      end
    end
  end
end
local granted = admission.freed and admission.grant(prefix, account, now, GRANTS_AT_ONCE) or {}
return { recorded, met, wake, granted }
