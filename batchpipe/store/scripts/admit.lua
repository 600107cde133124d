-- Reserve what a shard needs, or put it into the line of its account and model. Fenced by the lease of its turn.
-- KEYS: 1 record, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 member, 4 token, 5 needs (JSON {KIND: count}), 6 limits (JSON {KIND: count}),
--   7 its upload calls with the one that follows, if it is let in (count; '': as they are)
-- -> {'in'} | {'wait', place, of (count), what lacks} | {'lost'}
local now = clock(ARGV[1])
local prefix, member, rec, job = ARGV[2], ARGV[3], KEYS[1], KEYS[2]
if not holds(rec, ARGV[4], now) then return { 'lost' } end
local needs = cjson.decode(ARGV[5])
if admission.let_in(prefix, rec, job, member, needs, cjson.decode(ARGV[6]), ARGV[7], now) then return { 'in' } end
redis.call('HSET', rec, 'needs', ARGV[5])
local out = is_out(job)
if out then
  admission.leave(prefix, rec, job, member)
  return { 'wait', 0, 0, out }
end
local account, model = account_of(job), model_key(get(rec, 'model'))
local line, id, index = line_of(prefix, account, model), string.match(member, '^(.*)/(%d+)$')
redis.call('ZADD', prefix .. 'admitting', num(now), account)
join(line, rec, id, index, now)
admission.announce(prefix, admission.grant(prefix, account, now, GRANTS_AT_ONCE, member), member)
if is_in(prefix, account, member) then
  if ARGV[7] ~= '' then redis.call('HSET', rec, 'uploads', ARGV[7]) end
  return { 'in' }
end
return { 'wait', unpack(admission.place(line, rec, id, index, now)) }
