-- Write records of shards that a round is about to have, a chunk at a time, under the job's lease. Nobody sees them
-- before `plan`: their indexes are beyond the job's `shards`. A repeated prepare overwrites them; `drafted` is how far
-- they go, so that the records of a job that ends without them expire, too.
-- KEYS: 1 job, 2 job, 3 due, 4 clock
-- ARGV: 1 skew (s), 2 prefix, 3 job id, 4 token, 5 and on: a shard each (JSON [index, field, value ..])
-- -> {'ok'} | {'lost'} | {'cancel'} the job is being cancelled: nothing was written
local now = clock(ARGV[1])
local job = KEYS[1]
if get(job, 'last') == ARGV[4] then return { 'ok' } end -- repeated by the client after a lost reply; the round is planned
if not holds(job, ARGV[4], now) then return { 'lost' } end
if flag(job, 'cancel') == 1 then return { 'cancel' } end
local first, most = tonumber(get(job, 'shards') or '0'), tonumber(get(job, 'drafted') or '0')
for i = 5, #ARGV do
  local fields = cjson.decode(ARGV[i])
  local index = tonumber(table.remove(fields, 1))
  if index >= first then
    local key = ARGV[2] .. 'shard:' .. ARGV[3] .. ':' .. index
    redis.call('DEL', key)
    redis.call('HSET', key, 'planned_at', num(now), unpack(fields))
    most = math.max(most, index + 1)
  end
end
redis.call('HSET', job, 'drafted', most)
return { 'ok' }
