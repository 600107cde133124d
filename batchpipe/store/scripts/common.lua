-- Prepended to every script, after `hashes.lua`; lines that are only a comment are left out on the way to Redis (see __init__.py).
--
-- THE DICTIONARY: all that is kept in Redis.
--
-- Units
--   at     seconds since 1970 in our time (see clock()), as decimal text; scripts write 6 digits
--   s      seconds, as decimal text
--   count  a whole number
--   bytes  a whole number
--   flag   '1' for yes; '0' or absent for no
--   text   as it is
--   JSON   [..] a list, {..} an object; `problem` is {"code": .., "message": ..}
-- What is null in a struct of model/records.py has no field. Scripts are given NIL for a field that is to be removed.
--
-- Keys, each after the prefix. JOB is a job's id; INDEX a shard's number in its job, from 0. A member names a record in
-- sorted sets and texts: 'JOB/INDEX', with -1 as the INDEX of the job itself.
-- Of admission (admission.lua): KIND is tokens, batches, creations or uploads; MODEL the name of a model, a digest of an
-- unusual one, or '-' where rows name none; ROOM 'ACCOUNT:KIND', of tokens 'ACCOUNT:KIND:MODEL'; LINE 'ACCOUNT:MODEL'.
--   job:JOB          hash     the job, see below; lives until JOB_TTL_DAYS after the job was closed
--   shard:JOB:INDEX  hash     a shard, see below; lives as long as its job, and while that is not yet restored JOB_TTL_DAYS
--   batch:BATCH      text     member of the shard that made or adopted this batch of the provider; expires with the shard
--   output:NAME      text     JOB whose output this path or URL is; until that is closed
--   key:KEY          text     JOB that was submitted last under this idempotency key; expires with the job
--   alias:JOB        text     JOB that this id, handed out before its key was found taken, stands for; 60 days more than
--                             JOB_TTL_DAYS
--   log:JOB          stream   events for people: event (text), data (JSON {..}); ids are Redis' own time (milliseconds);
--                             about 2,000 of them. The submit, each round and events of trouble let it live 60 days, the
--                             job's closing JOB_TTL_DAYS
--   jobs             zset     JOB by its created_at (at); the sweep takes out those whose records have expired
--   jobs:STATE       zset     the same, of the jobs in this state; `cancelling`: those that are to end and have not
--   job_ids          zset     JOB by 0, so that ids can be found by their beginning; goes with `jobs`
--   due              zset     member by the time when the sweep takes its message for lost (at): next_at and a margin, or
--                             the end of its lease. A running job is in it only while `due_from` is set; what else is not
--                             done, always
--   to_republish     zset     'JOB/WHEN' by the index of the next shard that the sweep publishes again (count); WHEN:
--                             always, waiting or person. Gone when all are published
--   accounts         zset     name of an account by its latest intent to create a batch, or restore of a job (at); never
--                             expires
--   taken            zset     name of a queue by the latest message of ours that was taken from it (at); 2 days
--   listening        zset     queue, newline, name of a worker that listens on it, by when it last said so (at); 35 s
--   pulses           hash     of beat's messages: NAME:sent, NAME:taken, NAME:since (at), see `BeatTimes`; never expires
--   schedules        hash     NAME/FINGERPRINT the runs of this definition are handled up to then (at);
--                             NAME/FINGERPRINT/looked somebody last looked for its runs (at); NAME//at the last run was
--                             meant for then (at); NAME//last that run (JSON {at, job, error}); never expires, but for
--                             definitions that were replaced
--   pause:ACCOUNT    hash     until (at), seconds (s): how long in all, code, message (text): why; lives 1 day
--                             longer than the pause
--   late:ACCOUNT     zset     of these, members whose batch is said to be late, by since when (at); never expires
--   judged:ACCOUNT   text     when the sweep last looked for late ones (at); 1 hour
--   pace:ACCOUNT:MODEL  hash  turnarounds of the batches of a model: DAY:took, DAY:queued -> JSON {bin: count}; DAY: days
--                             since 1970 (count); bin: see pace_bin(); eight days, and 9 days after the first of the last
--   paces:ACCOUNT    zset     MODEL of those by its first turnaround of the latest day (at), 200 at most; '': all further models, and
--                             shards without one; 9 days after the last
--   inflight:ACCOUNT zset     member of each shard that is `created`, by the time when its batch was made (at): the
--                             provider's word, else ours; never expires
--   webhook:ID       text     '1': the webhook of this id has had its effect; 1 hour
--   news:ACCOUNT     zset     batch that a webhook told of and no record knew, by then (at); 10,000 at most, 1 hour
--   webhooks:ACCOUNT hash     seen (at): the latest verified webhook; ours (at): the latest about a batch of a record;
--                             silent (text), silent_at (at): a batch whose end was seen before a webhook told of it, until
--                             that comes, see note_unannounced(); never expires
--   admitting        zset     ACCOUNT by when it last had admissions (at, ten minutes off at most); 2 days, and while
--                             something is held
--   rebuilt:ACCOUNT  text     '1': what the account's shards hold is being compared with the records, or was; 60 s
--   rooms:ACCOUNT    zset     KIND or KIND:MODEL that was used, by when (at, as above); 2 days, and while something is held
--   room:ROOM        hash     of one resource, see below; goes when the sweep takes it out of rooms:ACCOUNT
--   held:ROOM:PART   hash     member -> what it holds (count); after its call 'count+count': and what was at the provider
--                             with it. PART: 0 to 31, by the member; as long as something is in it
--   used:ROOM        hash     of creations and uploads: number of a slot (a 60th of the span, from 1970) -> made in it (count);
--                             expires with the span
--   lines:ACCOUNT    zset     MODEL whose line somebody waits in, by the latest grant from it (at); while somebody waits
--   line:LINE        zset     JOB that has waiting shards, by its turn: virtual time (tokens / 1000) - priority * 1e12
--   shards:LINE:JOB  zset     INDEX of a waiting shard by itself; one that comes back after a refusal by itself - 1e9
--   raise:LINE       zset     JOB in the line by the time when its priority is raised (at)
--   served:LINE      zset     JOB that waits no more by its virtual time; until that of the line has reached it
--   fair:LINE        hash     of the line as a whole, see below; while somebody waits
--   granted          list     members that were granted something and are not yet told of; 10,000 at most
--   ratio:MODEL      hash     bytes and tokens (count) of requests and what they came to; halved now and then; 30 days
--   unanswered:ACCOUNT zset   member of each shard with a create call that has no clear answer, by the earliest time that
--                             its first call may have had at the provider (at); never expires
--   awaiting_walk:ACCOUNT zset  member of those that wait for a walk through the account's list by walk_from (at); never
--                             expires
--   unanswered_files:ACCOUNT hash  id of an input file of these shards -> member; never expires
--   walks:ACCOUNT    list     JSON of the latest walks through the account's list while creates were unanswered, the
--                             latest first, 16 at most: see `NotedWalk` in pipeline/noted_walks.py; lives 1 day
--   walk_failed:ACCOUNT text  when the latest walk for an unanswered create failed (at), a space, and, if the provider cannot
--                             list, its words; 1 minute
--   rate:ACCOUNT     hash     token bucket of reads at the provider: tokens (decimal text) that were left at (at), below 0 what
--                             is booked; look_at (at): the next page of a look; kept_at (at): its life was last renewed;
--                             70 minutes at least after the last read
--   listed:ACCOUNT   hash     looks at the account's batches: begun (at): the last one; token (hex), lease_until (at): while
--                             one is under way; done (at): when the last one began that left nothing to do behind it;
--                             looked (at): when the last one began that met what is in flight, until (at): up to then
--                             polls may be parked; whole (at), calls (count): the last one that was whole; ranks (JSON
--                             {read_at: at, parts: [[at, at, count, count] ..]}): how many batches the list has between
--                             two times, not in flight and in flight; last (token), ended (at): the one that last
--                             ended; never expires
--   watched:ACCOUNT  text     '1': somebody watches a job of the account; 30 s
--   notification:ID  hash     a notification for one target, see below; lives until it was delivered and 2 days, or given up
--                             and 30
--   outbox           zset     ID of each that is not delivered, by its next try (at); 10,000 at most
--   outbox:dead      zset     ID of each that was given up, by when that was (at); the newest 1,000
--   outbox:asked:QUEUE text   '1': a worker of this queue was asked to send what is due; 10 s
--   told:HEX         text     when this trouble of a job, or pause of an account, was told to this target (at); 6 hours
--   metrics          hash     JSON [name of a counter, values of its labels ..] -> count or s (decimal text); never expires
--   swept            text     when a sweep last came to its end (at); never expires
--   pruned           hash     name of a list of jobs -> how far the sweep has looked for expired ones in it (count)
--   check            -        never there: LPUSHX on it asks whether Redis would take a write
--   clock            hash     seen (at), ahead (s), back_at (at), back_by (s), backs (count), leap_at (at), leap_by (s):
--                             see clock(); pauses_until (at): by then all pauses of accounts have ended; never expires
--
-- Fields of both, jobs and shards
--   v              count    version of the record's form
--   stage          text     of a job its state: pending, preparing, running, finalizing, succeeded, partial, failed,
--                           cancelled; of a shard: planned, uploaded, created, ended, collected
--   epoch          count    one more whenever somebody publishes again; a message of another epoch is void
--   next_at        at       its message is meant to run
--   wait           s        countdown of that message
--   token          text     of the lease (hex); absent: nobody holds it
--   lease_until    at       the lease ends, unless it is renewed
--   lease_end      at       deadline of the turn: no renewal beyond it, unless the turn makes progress
--   last           text     token of the turn or call that last ended; whoever repeats it gets the same answer. Only here
--   republish      flag     somebody wanted it to run while a lease lived: its holder publishes again
--   tries          count    claims of this stage that ended in unforeseen trouble
--   lost           count    claims of this stage whose holder vanished
--   overran        count    of these, those that had met their deadline
--   pubs           count    re-publications of this stage since the last claim
--   task_ids       JSON     [Celery ids of its messages]
--   trouble        JSON     problem: why it makes no progress just now
--   gone_at        at       since then a file of its workspace is missing
--   gone_seen      at       that was last found
--   to_land        -        of a shard a flag: it was given up and is to be landed; of a job the count of these. Only here
--   created_at     at       of a job: it was recorded; of a shard: its batch was recorded
--   ended_at       at       of a job: its end was fixed; of a shard: its batch was seen to be final
--   round          count    of a job: its rounds so far; of a shard: the one that it is part of
--   bytes          bytes    of a job: its input, where that was known at its submit; of a shard: its requests
--   ok             count    rows with a usable answer
--   failed         count    rows that were refused or failed
--   missing        count    rows of which nothing came
--   invalid        count    of the failed ones, those with an answer that is not what was asked for
--   usage          JSON     {kind of token: count}
--   incomplete     JSON     {reason: count} of the rows that are ok and ended early
--   answered       count    rows that are answered: of a job, the sum over its shards
--   reasons        JSON     {reason: count} of the rows that are not ok; '~' and the reason: they are sent again
--   error          JSON     problem: why it failed, or was given up
--
-- Fields of a job
--   id             text     JOB
--   name           text     for people
--   account        text     name of the account in the settings
--   endpoint       text     path of the provider's API
--   completion_window  text  such as 24h
--   metadata       JSON     {text: text} for the batch
--   extra          JSON     {..} further arguments of the create call
--   tags           JSON     {..} the user's
--   key            text     idempotency key
--   queue          text     Celery queue of its messages
--   input          text     path or URL
--   inputs         JSON     [paths, URLs and patterns] where there are several
--   spooled        flag     the input is our own copy
--   recipe         text     digest of the recipe in its workspace; '': rows are requests, and any answer counts
--   rows_file      text     the data rows of its input, in the workspace
--   formats        JSON     [csv, parquet]: tables of results
--   excel          flag     a CSV is safe to open in a spreadsheet
--   retry_of       text     JOB whose rows that are not ok it sends again
--   retries        JSON     [JOB ..] that do so with its own, the oldest first
--   retried        JSON     {outcome: count}: rows, those of ended retries in place of its own
--   input_here     flag     only this host works on the job
--   output         text     path or URL
--   owns           JSON     [names of its output: NAME of output:NAME]
--   results        text     where its result files lie; '': nowhere
--   real           text     the same without links
--   written        JSON     [[bytes, bytes] ..] of its two result files, each time that they were put in place
--   aside          text     JOB whose results it moves out of its output
--   copied         flag     those are at their new place
--   workspace      text     path or URL
--   order_files    JSON     [a file in the workspace for each round]
--   max_rows       count    of a shard
--   max_bytes      bytes    of a shard
--   attempts       count    rounds at most
--   priority       count    of its shards where they wait for room: the higher goes first; may be below 0
--   on_done        JSON     {..} Celery signature that is sent at its end
--   notify_sites   JSON     [names of the receivers of its end]
--   notify         JSON     [targets that are told of it]
--   cancel         flag     it is to end; never taken back
--   hold           JSON     problem: why nothing more is sent until a person decides
--   hold_at        at       since then
--   send_no_more   flag     no further batch is made; what is there is landed
--   notified       flag     job.json is written, on_done is sent
--   notify_attempts   count  how often notifying its receivers was deferred
--   receiver_errors   count  of these, how often a receiver raised
--   cleanup_attempts  count  how often deleting its files at the provider was deferred
--   closed         flag     nothing is left to do: its output is free, its records expire
--   shards         count    planned so far: the next INDEX
--   drafted        count    INDEX after the last shard that `draft_shards` wrote. Only here
--   due_from       count    INDEX of the next shard that `make_due` makes due; absent: all are. Only here
--   due_now        flag     `make_due` lets the records live on, and makes them due at once. Only here
--   open           count    shards of this round that are not collected
--   total          count    rows of the input
--   answered_at    at       counts of a shard were last read
--   answered_before  JSON   [[at, count] ..]: so many were answered then; two at most, five minutes apart
--   preparing_at   at       its state became that; so for running, finalizing
--   running_at     at
--   finalizing_at  at
--   STATE_at       at       the same of the four states at its end. Only here
--
-- Fields of a shard
--   job            text     JOB
--   index          count    INDEX
--   refused_once   flag     its rows were in a batch that was refused because of other rows
--   file           text     its requests, in the workspace
--   rows           count
--   model          text     that all of its requests name
--   try            count    from 1; job:index:try is the key of its create calls, by which its batch is known
--   file_id        text     its input file at the provider
--   uploads        count    upload calls begun
--   unused_files   JSON     [ids of files that no batch was made from]
--   unfound        count    how often in a row the provider did not know its file or batch
--   unseen_at      at       since then the account's API key does not see its batch or file
--   refused_at     at       since then a refusal that may pass is waited out
--   backoff        count    how often in a row it was deferred
--   intent_at      at       first intent to create under the current key
--   intent_ahead   s        how much our time may have been ahead of the provider's then
--   calls          JSON     [tokens of the turns whose create call has no clear answer], 20 at most
--   latest_call    text     the last of them; else a worker of an older version made it, and the next two are not about it
--   call_over_at   at       from then on that call is not under way any more, whether its worker lives or not
--   called_as      text     whose key all of them were made with: a digest (`Provider.identity`); absent: not known
--   empty_at       at       first search after the latest call that found no batch
--   walk_from      at       it waits for a walk through the account's list that began then or later
--   named          JSON     {id of a batch that unclear answers named: whether they were about it}, 8 at most
--   other_at       at       since then create calls are answered with batches of other shards
--   refusal        JSON     problem: a clear no while an older call is unanswered
--   batch_id       text     its batch
--   spent          JSON     [batches that were given up on purpose]
--   status         text     the provider's word for its batch
--   counts         JSON     {total, completed, failed: count}, the provider's
--   snapshot_at    at       status and counts were read
--   news_at        at       a webhook said that its batch has ended
--   over_at        at       a final status of its batch was first recorded
--   made_at        at       its batch was made, by the provider's clock; so for began to run, ended
--   in_progress_at at
--   finished_at    at
--   expires_at     at       its completion window ends, as the provider says
--   stalled_at     at       since then its batch is said to be late
--   stall          JSON     problem: how it is late
--   end_seen       flag     status, counts, files and errors are those of one look at the ended batch
--   news           flag     the provider has said of its own accord that its batch has ended
--   slot_at        at       its next look at the provider is booked for then
--   parked         flag     it has no message: looks watch its batch, and its due time is the safety net
--   park_until     at       no look moves its due time beyond that
--   cancel_sent    flag     the provider was asked to cancel its batch
--   cancelled_elsewhere  flag  its batch was cancelled, and not by us
--   landing        flag     it was given up, and its batch is read again
--   overdue_at     at       it was found that the batch has not ended after its window
--   output_file_id text     result file at the provider
--   error_file_id  text     the other one
--   errors         JSON     [{code, message, line, param} ..] of its batch
--   late_at        at       since then files are waited for that lag what the provider counts
--   fetched        JSON     {id of a result file: length and digest of what came of it}
--   resend         count    rows that are not ok and worth sending again
--   needs          JSON     {KIND: count} that it asked for at its admission
--   waits_since    at       it waits in its line since then
--   admitted_at    at       it was given what it needs
--   full           JSON     {kind, limit}: the provider's queue was full; goes in the script that ends the turn
--   cost           pico-dollars  of its rows at list prices: a whole number; absent: not known
--   collected_file text     its outcomes, in the workspace
--   planned_at     at       its stage became that; so for uploaded, collected (created_at, ended_at: above)
--   uploaded_at    at
--   collected_at   at
--
-- Fields of a room
--   model          text     of tokens: the model's name, 200 characters of it
--   sum            count    all that is held
--   sent           count    the part of it for which a call was made
--   sum<PART>, sent<PART>  count  the same of one part
--   limit          count    as the settings say
--   learned        count    limit that refusals have taught
--   said           count    the number in the provider's words
--   learned_at     at       the latest refusal
--   try_at         at       one more shard than `learned` allows may go then
--   try_wait       s        pause between two of those
--   trying         text     member of the latest of them
--   fails          count    refusals in a row while nothing else was held
--   start          count    where no limit is known, so much goes at once
--   start_at       at       more was wanted then; doubled a minute later
--   retry_at       at       before that nobody goes, after such a refusal
--   single         flag     one has gone since that refusal
--   alone          text     member of the latest that was refused while nothing else was held
--   noted_at       at       it was last noted in rooms:ACCOUNT, and its account in `admitting`
--
-- Fields of a line as a whole
--   now            tokens   its virtual time (decimal text)
--   waiting        count    shards that wait in it
--   head           text     member of the first, which did not fit
--   blocked        text     KIND that it lacks
--   since          at       it does not fit since then
--   passed         count    shards that went before it meanwhile
--
-- Fields of a notification
--   type           text     job.ended, job.trouble or account.paused
--   target         text     name in the settings, or a URL
--   account        text     name of the account
--   job            text     JOB
--   body           JSON     what is sent; not once it is delivered
--   due_at         at       the next try
--   tries          count    not those of processes that lack what it takes
--   since          at       it was told to be sent again. Only here
--   delivered_at   at       Only here
--   dead           flag     it was given up
--   (created_at, error: a text here, as above)
--
-- How to read a script's first lines. KEYS: what it is about; where that is a job, `record` and `job` are the same key; the
-- last is always `clock`. ARGV: 1 is always the skew (s), 0 but in tests, which move the time by it; `lease` is how long a
-- lease is; `fields` are field, value, field, value .. to the end. -> what it answers: at and s are text with 6 digits,
-- republish and cancel 0 or 1, other numbers integers; what is read from a record is as it is there.
--
-- END OF THE DICTIONARY
local NIL = '\0nil'
local FINAL = { completed = true, failed = true, expired = true, cancelled = true, canceled = true }
local ENDED = { succeeded = true, partial = true, failed = true, cancelled = true }

