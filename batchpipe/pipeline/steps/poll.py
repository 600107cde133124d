"""The poll step: one look at a batch. It occupies no worker while it waits; the task is retried by countdown.

Where many batches are in flight, looks read the list for all of them (``pipeline.looks``), and polls are parked.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from batchpipe.errors import BATCH_LIMIT, NO_QUOTA, TOKEN_LIMIT, Gone, Refused, Unavailable
from batchpipe.model.bodies import QUOTA_CODES
from batchpipe.model.lateness import wait_for_files
from batchpipe.model.pace import NO_HISTORY, History, likely_pause
from batchpipe.model.provider import Batch, Provider
from batchpipe.model.records import (
    BatchError,
    JobRecord,
    Move,
    Problem,
    ShardRecord,
    Stage,
    Status,
    window_end,
)
from batchpipe.model.refusals import believed_at, says_batch_limit, says_token_limit, unseen
from batchpipe.model.retry import QUEUE_FULL
from batchpipe.model.room import TooLarge, batches_full, queue_full

logger = logging.getLogger(__name__)

#: How often in a row a batch must be unknown to the provider before we believe that it is gone (not before its time).
MAX_GONE = 3

#: How long a webhook counts that said of a batch that it has ended, in seconds: by then a read shows it.
NEWS_SECONDS = 600.0

#: How long we wait for a batch to end that was cancelled because it did not end in time.
GIVE_UP_SECONDS = 86_400.0

#: After so long, about, a parked poll is due, if no look moves that on.
SAFETY_NET_SECONDS = 600.0
#: A slot that was booked holds so much longer. Later the read counts as a new one: workers may have been away.
SLOT_KEPT_SECONDS = 60.0


@dataclass(frozen=True)
class Slot:
    """When this account may be asked about this batch."""

    wait: float = 0.0  #: seconds until then; 0: now
    booked: bool = True  #: the slot is this read's; False: ask again then
    parked: bool = False  #: never mind: looks watch it


#: Takes what it is asked for (``poll``; ``news``, at once; ``booked``: it has its slot), and whether it may be parked.
TakeSlot = Callable[[str, bool], Slot]


@dataclass(frozen=True)
class Pace:
    """Bounds of the pause between two looks, in seconds."""

    shortest: float
    longest: float
    history: History = NO_HISTORY  #: of the account's batches of the same model

    def after(self, age: float, status: str | None = None) -> float:
        """A tenth of the batch's age; for one in progress with a history, short when its end is likely and long when
        not. Within the bounds, with a tenth of jitter, so that shards do not keep step.

        What fails does so while it is validated, and is no part of the history.
        """
        likely = likely_pause(self.history, age) if status in ("in_progress", "finalizing") else None
        pause = min(max(age / 10 if likely is None else likely, self.shortest), self.longest)
        return min(pause * random.uniform(1.0, 1.1), self.longest)


def poll(
    job: JobRecord,
    shard: ShardRecord,
    api: Provider,
    *,
    now: float,
    pace: Pace,
    take_slot: TakeSlot,
    patience: float | None = None,
    files_patience: float = 21_600.0,
    unseen_seconds: float = 86_400.0,
) -> Move | Problem | TooLarge:
    """Look once, if nobody has of late. Returns where to go, or the Problem why the batch is gone for good.

    How many seconds we wait: ``patience`` for a batch after its completion window (None: for ever),
    ``unseen_seconds``, at least, for one that this key does not see, ``files_patience`` for files after the batch's
    end, if it counts answers and names no file. Raises Unavailable, Paused, Refused.
    """
    pause = pace.after(now - (shard.born_at or now), shard.status)
    if _has_news(shard, now):  # reads may lag behind webhooks, but not for long
        pause = min(pause, max(now - (shard.news_at or now), 1.0))
    if (ended := _seen_to_end(shard)) is not None:
        return _moved(job, shard, ended, now, pause, files_patience)
    if (later := _later(job, shard, now, take_slot, pace, patience)) is not None:
        return later
    try:
        batch = _cancelled_or_read(job, shard, api)
    except Gone as error:
        if shard.landing:
            return _gone(shard, error)
        ends = believed_at(job, shard, shard.created_at, now=now, patience=unseen_seconds)
        if shard.unfound + 1 < MAX_GONE or now < ends:
            what = f"batch {shard.batch_id}, which runs on and is paid for"
            return unseen(job, shard, Stage.CREATED, what, error, now=now, ends=ends)
        return _gone(shard, error)
    if shard.overdue_at is None and batch.status not in Status.FINAL and _is_overdue(job, shard, batch, now, patience):
        return _overdue(shard, batch, now)
    if batch.status not in Status.FINAL and _is_stuck(shard):
        message = f"{shard.batch_id} did not end after its window, nor after it was cancelled; its rows may be paid"
        return Problem(code="batch_stuck", message=message)
    return _moved(job, shard, batch, now, pause, files_patience)


def _is_stuck(shard: ShardRecord) -> bool:
    """It was cancelled long ago, and the look before this one was late, too: else workers may only have been away."""
    if shard.overdue_at is None or shard.snapshot_at is None:
        return False
    return shard.snapshot_at - shard.overdue_at > GIVE_UP_SECONDS


def _as_before(shard: ShardRecord) -> dict[str, Any]:
    """The result of a turn that did not look: an earlier problem of the batch stays."""
    return {} if shard.unseen_at is None else {"unseen_at": shard.unseen_at, "trouble": shard.trouble}


def _gone(shard: ShardRecord, error: Gone) -> Problem:
    message = (
        f"the provider does not know {shard.batch_id} ({error}); its rows may be paid. If another key sees it: "
        f"batchpipe land {shard.job}"
    )
    return Problem(code="batch_gone", message=message)


def _must_end(job: JobRecord, shard: ShardRecord) -> bool:
    """Whether the batch is to be cancelled, or has been."""
    return job.cancel or shard.overdue_at is not None


def _has_news(shard: ShardRecord, now: float) -> bool:
    return shard.news and shard.news_at is not None and now - shard.news_at < NEWS_SECONDS


def _is_overdue(job: JobRecord, shard: ShardRecord, batch: Batch, now: float, patience: float | None) -> bool:
    """Uses the end of the window that the provider names, if it names one."""
    if patience is None or shard.created_at is None:
        return False
    return now > window_end(shard.created_at, job.completion_window, batch.expires_at) + patience


def _overdue(shard: ShardRecord, batch: Batch, now: float) -> Move:
    """It is cancelled with the next look; finished rows are collected, the rest is sent again."""
    message = f"{shard.batch_id} has not ended after its completion window: it is cancelled, and what it has is landed"
    logger.error("%s", message, extra={"event": "overdue"})
    problem = Problem(code="batch_overdue", message=message)
    changes = {
        "overdue_at": now,
        "status": batch.status,
        "counts": batch.counts,
        "snapshot_at": now,
        "trouble": problem,
    }
    return Move(
        stage=Stage.CREATED, changes=changes, events=[("overdue", {"batch_id": shard.batch_id, "message": message})]
    )


def _fresh_for(shard: ShardRecord, now: float, pace: Pace) -> float:
    """The create step, or a look, has just read the status: for so many seconds nobody need ask again."""
    if shard.snapshot_at is None:
        return 0.0
    age, pause = now - shard.snapshot_at, pace.after(now - (shard.born_at or now), shard.status)
    return max(pause - age, pace.shortest / 2) if age < pause / 2 else 0.0


def _seen_to_end(shard: ShardRecord) -> Batch | None:
    """The ended batch as a look has seen it; None if the provider must be asked."""
    if not shard.end_seen or shard.status not in Status.FINAL or shard.landing or shard.late_at is not None:
        return None
    return Batch(
        id=shard.batch_id or "",
        status=shard.status,
        counts=shard.counts,
        output_file_id=shard.output_file_id,
        error_file_id=shard.error_file_id,
        errors=shard.errors,
    )


def _later(
    job: JobRecord, shard: ShardRecord, now: float, take_slot: TakeSlot, pace: Pace, patience: float | None
) -> Move | None:
    """Not now: looks watch it, somebody has just read it, or the account has its next slot later. None: now."""
    until = _looks_until(job, shard, patience)
    may_park = _is_for_looks(job, shard) and (until is None or until > now)
    left = _fresh_for(shard, now, pace) if may_park else 0.0
    slot_in = shard.slot_at - now if shard.slot_at is not None else -SLOT_KEPT_SECONDS
    if shard.news or (shard.status in Status.FINAL and shard.late_at is None and not shard.landing):
        return _at(take_slot("news", False), shard, now)
    if left <= 0 and slot_in <= -SLOT_KEPT_SECONDS:
        slot = take_slot("poll", may_park)
    else:
        slot = take_slot("booked", may_park)
    if slot.parked:
        after = SAFETY_NET_SECONDS * random.uniform(0.8, 1.0)
        changes = {**_as_before(shard), "parked": True, "park_until": until, "slot_at": None}
        return Move(stage=Stage.CREATED, after=after if until is None else min(after, until - now), changes=changes)
    if left > 0:
        return Move(stage=Stage.CREATED, after=left, changes=_as_before(shard))
    return _at(slot if slot_in <= 0.5 else Slot(slot_in), shard, now)


def _at(slot: Slot, shard: ShardRecord, now: float) -> Move | None:
    """The turn at this slot; None: it is this one."""
    if slot.wait <= 0:
        return None
    changes = _as_before(shard) | {"slot_at": now + slot.wait if slot.booked else None}
    return Move(stage=Stage.CREATED, after=slot.wait, changes=changes)


def _is_for_looks(job: JobRecord, shard: ShardRecord) -> bool:
    """A look can do all that a poll would do for it now."""
    to_cancel = _must_end(job, shard) and not shard.cancel_sent
    to_tell = shard.status == "cancelling" and not (shard.cancel_sent or shard.cancelled_elsewhere)
    is_seen = shard.snapshot_at is not None and not shard.unfound and shard.status not in Status.FINAL
    return is_seen and not (to_cancel or to_tell or shard.landing or shard.news or shard.overdue_at is not None)


def _looks_until(job: JobRecord, shard: ShardRecord, patience: float | None) -> float | None:
    """From then on a poll must judge whether the batch is overdue; None: never."""
    if patience is None or shard.created_at is None:
        return None
    return window_end(shard.created_at, job.completion_window, shard.expires_at) + patience


def _cancelled_or_read(job: JobRecord, shard: ShardRecord, api: Provider) -> Batch:
    batch_id = shard.batch_id or ""
    if _must_end(job, shard) and not shard.cancel_sent:
        try:
            return api.cancel_batch(batch_id)
        except (Refused, Unavailable) as error:
            # it may have ended, or the provider cannot cancel: only a read can tell, or show that it is gone
            logger.info("batch %s could not be cancelled: %s", batch_id, error, extra={"event": "not_cancelled"})
    return api.retrieve(batch_id)


def _moved(
    job: JobRecord, shard: ShardRecord, batch: Batch, now: float, pause: float, patience: float
) -> Move | TooLarge:
    changes: dict[str, Any] = {
        "status": batch.status,
        "counts": batch.counts,
        "snapshot_at": now,
        "cancel_sent": _must_end(job, shard) and batch.status in {"cancelling", *Status.FINAL},
        "unfound": 0,
        "unseen_at": None,
        **batch.times,
        # what has come since the turn began stays
        **({"slot_at": None} if shard.slot_at is not None else {}),
        **({"news": False} if shard.news and not _has_news(shard, now) else {}),
    }
    if changes["cancel_sent"] and not shard.cancel_sent and shard.overdue_at is not None:
        changes["overdue_at"] = now  # no worker was there to cancel it: its time starts now
    is_news = batch.status != shard.status or shard.end_seen
    events = [("status", {"batch_id": shard.batch_id, "status": batch.status})] if is_news else []
    hold = _cancelled_elsewhere(job, shard, batch)
    if batch.status not in Status.FINAL:
        return Move(stage=Stage.CREATED, after=pause, changes=changes, events=events, hold=hold)
    ran = batch.counts.completed or batch.output_file_id  # some providers count nothing but name their files
    if batch.status == Status.FAILED and not (job.cancel or job.send_no_more or ran):
        if (again := _create_again(job, shard, batch)) is not None:
            if isinstance(again, TooLarge):
                return again
            return msgspec.structs.replace(again, events=[*events, *again.events])
        if (quota := next((error for error in batch.errors if error.code in QUOTA_CODES), None)) is not None:
            return msgspec.structs.replace(_without_quota(shard, quota), events=events)
    if _files_are_late(batch):
        what = f"{shard.batch_id} has ended with {_counted(batch)}, and names no file for them yet"
        unpaid = not batch.counts.completed
        late = wait_for_files(
            job, shard, Stage.CREATED, what, now=now, patience=patience, changes=changes, unpaid=unpaid
        )
        if late is not None:
            return msgspec.structs.replace(late, events=[*events, *late.events], hold=hold)
    changes |= {
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "errors": batch.errors,
    }
    return Move(stage=Stage.ENDED, changes=changes, events=events, hold=hold)


def _cancelled_elsewhere(job: JobRecord, shard: ShardRecord, batch: Batch) -> Problem | None:
    """Somebody else has cancelled the batch: its rows must not be sent again unasked."""
    ours = _must_end(job, shard) or shard.cancel_sent or shard.landing
    if ours or shard.cancelled_elsewhere or batch.status not in ("cancelling", Status.CANCELLED, Status.CANCELED):
        return None
    message = f"{shard.batch_id} was cancelled at the provider, and not by batchpipe"
    return Problem(code="cancelled_elsewhere", message=message)


def _without_quota(shard: ShardRecord, error: BatchError) -> Move:
    """The account has no money and no row ran: a new batch like after a full queue, but the account is paused."""
    problem = Problem(code=NO_QUOTA, message=error.message or str(error.code))
    after, changes = QUEUE_FULL.pause(len(shard.spent)), {**_anew(shard), "trouble": problem}
    return Move(stage=Stage.UPLOADED, after=after, changes=changes, pause=problem)


def _is_token_limit(error: BatchError) -> bool:
    return error.code == TOKEN_LIMIT or says_token_limit(error.message)


def _files_are_late(batch: Batch) -> bool:
    """Rows are counted, but no file is named for them: this happens for a minute or so after the end of a batch."""
    lacks_output = bool(batch.counts.completed) and not batch.output_file_id
    return lacks_output or (bool(batch.counts.failed) and not (batch.output_file_id or batch.error_file_id))


def _counted(batch: Batch) -> str:
    return f"{batch.counts.completed or 0} answers counted and {batch.counts.failed or 0} rows failed"


def _create_again(job: JobRecord, shard: ShardRecord, batch: Batch) -> Move | TooLarge | None:
    """The provider had no room and no row ran: a new batch from the same file, under a new key, later. None: it had."""
    pause = QUEUE_FULL.pause(len(shard.spent))
    if (error := next(filter(_is_token_limit, batch.errors), None)) is not None:
        return queue_full(job, shard, error.message or TOKEN_LIMIT, _anew(shard), otherwise=pause)
    if (error := next((one for one in batch.errors if says_batch_limit([one.code], one.message)), None)) is not None:
        return batches_full(shard, error.message or BATCH_LIMIT, _anew(shard), otherwise=pause)
    return None


def _anew(shard: ShardRecord) -> dict[str, Any]:
    """What a shard forgets of a batch that is abandoned on purpose."""
    return {
        "try_": shard.try_ + 1,
        "spent": [*shard.spent, shard.batch_id],
        "batch_id": None,
        "intent_at": None,
        "calls": None,
        "empty_at": None,
        "latest_call": None,
        "call_over_at": None,
        "called_as": None,
        "overdue_at": None,
        "late_at": None,
        "cancel_sent": False,
        "end_seen": False,
        "output_file_id": None,
        "error_file_id": None,
        "errors": [],
        "status": None,
        "counts": None,
        "snapshot_at": None,
    }
