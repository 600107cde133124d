"""The create step: the only call that costs money, made once.

``POST /v1/batches`` has no idempotency key. So the intent is recorded first, and after a call without a clear answer
there is no second call before two walks through the provider's list, a grace period apart, have not met a batch of it.
"""

from __future__ import annotations

import logging
from typing import Any

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
from batchpipe.model.records import JobRecord, Move, Problem, ShardRecord, Stage
from batchpipe.model.refusals import (
    in_words,
    is_about_input_file,
    is_no_room,
    is_unfinished,
    wait_out,
)
from batchpipe.model.retry import FILE_NOT_READY, FILE_UNFOUND
from batchpipe.model.room import no_room
from batchpipe.pipeline.batch_search import is_ours, read_batch
from batchpipe.pipeline.create_actions import CANCELLED, HELD_BACK, CreateActions, Ending, GiveUp, Over
from batchpipe.pipeline.create_search import FIRST_LOOK_SECONDS, search
from batchpipe.pipeline.surplus import cancel

logger = logging.getLogger(__name__)

#: How often a file that stays "not found" is uploaded again.
MAX_UPLOADS = 6
#: Code for a shard that ended because its create calls were answered with batches of other rows, again and again.
OTHERS_BATCH = "answered_with_other_batch"


def create(job: JobRecord, shard: ShardRecord, api: Provider, turn: CreateActions) -> Ending:
    """Create the shard's batch, or adopt the one that an unanswered call made.

    Raises Unavailable, Paused (a clear no that may pass; the intent is withdrawn), LeaseLost, StoreUnavailable.
    """
    ending: Ending | None = None
    if shard.intent_at is not None:
        found = search(job, shard, api, turn)
        ending = _adopt(found, shard, api, turn) if isinstance(found, list) else found
    elif job.cancel or job.send_no_more:
        return GiveUp(CANCELLED if job.cancel else HELD_BACK)
    if ending is None:
        ending = _call(job, shard, api, turn)
    if isinstance(ending, Move) and shard.walk_from is not None:
        ending = msgspec.structs.replace(ending, changes={"walk_from": None, **ending.changes})
    return ending


def batch_metadata(job: JobRecord, shard: ShardRecord) -> dict[str, str]:
    """The user's pairs, and ours, by which a batch is found again."""
    ours = {"batchpipe_job": job.id, "batchpipe_shard": str(shard.index), "batchpipe_key": shard.key}
    return {**job.metadata, **ours}


def _call(job: JobRecord, shard: ShardRecord, api: Provider, turn: CreateActions) -> Ending:
    if turn.intend(api.identity):
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
        if not shard.calls and (waits := no_room(job, shard, error)) is not None:
            return waits
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
        cancel(batch, api)
    return Over(settled=verdict == "ok")
