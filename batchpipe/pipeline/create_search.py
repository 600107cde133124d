"""After a create call without a clear answer: what it made, or when another one may be made.

Another one is made after two walks through the provider's list, a grace period apart, that have not met a batch of it.
Whose walks they are does not matter: a walk serves all shards of the account.
"""

from __future__ import annotations

from typing import Any

from batchpipe.errors import CREATE_UNKNOWN, Gone, Refused
from batchpipe.model.provider import Batch, ProviderReads
from batchpipe.model.records import LONGEST_PAUSE, JobRecord, Move, Problem, ShardRecord, Stage
from batchpipe.model.refusals import believed_at, unseen
from batchpipe.pipeline.batch_search import look_at_named, read_one_by_one, since_of
from batchpipe.pipeline.create_actions import CANCELLED, HELD_BACK, CreateActions, Ending, GiveUp, Over, Settled
from batchpipe.pipeline.noted_walks import NotedWalk, asked_at, is_seen_by

#: Pause before the first look for a batch after a create call without a clear answer.
FIRST_LOOK_SECONDS = 2.0
#: While it cannot be told what a call made, this is how old the walk may be that tells so.
DOUBT_SECONDS = 60.0
#: How old a walk may be that can only find a batch: the call may still be under way, so not to meet one proves nothing.
EARLY_SECONDS = 5.0
#: How long we ask for an id from an answer that the provider does not know: reads may lag.
UNREAD_SECONDS = 300.0
#: Create calls of one key without a clear answer, if no list tells what they did (RESEND_UNANSWERED).
MOST_CALLS = 3
#: Two readings of a clock may differ by so much.
_TICK = 0.1


def search(job: JobRecord, shard: ShardRecord, api: ProviderReads, turn: CreateActions) -> Ending | list[Batch] | None:
    """Look for what earlier calls made. Returns batches to adopt, or how the turn ends; None: the call may be repeated.

    Raises Unavailable, Paused, LeaseLost.
    """
    seen = look_at_named(job, shard, api, turn)
    if seen.found:
        return seen.found
    empty_at = None if shard.empty_at is None or turn.leapt(shard.empty_at) else shard.empty_at
    if empty_at is not None and not seen.doubt:
        waiting = _between_walks(job, shard, turn, empty_at, unread=seen.unread)
        if waiting is not None:
            return waiting
    walk, doubt = None, seen.doubt
    try:
        if not turn.lists_batches:
            raise Refused("so its settings say")
        walked = _walk(shard, turn, empty_at, doubt=bool(doubt))
        if not isinstance(walked, NotedWalk):
            return walked
        walk = walked
    except Refused as error:
        doubt = doubt or f"the provider cannot list batches ({error})"
    else:
        ours, left = _untold(walk, seen.candidates, shard, api, turn)
        if ours is not None:
            return [ours]
        doubt = doubt or left
    if doubt and not (turn.resend_unanswered and len(shard.calls) < MOST_CALLS):
        return _cannot_tell(job, shard, doubt)
    blind = _cannot_see(job, shard, api, turn)
    if blind is not None:
        return blind
    if empty_at is None:
        return _after_first_walk(shard, walk, turn)
    if shard.refusal is not None:
        return GiveUp(shard.refusal, refused=True)
    if job.cancel or job.send_no_more:
        return GiveUp(CANCELLED if job.cancel else HELD_BACK)
    return None


def _walk(shard: ShardRecord, turn: CreateActions, empty_at: float | None, *, doubt: bool) -> NotedWalk | Over | Move:
    """The walk that tells what became of the calls, or how the turn ends without it."""
    now, since = turn.now(), since_of(shard, turn.ahead())
    asked = after = asked_at(shard, now)
    if empty_at is not None:
        after = max(after, empty_at + turn.grace_seconds)
    old_enough = now - EARLY_SECONDS if asked > now + _TICK else min(after, now)
    if doubt:
        old_enough = min(max(asked, now - DOUBT_SECONDS), old_enough)
    walked = turn.walk(old_enough, since)
    if isinstance(walked, NotedWalk) and walked.candidates(since) and walked.begun < now - DOUBT_SECONDS:
        walked = turn.walk(now - DOUBT_SECONDS, since)
    if isinstance(walked, Settled):
        return Over(settled=walked.here)
    if walked is not None and (doubt or walked.begun >= after - _TICK):
        return walked
    wait = turn.patience() if walked is None else max(after - now, _TICK)
    noted = {"latest_call": shard.calls[-1], "call_over_at": asked} if shard.calls else {}
    kept = {"trouble": shard.trouble, "unseen_at": shard.unseen_at}
    return Move(stage=Stage.UPLOADED, after=wait, changes={"walk_from": after, **noted, **kept})


