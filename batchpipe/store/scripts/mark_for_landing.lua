-- Mark shards of an ended job that were given up, for `land` to take up: a chunk at a time. Marks change nothing, and
-- marking twice is marking once.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 and on: an index each
-- -> {'ok'} | {'gone'} | {'running'} it has not ended | {'not_closed'} its receivers are not all notified
local prefix, id, job = ARGV[2], ARGV[3], KEYS[1]
if redis.call('EXISTS', job) == 0 then return { 'gone' } end
if not ENDED[get(job, 'stage')] then return { 'running' } end
if flag(job, 'closed') == 0 then return { 'not_closed' } end
for i = 4, #ARGV do
  local shard = prefix .. 'shard:' .. id .. ':' .. ARGV[i]
  if get(shard, 'stage') == 'collected' and redis.call('HSETNX', shard, 'to_land', '1') == 1 then
    redis.call('HINCRBY', job, 'to_land', 1)
  end
end
return { 'ok' }
