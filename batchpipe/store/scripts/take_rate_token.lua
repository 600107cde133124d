-- May the provider be asked about a batch? Every read takes from the account's bucket, which may go into debt: who finds no
-- token is given a slot in the future, and need not ask again.
-- KEYS: 1 rate:ACCOUNT, 2 inflight:ACCOUNT, 3 listed:ACCOUNT, 4 clock
-- ARGV: 1 skew (s), 2 tokens per second (decimal text), 3 tokens at most (decimal text), 4 what for, 5 longest wait (s),
--   6 it may be parked where more are in flight (count; '': it may not), 7 its batch was last seen (at; '': never)
-- what for: poll: a slot; look: the same, for a page, and looks come before polls; news: at once; booked: it has its slot
-- -> {'slot', time to wait (s)} | {'parked'} nobody need ask: looks watch it | {'full', time until it may ask again (s)}
local now = clock(ARGV[1])
local rate, burst, what, longest = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
if ARGV[6] ~= '' and ARGV[7] ~= '' then
  local looks = redis.call('HMGET', KEYS[3], 'looked', 'until')
  -- one that looks do not meet was last seen long before the last of them
  if tonumber(looks[2] or '0') > now and tonumber(ARGV[7]) > tonumber(looks[1]) - 90
    and redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[6]) then
    return { 'parked' }
  end
end
if what == 'booked' then return { 'slot', num(0) } end
local known = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'look_at', 'kept_at')
local tokens = tonumber(known[1] or burst)
tokens = math.min(burst, tokens + math.max(0, now - tonumber(known[2] or now)) * rate)
local wait = tokens >= 1 and 0 or (1 - tokens) / rate
if what == 'news' then
  wait = 0
elseif what == 'look' then
  wait = math.min(wait, math.max(0, tonumber(known[3] or '0') - now))
  redis.call('HSET', KEYS[1], 'look_at', num(now + wait + 1 / rate))
elseif wait > longest then
  return { 'full', num(longest) }
end
tokens = math.max(tokens - 1, -longest * rate)
redis.call('HSET', KEYS[1], 'tokens', num(tokens), 'at', num(now))
if now - tonumber(known[4] or '0') > 600 then -- not at each read
  redis.call('HSET', KEYS[1], 'kept_at', num(now))
  redis.call('EXPIRE', KEYS[1], 4800)
end
return { 'slot', num(wait) }