def _untold(
    walk: NotedWalk, candidates: list[Batch], shard: ShardRecord, api: ProviderReads, turn: CreateActions
) -> tuple[Batch | None, str]:
    """Our batch among those of which a walk could not tell whose they are, or why it cannot be known."""
    left = walk.candidates(since_of(shard, turn.ahead()))
    if not walk.signs:
        ours, unnamed = read_one_by_one(candidates, shard, api, turn)
        if ours is not None:
            return ours, ""
        left = [*dict.fromkeys([*unnamed, *left])]
    if not left:
        return None, ""
    which = " or ".join(left[:3])
    return None, f"the provider's list does not show which shard batches belong to: ours may be {which}"


def _after_first_walk(shard: ShardRecord, walk: NotedWalk | None, turn: CreateActions) -> Move:
    """Nothing was found: wait for the grace period, from the end of the walk, and then for a second one."""
    now = turn.now()
    said = {"trouble": shard.trouble} if shard.other_at is not None else {}
    # a turn that lost its lease because the clock leapt may still be making its call
    more = turn.lease_seconds if turn.leapt(shard.intent_at or 0.0) else 0.0
    leapt = more or (shard.empty_at is not None)
    empty_at = now + more if leapt or walk is None else walk.ended
    after = max(empty_at + turn.grace_seconds - now, 0.0)
    return Move(stage=Stage.UPLOADED, after=after + turn.spread(), changes={"empty_at": empty_at, **said})


def _between_walks(
    job: JobRecord, shard: ShardRecord, turn: CreateActions, empty_at: float, *, unread: bool
) -> Move | None:
    """How long to wait before the second walk; None: it is time for it."""
    now, grace = turn.now(), turn.grace_seconds
    said = {"trouble": shard.trouble} if shard.other_at is not None else {}
    left = empty_at + (max(grace, UNREAD_SECONDS) if unread else grace) - now
    if left > _TICK:
        return Move(stage=Stage.UPLOADED, after=min(left, max(grace, FIRST_LOOK_SECONDS)), changes=said)
    if shard.refusal is None and not (job.cancel or job.send_no_more) and shard.other_at is not None:
        # each pause is as long as the wait so far, so pauses double
        until = empty_at + min(empty_at - shard.other_at, LONGEST_PAUSE)
        if (left := min(until, shard.other_at + turn.refusal_seconds) - now) > _TICK:
            return Move(stage=Stage.UPLOADED, after=left, changes=said)
    return None


def _cannot_see(job: JobRecord, shard: ShardRecord, api: ProviderReads, turn: CreateActions) -> Ending | None:
    """Whether the key can see the calls' input file: only then does a batch that the list lacks prove anything.

    The key of another project sees neither, and a second call would be paid twice. Returns None if it sees the file,
    or if it is the very key that the calls were made with.
    """
    if is_seen_by(shard, api.identity):
        return None
    try:
        api.file_status(shard.file_id or "")
        return None
    except Gone as error:
        now = turn.now()
        ends = believed_at(job, shard, shard.intent_at, now=now, patience=turn.unseen_seconds)
        what = f"the input file {shard.file_id}, so it could not see the batch that an unanswered create call made"
        if now < ends and not job.cancel:
            return unseen(job, shard, Stage.UPLOADED, what, error, now=now, ends=ends)
        message = f"a create call got no clear answer, and the key does not see {what}; its rows may be paid"
        return GiveUp(Problem(code=CREATE_UNKNOWN, message=message))


def _cannot_tell(job: JobRecord, shard: ShardRecord, why: str) -> Ending:
    """It is unknown whether a call made a batch. Another might pay twice, so there is none until a person decides."""
    calls = f"{len(shard.calls)} create calls" if len(shard.calls) > 1 else "a create call"
    message = (
        f"{calls} got no clear answer, and {why}: a batch may exist there. Look there; then cancel the job, or let "
        f"the call be repeated ({MOST_CALLS} calls at most) with the account's RESEND_UNANSWERED"
    )
    problem = Problem(code=CREATE_UNKNOWN, message=message)
    if job.cancel:
        return GiveUp(problem)
    begins = shard.trouble is None or shard.trouble.code != CREATE_UNKNOWN
    events: list[tuple[str, dict[str, Any]]] = [(CREATE_UNKNOWN, {"message": message})] if begins else []
    return Move(stage=Stage.UPLOADED, after=60.0, changes={"trouble": problem}, events=events)
