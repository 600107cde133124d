-- Take shards out of the index of unanswered creates that are in it no longer by right: a worker of an older version has
-- answered them, or their records are gone.
-- KEYS: 1 unanswered:ACCOUNT, 2 awaiting_walk:ACCOUNT, 3 clock
-- ARGV: 1 skew (s), 2 prefix, 3 members, newline between them
-- -> {members that stay (count)}
local stay = 0
for member in string.gmatch(ARGV[3], '[^\n]+') do
  local id, index = string.match(member, '^(.*)/(%d+)$')
  local rec, job = ARGV[2] .. 'shard:' .. id .. ':' .. index, ARGV[2] .. 'job:' .. id
  if redis.call('EXISTS', rec) == 1 and redis.call('EXISTS', job) == 1 and note_unanswered(ARGV[2], rec, job, member) then
    stay = stay + 1
  else
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZREM', KEYS[2], member)
  end
end
-- the files of a record that is gone are known from it alone; nobody waits any more, so all of them may go
local account = string.sub(KEYS[1], #ARGV[2] + #'unanswered:' + 1)
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('UNLINK', ARGV[2] .. 'unanswered_files:' .. account) end
return { stay }
