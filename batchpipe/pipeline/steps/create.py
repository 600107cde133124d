"""The create step: the only call that costs money, made once.

``POST /v1/batches`` has no idempotency key. So the intent is recorded first, and after a call without a clear answer
there is no second call before the provider's list has been searched twice, a grace period apart.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from batchpipe.errors import (
    FILE_NOT_FOUND,
    AmbiguousResult,
    BatchpipeError,
    Gone,
    Paused,
    Refused,
    StoreUnavailable,
    Unavailable,
)
from batchpipe.model.provider import Batch, Provider
from batchpipe.model.records import LONGEST_PAUSE, JobRecord, Move, Problem, ShardRecord, Stage, Status
from batchpipe.model.refusals import (
    believed_at,
    in_words,
    is_about_input_file,
    is_no_room,
    is_unfinished,
    unseen,
    wait_out,
)
from batchpipe.model.retry import FILE_NOT_READY, FILE_UNFOUND
from batchpipe.pipeline.batch_search import SearchContext, is_ours, look, read_batch

logger = logging.getLogger(__name__)

#: Pause before the first look for a batch after a create call without a clear answer.
FIRST_LOOK_SECONDS = 2.0

#: How often a file that stays "not found" is uploaded again.
MAX_UPLOADS = 6

#: How long we ask for an id from an answer that the provider does not know: reads may lag.
UNREAD_SECONDS = 300.0
#: Create calls of one key without a clear answer, if no list tells what they did (RESEND_UNANSWERED).
MOST_CALLS = 3
#: Code for a shard that ended because its create calls were answered with batches of other rows, again and again.
OTHERS_BATCH = "answered_with_other_batch"

HELD_BACK = Problem(
    code="cancelled_elsewhere",
    message="not sent: a batch of this job was cancelled at the provider, and nothing more was to be sent",
)
CANCELLED = Problem(code="cancelled", message="the job was cancelled before a batch was created")


class CreateActions(SearchContext, Protocol):
    """What this step may do with the shard's record, under its lease."""

    grace_seconds: float
    lease_seconds: float
    unseen_seconds: float  #: how long to wait, at least, for what the key does not see
    refusal_seconds: float  #: how long to wait for a refusal that may pass
    resend_unanswered: bool  #: the account's settings say that a call without a clear answer may be repeated

    def now(self) -> float:
        """The time of Redis' clock."""

    def leapt(self, since: float) -> bool:
        """Whether Redis' clock leapt forward since; if so, the real time that has passed is unknown."""

    def intend(self) -> bool:
        """Record the intent. Returns whether the job is being cancelled. Raises LeaseLost."""

    def withdraw(self) -> None:
        """The call was clearly refused, or never made."""

    def too_late_to_call(self) -> bool:
        """More than half of the lease is gone."""

    def record_named(self, batch_ids: Mapping[str, bool]) -> None:
        """Record the ids that an unclear answer named (True: that it was about), before anything else is done."""

    def settle(self, batch: Batch, *, sure: bool = False) -> str:
        """Record the id: ok (this turn is over), late, known, other (another shard's), or cancel (it must not live).

        ``sure``: the batch itself shows our key or file.
        """


class GiveUp(msgspec.Struct, frozen=True):
    """This shard will have no batch: account for its rows with this reason."""

    problem: Problem
    refused: bool = False  #: the provider refused; else no answer came for these rows


class Over(msgspec.Struct, frozen=True):
    """The turn is over: ``settled`` by this one, else another turn goes on with the shard."""

    settled: bool
    after: float = 0.0  #: seconds until the batch is looked at for the first time


Ending = Move | GiveUp | Over


