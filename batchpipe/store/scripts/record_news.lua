-- Record what a verified webhook says: a batch has ended. Its shard is due now, in the same step that remembers the id of
-- the webhook: so a repeat is dropped only if the first one had its effect. A batch that no record knows may be one whose
-- create call is not answered yet: it is remembered for `settle`.
-- KEYS: 1 webhook:ID, 2 due, 3 clock
-- ARGV: 1 skew (s), 2 prefix, 3 batch id, 4 how long the webhook's id is remembered (s), 5 and on: an account each whose
--   secret signed it
-- -> {what, member}: the shard that is due and has no message yet; '': there is none
-- what: woken | known: it does not wait for this batch any more | early: kept for settle | repeated
local MOST_EARLY, EARLY_SECONDS = 10000, 3600 -- other programs of the provider's project have batches, too
local now = clock(ARGV[1])
local prefix, batch, due = ARGV[2], ARGV[3], KEYS[2]

-- the record of the batch, if it is one of these accounts: ids may repeat over accounts
local function find()
  local member = redis.call('GET', prefix .. 'batch:' .. batch) or ''
  local id, index = string.match(member, '^(.*)/(%d+)$')
  if not id then return nil end
  local account = get(prefix .. 'job:' .. id, 'account') or 'default'
  for i = 5, #ARGV do
    if ARGV[i] == account then return prefix .. 'shard:' .. id .. ':' .. index, member, account end
  end
end

local function is_waiting(rec)
  return get(rec, 'stage') == 'created' and get(rec, 'batch_id') == batch
end

local rec, member, account = find()
local first = redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[4])
local what = 'repeated'
if first then
  for i = 5, #ARGV do redis.call('HSET', prefix .. 'webhooks:' .. ARGV[i], 'seen', num(now)) end
  if not rec then
    what = 'early'
    for i = 5, #ARGV do
      local news = prefix .. 'news:' .. ARGV[i]
      redis.call('ZADD', news, num(now), batch)
      redis.call('ZREMRANGEBYSCORE', news, '-inf', num(now - EARLY_SECONDS))
      redis.call('ZREMRANGEBYRANK', news, 0, -MOST_EARLY - 1)
      redis.call('EXPIRE', news, EARLY_SECONDS)
    end
  else
    what = is_waiting(rec) and 'woken' or 'known'
    note_news(prefix, account, batch, now)
    if what == 'woken' then
      redis.call('HSET', rec, 'news', '1', 'news_at', num(now))
      if leased(rec, now) then
        redis.call('HSET', rec, 'republish', '1')
      elseif tonumber(get(rec, 'next_at') or '0') > now then
        redis.call('HSET', rec, 'next_at', num(now), 'wait', '0')
        redis.call('ZADD', due, num(now), member)
      end -- else it is due already: its time is kept, see `attended` of lateness.py
    end
  end
  redis.call('HINCRBYFLOAT', prefix .. 'metrics', '["webhooks","' .. what .. '"]', 1)
end
-- Also of a repeat: whoever recorded the first one may have died before it published.
if rec and is_waiting(rec) and get(rec, 'news_at') and not leased(rec, now) then
  local score = redis.call('ZSCORE', due, member)
  -- 0.05: as in `bump_epoch`
  if score and tonumber(score) <= now + 0.05 then return { what, member } end
end
return { what, '' }