local function num(value)
  return string.format('%.6f', value)
end

-- how much our time is ahead of Redis' clock, once clock() was called; until when some account is paused, at most
local ahead, pauses_until = 0, 0

-- Our time: Redis' clock, but it never goes back. The hash `clock` keeps the highest time `seen` (written once a second)
-- and how far `ahead` of Redis' clock we are since that was set back. Our time then goes on from where it was, a twentieth
-- slower until Redis' clock has caught up, so leases, due times and marks keep their meaning, and the countdown of a
-- message on a host's clock stays within what claim allows. Less than five seconds are waited for. A leap forward cannot be
-- told from an hour without calls, so it is only noted: see the search for unanswered creates.
-- `peek`: write nothing, for calls that must work on a Redis that is full.
local function clock(skew, peek)
  local t = redis.call('TIME')
  local raw = tonumber(t[1]) + tonumber(t[2]) / 1000000 + tonumber(skew)
  local key = KEYS[#KEYS]
  local known = redis.call('HMGET', key, 'seen', 'ahead', 'leap_at', 'leap_by', 'pauses_until')
  pauses_until = tonumber(known[5] or '0')
  local seen = tonumber(known[1] or raw)
  ahead = tonumber(known[2] or 0)
  local now = raw + ahead
  if raw >= seen then
    ahead = 0 -- it has caught up
    now = raw
  elseif now < seen - 5 then
    if not peek then
      redis.call('HSET', key, 'back_at', num(seen), 'back_by', num(seen - now))
      redis.call('HINCRBY', key, 'backs', 1)
    end
    ahead = seen - raw
    if not peek then redis.call('HSET', key, 'ahead', num(ahead)) end
    return seen
  elseif now < seen then
    return seen
  else
    ahead = math.max(0, ahead - (now - seen) / 20)
    now = raw + ahead
  end
  if not peek and (known[1] == false or now - seen >= 1) then
    redis.call('HSET', key, 'seen', num(now), 'ahead', num(ahead))
    local leap = now - seen
    -- a smaller one does not hide a larger one
    if leap > 30 and (leap >= tonumber(known[4] or 0) or now - tonumber(known[3]) > 3600) then
      redis.call('HSET', key, 'leap_at', num(now), 'leap_by', num(leap))
    end
  end
  return now
end

local function get(key, field)
  local value = redis.call('HGET', key, field)
  if value == false then return nil end
  return value
end

-- field, value, field, value ... from ARGV[first] on; NIL removes the field
local function write(key, first)
  for i = first, #ARGV, 2 do
    if ARGV[i + 1] == NIL then
      redis.call('HDEL', key, ARGV[i])
    else
      redis.call('HSET', key, ARGV[i], ARGV[i + 1])
    end
  end
end

local function leased(key, now)
  local ends = get(key, 'lease_until')
  return ends ~= nil and tonumber(ends) > now
end

local function holds(key, token, now)
  return get(key, 'token') == token and leased(key, now)
end

local function release(key)
  redis.call('HDEL', key, 'token', 'lease_until', 'lease_end')
end

-- how long after next_at the sweep considers the message lost: doubled with each re-publication, at most 30 minutes
local function margin(key, lease)
  local pubs = tonumber(get(key, 'pubs') or '0')
  return math.min(tonumber(lease) * 2 ^ math.min(pubs, 20), math.max(1800, tonumber(lease)))
end

-- `due`: nil if a claim follows, which makes it due
local function set_due(key, due, member, lease, now, wait)
  redis.call('HSET', key, 'next_at', num(now + wait), 'wait', num(wait))
  if due then redis.call('ZADD', due, num(now + wait + margin(key, lease)), member) end
end

local function flag(key, field)
  return get(key, field) == '1' and 1 or 0
end

local function set_stage(key, stage, now)
  if get(key, 'stage') ~= stage then
    redis.call('HSET', key, 'stage', stage, stage .. '_at', num(now), 'tries', '0', 'lost', '0', 'overran', '0', 'pubs', '0')
  end
end

-- a job's state also decides in which list it stands
local function set_state(key, prefix, id, state, now)
  local old = get(key, 'stage')
  set_stage(key, state, now)
  local created = get(key, 'created_at') or num(now)
  if old and old ~= state then redis.call('ZREM', prefix .. 'jobs:' .. old, id) end
  redis.call('ZADD', prefix .. 'jobs:' .. state, created, id)
  if ENDED[state] and flag(key, 'cancel') == 1 then redis.call('ZREM', prefix .. 'jobs:cancelling', id) end
end

local function in_flight(prefix, job)
  return prefix .. 'inflight:' .. (get(job, 'account') or 'default')
end

-- How long after their latest sign of life webhooks are relied on, how late one may be, and for how long one that did not
-- come counts (s).
local TRUST, LATE, DOUBT = 86400, 60, 600

local function is_overdue(silent_at, now)
  return silent_at and now - tonumber(silent_at) > LATE
end

-- Whether the ends of batches come as webhooks, so that nobody need look often.
local function trusts(ours, silent_at, now)
  return ours and now - tonumber(ours) < TRUST and not is_overdue(silent_at, now)
end

-- A webhook has told of a batch of ours. If one was missed before, that is forgotten when it comes, or after a while.
local function note_news(prefix, account, batch, now)
  local key = prefix .. 'webhooks:' .. account
  redis.call('HSET', key, 'ours', num(now))
  local silent_at = get(key, 'silent_at')
  if silent_at and (get(key, 'silent') == batch or now - tonumber(silent_at) > DOUBT) then
    redis.call('HDEL', key, 'silent', 'silent_at')
  end
end

-- An end was seen, and no webhook had told of it, while they are relied on: the first such batch is remembered until its
-- webhook comes. If that does not come within LATE, looks are as frequent as without webhooks.
local function note_unannounced(prefix, rec, job, now)
  local batch = get(rec, 'batch_id')
  if not batch or not FINAL[get(rec, 'status')] or get(rec, 'news_at') then return end
  local key = prefix .. 'webhooks:' .. (get(job, 'account') or 'default')
  local known = redis.call('HMGET', key, 'ours', 'silent_at')
  if known[2] or not trusts(known[1], known[2], now) then return end
  redis.call('HSET', key, 'silent', batch, 'silent_at', num(now))
end

-- Times are kept in bins, each a fifth wider than the one before: bin b holds those from 1.2^b seconds on, the last one
-- all that are longer. model/pace.py reads them.
local function pace_bin(seconds)
  return math.min(math.floor(math.log(math.max(seconds, 1)) / math.log(1.2)), 80)
end

-- The sketch of a model; one of many models beyond 200 shares that of ''. One that has a turnaround of this day is known.
local function pace_key(prefix, account, model, day, now)
  local key = prefix .. 'pace:' .. account .. ':' .. model
  if get(key, day .. ':took') then return key end
  local models = prefix .. 'paces:' .. account
  if not redis.call('ZSCORE', models, model) and redis.call('ZCARD', models) >= 200 then
    redis.call('ZREMRANGEBYSCORE', models, '-inf', num(now - 777600))
    if redis.call('ZCARD', models) >= 200 then model = '' end
  end
  redis.call('ZADD', models, num(now), model)
  redis.call('EXPIRE', models, 777600)
  return prefix .. 'pace:' .. account .. ':' .. model
end

local function count_pace(key, kind, seconds, day)
  local name = string.format('%d:%s', day, kind)
  local found = get(key, name)
  if not found then -- the first one of a day: days that count no more go
    for _, old in ipairs(redis.call('HKEYS', key)) do
      local on = tonumber(string.match(old, '^(%d+):') or '')
      if not on or on < day - 7 or on > day + 1 then redis.call('HDEL', key, old) end
    end
  end
  local bins = cjson.decode(found or '{}')
  local bin = string.format('%d', pace_bin(seconds))
  bins[bin] = (bins[bin] or 0) + 1
  redis.call('HSET', key, name, cjson.encode(bins))
  if not found then redis.call('EXPIRE', key, 777600) end
end

-- How long a batch took, by the provider's clock where that tells, else as we saw it. A batch that failed did not run, and
-- one that was cancelled was cut short.
local function count_turnaround(prefix, rec, account, now)
  local shard = redis.call('HMGET', rec, 'status', 'model', 'made_at', 'in_progress_at', 'finished_at', 'created_at')
  if shard[1] ~= 'completed' and shard[1] ~= 'expired' then return end
  local made, began = tonumber(shard[3] or ''), tonumber(shard[4] or '')
  local finished, created = tonumber(shard[5] or ''), tonumber(shard[6] or '')
  local took = made and finished and finished - made
  if not took or took < 0 or took > 2678400 then took = created and now > created and now - created end
  if not took then return end
  local day = math.floor(now / 86400)
  local key = pace_key(prefix, account, shard[2] or '', day, now)
  count_pace(key, 'took', took, day)
  if made and began and began >= made and began - made <= took then count_pace(key, 'queued', began - made, day) end
end

-- filled by admission.lua
local admission = {}

-- Called by every script that may have recorded a final status, or a shard that leaves `created`: what follows from the
-- end of a batch, once for each batch.
local function note_end_of_batch(prefix, rec, job, member, now)
  admission.release_ended(prefix, rec, job, member, now)
  if redis.call('HSETNX', rec, 'over_at', num(now)) == 0 then return end
  note_unannounced(prefix, rec, job, now)
  local account = get(job, 'account') or 'default'
  if get(rec, 'stalled_at') then redis.call('ZREM', prefix .. 'late:' .. account, member) end
  pcall(count_turnaround, prefix, rec, account, now) -- numbers for people: what they meet must not stop a turn
end

-- the pause of an account: left of it (s), code, message; nothing if there is none. `time` says our time
local function pause_of(key, time)
  local found = redis.call('HMGET', key, 'until', 'code', 'message', 'seconds')
  if found[1] == false then return end
  local left = math.min(tonumber(found[1]) - time(), tonumber(found[4]))
  if left > 0 then return num(left), found[2] or '', found[3] or '' end
end

-- the same for a script that has read the clock, which says whether any account may be paused
local function pause_now(prefix, account, now)
  if now >= pauses_until then return end
  return pause_of(prefix .. 'pause:' .. account, function() return now end)
end

-- Called by every script that may have written counts of a batch, or collected a shard: the job's sum of answered rows, so
-- that a list of jobs reads no shards. `before`: what that sum has of the shard. Where nothing has changed, the time is
-- written once a minute.
local function add_answered(rec, job, before, now)
  local shard = redis.call('HMGET', rec, 'stage', 'counts', 'rows', 'answered')
  local after = tonumber(shard[4]) or 0 -- of a collected one the step has written it
  if shard[1] ~= 'collected' then
    local counts = cjson.decode(shard[2] or '{}')
    after = (tonumber(counts.completed) or 0) + (tonumber(counts.failed) or 0)
    after = math.max(0, math.min(after, tonumber(shard[3] or '0')))
    if after ~= before then redis.call('HSET', rec, 'answered', after) end
  end
  local known = redis.call('HMGET', job, 'id', 'answered_before', 'answered_at')
  if not known[1] or (after == before and now - tonumber(known[3] or '0') < 60) then return end
  local total = redis.call('HINCRBY', job, 'answered', after - before)
  local marks, fields = cjson.decode(known[2] or '[]'), { 'answered_at', num(now) }
  if #marks == 0 or now - marks[#marks][1] >= 300 then
    table.insert(marks, { now, total })
    if #marks > 2 then table.remove(marks, 1) end
    fields[3], fields[4] = 'answered_before', cjson.encode(marks)
  end
  redis.call('HSET', job, unpack(fields))
end

-- The same for the reasons of the rows that are not ok, when a shard is collected.
local function add_reasons(rec, job)
  local found = get(rec, 'reasons')
  if not found then return end
  local total, kinds = cjson.decode(get(job, 'reasons') or '{}'), 0
  for _ in pairs(total) do kinds = kinds + 1 end
  for reason, count in pairs(cjson.decode(found)) do
    if not total[reason] and kinds >= 40 then reason = string.sub(reason, 1, 1) == '~' and '~- other' or '- other' end
    if not total[reason] then kinds = kinds + 1 end
    total[reason] = (total[reason] or 0) + count
  end
  if kinds > 0 then redis.call('HSET', job, 'reasons', cjson.encode(total)) end
end

-- Called by every script that may have changed it: whether a shard has a create call without a clear answer, and, for lists
-- that show no metadata, which input files tell that a batch is its own. `waited`: false if it is known that it waits for no walk.
local function note_unanswered(prefix, rec, job, member, waited)
  local account = get(job, 'account') or 'default'
  local zset, files = prefix .. 'unanswered:' .. account, prefix .. 'unanswered_files:' .. account
  local awaiting = prefix .. 'awaiting_walk:' .. account
  local intent = get(rec, 'stage') == 'uploaded' and not get(rec, 'batch_id') and tonumber(get(rec, 'intent_at') or '')
  if not intent and redis.call('ZREM', zset, member) == 0 then return false end
  local ids = cjson.decode(get(rec, 'unused_files') or '[]')
  table.insert(ids, get(rec, 'file_id'))
  if intent then
    local new = redis.call('ZADD', zset, num(intent - tonumber(get(rec, 'intent_ahead') or '0')), member) == 1
    for _, id in ipairs(ids) do redis.call('HSET', files, id, member) end
    local from = get(rec, 'walk_from')
    if from then
      redis.call('ZADD', awaiting, from, member)
    elseif not new then -- a new one waits for no walk
      redis.call('ZREM', awaiting, member)
    end
    return true
  end
  if waited ~= false then redis.call('ZREM', awaiting, member) end
  for _, id in ipairs(ids) do
    if redis.call('HGET', files, id) == member then redis.call('HDEL', files, id) end
  end
  return false
end

-- The job that a new one retries knows it: rec is the new one's.
local function note_retry(prefix, rec, id)
  local parent = get(rec, 'retry_of') or ''
  if parent == '' or redis.call('EXISTS', prefix .. 'job:' .. parent) == 0 then return end
  local known = cjson.decode(get(prefix .. 'job:' .. parent, 'retries') or '[]')
  for _, one in ipairs(known) do
    if one == id then return end
  end
  known[#known + 1] = id
  redis.call('HSET', prefix .. 'job:' .. parent, 'retries', cjson.encode(known))
end

-- claim an output under all of its names (a JSON list), or none; returns the other job, not closed, that has one, and its stage
local function claim_output(prefix, names, id)
  names = cjson.decode(names)
  if #names == 1 and redis.call('SETNX', prefix .. 'output:' .. names[1], id) == 1 then return nil end
  for _, name in ipairs(names) do
    local owner = redis.call('GET', prefix .. 'output:' .. name)
    local job = prefix .. 'job:' .. (owner or '')
    local stage = owner and get(job, 'stage')
    if stage and owner ~= id and get(job, 'closed') ~= '1' then return owner, stage end
  end
  for _, name in ipairs(names) do redis.call('SET', prefix .. 'output:' .. name, id) end
  return nil
end

-- make a job finalizing and due (`due`: as of set_due()); returns the new epoch, under which the caller publishes merge
local function finalize(key, prefix, id, due, member, lease, now, task_ids)
  set_state(key, prefix, id, 'finalizing', now)
  local epoch = redis.call('HINCRBY', key, 'epoch', 1)
  redis.call('HSET', key, 'task_ids', task_ids)
  redis.call('HDEL', key, 'republish')
  set_due(key, due, member, lease, now, 0)
  return epoch
end

-- let the records of a job's shards expire, from the first of these indexes to the last
local function expire_shards(prefix, id, first, last, ttl)
  for index = first, last do
    local key = prefix .. 'shard:' .. id .. ':' .. index
    local shard = redis.call('HMGET', key, 'batch_id', 'spent')
    if shard[1] then redis.call('EXPIRE', prefix .. 'batch:' .. shard[1], ttl) end
    for _, spent in ipairs(cjson.decode(shard[2] or '[]')) do redis.call('EXPIRE', prefix .. 'batch:' .. spent, ttl) end
    redis.call('EXPIRE', key, ttl)
  end
end

-- events for the job's log: [[event, data] ..], '' for none. They are for people, so trouble with them stops no turn
local function note_events(prefix, id, text)
  if text == '' then return end
  for _, one in ipairs(cjson.decode(text)) do
    redis.pcall('XADD', prefix .. 'log:' .. id, 'MAXLEN', '~', '2000', '*', 'event', one[1], 'data', one[2])
  end
end

-- let the sweep publish a job's shards again, from an index on
local function republish_rest(prefix, id, when, first, shards)
  if shards > first then redis.call('ZADD', prefix .. 'to_republish', first, id .. '/' .. when) end
end