def create(job: JobRecord, shard: ShardRecord, api: Provider, turn: CreateActions) -> Ending:
    """Create the shard's batch, or adopt the one that an unanswered call made.

    Raises Unavailable, Paused (a clear no that may pass; the intent is withdrawn), LeaseLost, StoreUnavailable.
    """
    if shard.intent_at is not None:
        seen = look(job, shard, api, turn)
        if seen.found:
            return _adopt(seen.found, shard, api, turn)
        if seen.doubt and not (turn.resend_unanswered and len(shard.calls) < MOST_CALLS):
            return _cannot_tell(job, shard, seen.doubt)
        blind = _cannot_see(job, shard, api, turn)
        if blind is not None:
            return blind
        waiting = _after_empty_look(job, shard, turn, unread=seen.unread)
        if waiting is not None:
            return waiting
    elif job.cancel or job.send_no_more:
        return GiveUp(CANCELLED if job.cancel else HELD_BACK)
    return _call(job, shard, api, turn)


def _cannot_see(job: JobRecord, shard: ShardRecord, api: Provider, turn: CreateActions) -> Ending | None:
    """Whether the key can see the calls' input file: only then does a batch that the list lacks prove anything.

    The key of another project sees neither, and a second call would be paid twice. Returns None if it sees the file.
    """
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
        return GiveUp(Problem(code="create_unknown", message=message))


def batch_metadata(job: JobRecord, shard: ShardRecord) -> dict[str, str]:
    """The user's pairs, and ours, by which a batch is found again."""
    ours = {"batchpipe_job": job.id, "batchpipe_shard": str(shard.index), "batchpipe_key": shard.key}
    return {**job.metadata, **ours}


def _call(job: JobRecord, shard: ShardRecord, api: Provider, turn: CreateActions) -> Ending:
    if turn.intend():
        turn.withdraw()
        return GiveUp(CANCELLED) if not shard.calls else Move(stage=Stage.UPLOADED)
    if turn.too_late_to_call():  # a worker that was frozen must not call: another may be doing so
        turn.withdraw()
        return Move(stage=Stage.UPLOADED, after=0.5, events=[("create_too_late", {})])
    try:
        batch = api.create_batch(
            endpoint=job.endpoint,
            completion_window=job.completion_window,
            input_file_id=shard.file_id or "",
            metadata=batch_metadata(job, shard),
            extra=job.extra,
        )
    except AmbiguousResult as error:
        if error.named:
            turn.record_named(error.named)
        return _unanswered(error)
    except (Unavailable, Paused, Refused) as error:
        if error.named and (made := _made_in_spite_of(error, shard, api, turn)) is not None:
            return _adopt([made], shard, api, turn)
        turn.withdraw()
        if isinstance(error, Refused):
            return _refused_for_now(shard, error, api, turn) or _refused(shard, error)
        if error.code == FILE_NOT_FOUND:
            return _waits_for_file(shard, error, api, turn) or Move(stage=Stage.UPLOADED)
        raise
    if batch.id in shard.spent:
        return _of_another(batch, shard, turn)
    return _settle(batch, shard, api, turn)


def _made_in_spite_of(error: BatchpipeError, shard: ShardRecord, api: Provider, turn: CreateActions) -> Batch | None:
    """The batch that a refusal names, if it shows that it is ours (a gateway that repeats calls gets "exists")."""
    for name in error.named:
        batch = read_batch(name, api)
        if batch is not None and name not in shard.spent and is_ours(batch, shard, turn):
            return batch
    return None


def _of_another(batch: Batch, shard: ShardRecord, turn: CreateActions) -> Move:
    """The answer names a batch of another shard or an earlier try: read that one, then look for ours.

    A cache, or a gateway that mixes up answers, may repeat that for ever. In the end it counts as a refusal, and like
    any refusal it is believed once two more looks have found no batch of ours.
    """
    turn.record_named({batch.id: True})
    now = turn.now()
    since = shard.other_at if shard.other_at is not None else now
    left = since + turn.refusal_seconds - now
    what = f"the create call was answered with {batch.id}, which is the batch of other rows"
    advice = "does a proxy, cache or gateway between batchpipe and the provider repeat or mix up answers?"
    if left > 0:
        answer = _unanswered(AmbiguousResult(f"{what}; {advice}", code=OTHERS_BATCH))
        return msgspec.structs.replace(answer, changes={**answer.changes, "other_at": since})
    message = (
        f"for {in_words(now - since)} create calls were answered with batches of other rows (at last {batch.id}), "
        f"and no batch of these rows was found: {advice} Fix that, then: batchpipe retry {shard.job}"
    )
    answer = _unanswered(AmbiguousResult(message, code=OTHERS_BATCH))
    return msgspec.structs.replace(answer, changes={**answer.changes, "refusal": answer.changes["trouble"]})


