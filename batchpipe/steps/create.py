"""The create step: the only call that costs money, made once.

``POST /v1/batches`` knows no idempotency key, so the intent is recorded first, and whenever a call got no clear
answer nobody calls again before the provider's list has been looked through, twice, a grace period apart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from batchpipe.errors import BatchpipeError, Paused, Refused, Unanswered, Unavailable
from batchpipe.jobs import Counts, JobRecord, Move, Problem, ShardRecord, Stage, Status

logger = logging.getLogger(__name__)

#: The provider's clock and Redis' may differ by so much.
CLOCK_SLACK_SECONDS = 300.0

#: Pause before the first look for a batch whose create call got no clear answer.
FIRST_LOOK_SECONDS = 2.0

#: So often a fresh file may be "not found" before it is uploaded anew.
MAX_UNFOUND = 4

CANCELLED = Problem(code="cancelled", message="the job was cancelled before a batch was created")


class Batch(Protocol):
    """What this step reads of the provider's batch object."""

    @property
    def id(self) -> str: ...
    @property
    def status(self) -> str | None: ...
    @property
    def created_at(self) -> float | None: ...
    @property
    def input_file_id(self) -> str | None: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def counts(self) -> Counts: ...


class BatchesApi(Protocol):
    """What this step may do at the provider."""

    def create_batch(
        self,
        *,
        endpoint: str,
        completion_window: str,
        input_file_id: str,
        metadata: dict[str, str],
        extra: dict[str, Any],
    ) -> Batch: ...
    def iter_batches(self, since: float) -> Iterator[Batch]: ...
    def cancel_batch(self, batch_id: str) -> object: ...


class Provider(Protocol):
    """What an account's provider can do, as its settings declare."""

    @property
    def lists_batches(self) -> bool: ...
    @property
    def echoes_metadata(self) -> bool: ...
    @property
    def resend_unanswered(self) -> bool: ...


class Turn(Protocol):
    """What this step may do with the shard's record, under its lease."""

    grace_seconds: float

    @property
    def provider(self) -> Provider: ...

    def now(self) -> float:
        """Redis' clock."""

    def intend(self) -> bool:
        """Record the intent. Answers whether the job is being cancelled. Raises LeaseLost."""

    def withdraw(self) -> None:
        """The call was clearly refused, or never made."""

    def too_late_to_call(self) -> bool:
        """More than half of the lease is gone."""

    def settle(self, batch: Batch) -> str:
        """Record the id: ok (this turn is over), late, known, or cancel (it must not live)."""


class GiveUp(msgspec.Struct, frozen=True):
    """No batch will come of this shard: account for its rows with this reason."""

    problem: Problem
    refused: bool = False  #: the provider said no; else no answer came of these rows


class Over(msgspec.Struct, frozen=True):
    """The turn is over: ``settled`` by ourselves, else somebody else goes on with the shard."""

    settled: bool


Ending = Move | GiveUp | Over


def create(job: JobRecord, shard: ShardRecord, api: BatchesApi, turn: Turn) -> Ending:
    """Create the shard's batch, or adopt the one that an unanswered call made.

    Raises Unavailable, Paused (a clear no that may pass; the intent is withdrawn), LeaseLost, StoreUnavailable.
    """
    if shard.intent_at is not None:
        try:
            found = _look(shard, api, turn.provider)
        except Refused as error:
            if not turn.provider.resend_unanswered:
                return _cannot_look(job, error)
            found = []
        if found:
            return _adopt(found, api, turn)
        waiting = _after_empty_look(job, shard, turn)
        if waiting is not None:
            return waiting
    elif job.cancel:
        return GiveUp(CANCELLED)
    return _call(job, shard, api, turn)


def batch_metadata(job: JobRecord, shard: ShardRecord) -> dict[str, str]:
    """The user's pairs and ours, by which a batch is found again."""
    ours = {"batchpipe_job": job.id, "batchpipe_shard": str(shard.index), "batchpipe_key": shard.key}
    return {**job.metadata, **ours}


def _call(job: JobRecord, shard: ShardRecord, api: BatchesApi, turn: Turn) -> Ending:
    if turn.intend():
        turn.withdraw()
        return GiveUp(CANCELLED) if not shard.calls else Move(stage=Stage.UPLOADED)
    if turn.too_late_to_call():  # a worker that was frozen must not call: somebody else may be at it
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
    except Unanswered as error:
        return _unanswered(error)
    except (Unavailable, Paused) as error:
        turn.withdraw()
        if error.code == "file_not_found":
            return _file_not_found(shard, error)
        raise
    except Refused as error:
        turn.withdraw()
        return _refused(shard, error)
    return _settle(batch, api, turn)


