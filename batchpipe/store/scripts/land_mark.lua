-- Mark abandoned shards of an ended job for `land`, a chunk at a time. Marks change nothing by themselves, and
-- marking twice does no harm. KEYS 1 job. ARGV: skew, prefix, id, index, index ...
-- -> {'ok'} | {'gone'} | {'running'} it has not ended | {'not_closed'} its end is still being told
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