def _unanswered(error: AmbiguousResult) -> Move:
    logger.warning("create got no clear answer: %s", error, extra={"event": "create_unanswered"})
    return Move(
        stage=Stage.UPLOADED,
        after=FIRST_LOOK_SECONDS,
        changes={"trouble": Problem(code=error.code, message=error.message)},
        events=[("create_unanswered", {"message": error.message})],
    )


def _refused_for_now(shard: ShardRecord, error: Refused, api: Provider, turn: CreateActions) -> Ending | None:
    """What to do if the refusal concerns the moment or the account; None if it concerns the request."""
    if is_no_room(error):
        problem = Problem(code="account_full", message=f"the provider takes no further batch now: {error.message}")
        return _wait_out(shard, problem, turn, "the account's limits say what must end or be deleted there first")
    if is_about_input_file(error, shard.file_id):
        return _waits_for_file(shard, error, api, turn)
    if error.param:  # it names another part of the request than the file
        return None
    return _waits_for_file(shard, error, api, turn, sure=False)


def _waits_for_file(
    shard: ShardRecord, error: BatchpipeError, api: Provider, turn: CreateActions, *, sure: bool = True
) -> Ending | None:
    """A fresh file may be unknown or not ready at first. ``sure``: it is the file; else None unless it says so."""
    try:
        status = api.file_status(shard.file_id or "")
    except Gone:
        return _file_not_found(shard, error, turn)
    if not sure and not is_unfinished(status):
        return None
    words = f" (its status is {status})" if status else ""
    message = f"the input file {shard.file_id} cannot be used yet{words}: {error.message}"
    return _wait_out(shard, Problem(code="file_not_ready", message=message), turn, "look at the file at the provider")


def _wait_out(shard: ShardRecord, problem: Problem, turn: CreateActions, advice: str) -> Ending:
    try:
        return wait_out(
            shard,
            Stage.UPLOADED,
            problem,
            now=turn.now(),
            longest=turn.refusal_seconds,
            policy=FILE_NOT_READY,
            advice=advice,
        )
    except Refused as error:
        return _refused(shard, error)


def _file_not_found(shard: ShardRecord, error: BatchpipeError, turn: CreateActions) -> Ending:
    """Neither the create call nor a read knows the file; if that lasts, it is uploaded again.

    Not while an older call is unanswered: if its file cannot be seen, its batch might not be seen either.
    """
    now = turn.now()
    since = shard.refused_at if shard.refused_at is not None else now
    uploaded = len(shard.unused_files) + 1  # `uploads` has the refused ones, too
    longest = min(FILE_UNFOUND.pause(uploaded - 1), turn.refusal_seconds)
    message = f"the provider does not find the file {shard.file_id} that was uploaded: {error.message}"
    problem = Problem(code=FILE_NOT_FOUND, message=message)
    if shard.calls or now - since < longest:
        return _wait_out(shard, problem, turn, "was the key or project of the account changed?")
    if uploaded >= MAX_UPLOADS:
        return _refused(shard, Refused(message, code=FILE_NOT_FOUND))
    changes: dict[str, Any] = {
        "refused_at": None,
        "file_id": None,
        "unused_files": [*shard.unused_files, shard.file_id],
        "try_": shard.try_ + 1,
        "trouble": problem,
    }
    return Move(stage=Stage.PLANNED, changes=changes, events=[("upload_again", {"message": message})])