def _unanswered(error: Unanswered) -> Move:
    logger.warning("create got no clear answer: %s", error, extra={"event": "create_unanswered"})
    return Move(
        stage=Stage.UPLOADED,
        after=FIRST_LOOK_SECONDS,
        changes={"trouble": Problem(code=error.code, message=error.message)},
        events=[("create_unanswered", {"message": error.message})],
    )


def _file_not_found(shard: ShardRecord, error: BatchpipeError) -> Move:
    """A file may be unknown for a moment after its upload; when it stays so, it is uploaded anew."""
    changes: dict[str, Any] = {
        "unfound": shard.unfound + 1,
        "trouble": Problem(code=error.code, message=error.message),
    }
    if shard.unfound + 1 < MAX_UNFOUND:
        return Move(stage=Stage.UPLOADED, after=1.0 * 2**shard.unfound, changes=changes)
    changes |= {"unfound": 0, "file_id": None, "unused_files": [*shard.unused_files, shard.file_id]}
    if not shard.calls:  # else the batch of an older call must still be found, by the same key or by the old file
        changes["try_"] = shard.try_ + 1
    return Move(stage=Stage.PLANNED, changes=changes, events=[("upload_again", {"message": error.message})])


def _refused(shard: ShardRecord, error: Refused) -> Ending:
    problem = Problem(code=error.code, message=error.message)
    if not shard.calls:
        return GiveUp(problem, refused=True)
    # an older call is still unanswered: its batch may yet turn up and must be looked for before giving up
    return Move(stage=Stage.UPLOADED, after=FIRST_LOOK_SECONDS, changes={"refusal": problem})


def _look(shard: ShardRecord, api: BatchesApi, provider: Provider) -> list[Batch]:
    """Batches made under this shard's key, the one to keep first. Raises Refused where the provider has no list."""
    if not provider.lists_batches:
        raise Refused("so its settings say")
    since = (shard.intent_at or 0.0) - CLOCK_SLACK_SECONDS
    found = {
        batch.id: batch
        for batch in api.iter_batches(since)
        if batch.id not in shard.spent and _is_ours(batch, shard, provider)
    }
    dead = (Status.FAILED, Status.EXPIRED, Status.CANCELLED, Status.CANCELED, "cancelling")
    return sorted(found.values(), key=lambda batch: (batch.status in dead, batch.created_at or 0.0, batch.id))


def _cannot_look(job: JobRecord, error: Refused) -> Ending:
    """The provider has no list: without it a second call might pay twice, so there is none until a human decides."""
    message = (
        f"a create call got no clear answer, and the provider cannot list batches ({error}): one may exist there. "
        f"Look there; then cancel the job, or let the call be repeated with the account's RESEND_UNANSWERED"
    )
    problem = Problem(code="create_unknown", message=message)
    if job.cancel:
        return GiveUp(problem)
    return Move(stage=Stage.UPLOADED, after=60.0, changes={"trouble": problem})


def _is_ours(batch: Batch, shard: ShardRecord, provider: Provider) -> bool:
    key = batch.metadata.get("batchpipe_key") if provider.echoes_metadata else None
    if key is not None:
        return key == shard.key
    return batch.input_file_id is not None and batch.input_file_id in (shard.file_id, *shard.unused_files)


def _adopt(found: list[Batch], api: BatchesApi, turn: Turn) -> Ending:
    if len(found) > 1:
        words = "%d batches were found for the same rows: all but one are cancelled"
        logger.error(words, len(found), extra={"event": "stray"})
    # each is settled: whichever is recorded, perhaps by somebody else meanwhile, must not be cancelled
    endings = [_settle(batch, api, turn) for batch in found]
    return endings[0]


def _settle(batch: Batch, api: BatchesApi, turn: Turn) -> Ending:
    verdict = turn.settle(batch)
    if verdict == "cancel":
        logger.error("batch %s is cancelled: its shard has another", batch.id, extra={"event": "stray"})
        _cancel(batch, api)
    return Over(settled=verdict == "ok")


def _cancel(batch: Batch, api: BatchesApi) -> None:
    if batch.status in Status.FINAL:
        return
    try:
        api.cancel_batch(batch.id)
    except Refused:
        pass  # it has ended
    except BatchpipeError as error:
        logger.error("batch %s could not be cancelled: %s", batch.id, error, extra={"event": "stray"})


def _after_empty_look(job: JobRecord, shard: ShardRecord, turn: Turn) -> Ending | None:
    """Nothing was found: wait for the grace period, and only after a second empty look call again (None)."""
    now = turn.now()
    if shard.empty_at is None:
        return Move(stage=Stage.UPLOADED, after=turn.grace_seconds, changes={"empty_at": now})
    left = shard.empty_at + turn.grace_seconds - now
    if left > 0:
        return Move(stage=Stage.UPLOADED, after=left)
    if shard.refusal is not None:
        return GiveUp(shard.refusal, refused=True)
    if job.cancel:
        return GiveUp(CANCELLED)
    return None