def _refused(shard: ShardRecord, error: Refused) -> Ending:
    problem = Problem(code=error.code, message=error.message)
    if not shard.calls:
        return GiveUp(problem, refused=True)
    # an older call is still unanswered: its batch may yet appear and must be looked for before giving up
    return Move(stage=Stage.UPLOADED, after=FIRST_LOOK_SECONDS, changes={"refusal": problem})


def _cannot_tell(job: JobRecord, shard: ShardRecord, why: str) -> Ending:
    """It is unknown whether a call made a batch. Another might pay twice, so there is none until a person decides."""
    calls = f"{len(shard.calls)} create calls" if len(shard.calls) > 1 else "a create call"
    message = (
        f"{calls} got no clear answer, and {why}: a batch may exist there. Look there; then cancel the job, or let "
        f"the call be repeated ({MOST_CALLS} calls at most) with the account's RESEND_UNANSWERED"
    )
    problem = Problem(code="create_unknown", message=message)
    if job.cancel:
        return GiveUp(problem)
    return Move(stage=Stage.UPLOADED, after=60.0, changes={"trouble": problem})


def _adopt(found: list[Batch], shard: ShardRecord, api: Provider, turn: CreateActions) -> Ending:
    if len(found) > 1:
        words = "%d batches were found for the same rows: all but one are cancelled"
        logger.error(words, len(found), extra={"event": "orphan"})
    # settle each: the one that is recorded, perhaps by another turn in between, must not be cancelled
    endings = [_settle(batch, shard, api, turn, sure=is_ours(batch, shard, turn)) for batch in found]
    return endings[0]


def _settle(batch: Batch, shard: ShardRecord, api: Provider, turn: CreateActions, *, sure: bool = False) -> Ending:
    try:
        verdict = turn.settle(batch, sure=sure)
    except StoreUnavailable:
        logger.error(
            "batch %s was created and is not recorded yet: Redis is away", batch.id, extra={"event": "unsettled"}
        )
        raise
    if verdict == "other":
        return _of_another(batch, shard, turn)
    if verdict == "cancel":
        logger.error("batch %s is cancelled: its shard has another", batch.id, extra={"event": "orphan"})
        _cancel(batch, api)
    return Over(settled=verdict == "ok")


def _cancel(batch: Batch, api: Provider) -> None:
    if batch.status in Status.FINAL:
        return
    try:
        api.cancel_batch(batch.id)
    except Refused:
        pass  # it has ended
    except BatchpipeError as error:
        logger.error("batch %s could not be cancelled: %s", batch.id, error, extra={"event": "orphan"})


def _after_empty_look(job: JobRecord, shard: ShardRecord, turn: CreateActions, *, unread: bool) -> Ending | None:
    """Nothing was found: wait for the grace period; only after a second look finds nothing, call again (None)."""
    now, grace = turn.now(), turn.grace_seconds
    said = {"trouble": shard.trouble} if shard.other_at is not None else {}
    if shard.empty_at is None or turn.leapt(shard.empty_at):
        # a turn that lost its lease because the clock leapt may still be making its call
        more = turn.lease_seconds if turn.leapt(shard.intent_at or 0.0) else 0.0
        return Move(stage=Stage.UPLOADED, after=more + grace, changes={"empty_at": now + more, **said})
    left = shard.empty_at + (max(grace, UNREAD_SECONDS) if unread else grace) - now
    if left > 0.1:  # two readings of a clock
        return Move(stage=Stage.UPLOADED, after=min(left, max(grace, FIRST_LOOK_SECONDS)), changes=said)
    if shard.refusal is not None:
        return GiveUp(shard.refusal, refused=True)
    if job.cancel or job.send_no_more:
        return GiveUp(CANCELLED if job.cancel else HELD_BACK)
    if shard.other_at is not None:  # each pause is as long as the wait so far, so pauses double
        until = shard.empty_at + min(shard.empty_at - shard.other_at, LONGEST_PAUSE)
        if (left := min(until, shard.other_at + turn.refusal_seconds) - now) > 0.1:
            return Move(stage=Stage.UPLOADED, after=left, changes=said)
    return None
