"""What shard turns and job turns share: how a turn is counted, how work is published, and what trouble means."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypedDict, Unpack

from batchpipe.config.limits import out_of_time
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import (
    MOST_MESSAGE,
    WORKSPACE_GONE,
    OnHold,
    RecordUnreadable,
    StorageTrouble,
    StoreUnavailable,
    TransientError,
    shortened,
)
from batchpipe.masking import without_secrets
from batchpipe.model.lateness import utc
from batchpipe.model.notifications import TROUBLE
from batchpipe.model.provider import Provider
from batchpipe.model.records import JOB, LONGEST_PAUSE, JobRecord, Problem, State
from batchpipe.model.steps import SHARD_STEPS, Step
from batchpipe.pipeline.ahead import Ahead
from batchpipe.pipeline.messages import Message, Next, Publish, Retry, WaitingIn, denied
from batchpipe.pipeline.notices import Notices, record_safely
from batchpipe.pipeline.relaxed import Trust
from batchpipe.store import ClaimDenied, Lease, Store, When, new_task_ids
from batchpipe.telemetry.counters import Counters
from batchpipe.telemetry.logs import log_event

logger = logging.getLogger(__name__)

#: Unexpected failures of one stage before its shard is abandoned (never once it has a batch or an open intent).
MAX_TRIES = 5
#: The same for workers that vanish during one stage. Machines may die for hours; that is not the shard's fault.
MAX_LOST = 50
#: Turns of prepare that ran into their deadlines, which grow, before the job is refused.
MAX_OVERRUNS = 6
#: Code of a transfer that was broken off because its job is being cancelled: it comes back at once.
CANCELLING = "cancelling"
#: How long the lost files of a cancelled job are waited for, at most.
GONE_CANCELLED_SECONDS = 120.0
#: A file that was not reported missing for so long was there in between.
GONE_SEEN_SECONDS = 1_800.0


_MISSED = (
    "job %s is unknown to this Redis: if Redis lost it, `batchpipe recover --dry-run`; if another installation shares "
    "this broker, give each a queue of its own (BATCHPIPE_QUEUE)"
)


class Shared(TypedDict, total=False):
    """What a runner may be given beside the needful.

    ``deliver`` sees to notifications that are due, for the sweep; it is told whether they may be sent within the sweep
    where no worker listens.
    """

    counters: Counters | None
    waiting_in: WaitingIn | None
    notices: Notices | None
    ahead: Ahead | None
    deliver: Callable[[bool], None] | None


class Runner:
    """What shard turns and job turns share: the records, the provider, and how a message is published."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        apis: Callable[[str], Provider],
        publish: Publish,
        **shared: Unpack[Shared],
    ) -> None:
        self.settings = settings
        self.store = store
        self.apis = apis
        self.waiting_in = shared.get("waiting_in")
        self.notices = shared.get("notices") or Notices(settings, store)
        self.deliver = shared.get("deliver")
        self.ahead = shared.get("ahead") or Ahead()
        self.counters = shared.get("counters") or Counters()
        self.sleep: Callable[[float], None] = time.sleep
        self.trust = Trust(store.news.trusted)
        self._publish = publish

    def publish(self, message: Message) -> None:
        """Send a message. If the broker does not take it, the record's due time brings it back."""
        try:
            self._publish(message)
        except TransientError as error:
            self.counters.wait("broker", 0.0)
            logger.warning(
                "not sent to the workers yet, a sweep will do that: %s", error, extra=_ids(message.job, message.index)
            )
        except Exception as error:  # an error of a broker library or the site's app must not undo what is recorded
            self.counters.wait("broker", 0.0)
            logger.error(
                "not sent to the workers yet, a sweep will do that: %s: %s",
                type(error).__name__,
                words(error),
                extra=_ids(message.job, message.index),
            )

    @staticmethod
    def gone(job_id: str) -> Next:
        """The outcome of a message for a job that this Redis does not know. Logged once, as nothing else reports it."""
        if current_site().is_first_time("job_unknown", job_id):
            logger.warning(_MISSED, job_id, extra={"event": "job_unknown", "job": job_id})
        return denied(ClaimDenied("gone"))

    def republish(self, job_id: str, index: int, *, when: When = "always", after: float = 0.0) -> list[str] | None:
        """Publish a record's work again under a new epoch, to run after ``after`` seconds. Returns the void task ids,
        or None if it may not be published.
        """
        ids = new_task_ids(1 if index == JOB else len(SHARD_STEPS))
        raised = self.store.due.bump_epoch(job_id, index, ids, when=when, after=after)
        if raised is None:
            return None
        self.publish(Message(job_id, index, raised.epoch, raised.stage, ids, raised.queue, after))
        return raised.old_ids

    def note_overrun(self, lease: Lease, step: Step) -> None:
        """Log that the turn before this one ran into its deadline, if it did. Raises LeaseLost, StoreUnavailable."""
        if not lease.overran:
            return
        message = (
            f"{step.name} made no progress and was ended; it starts over and may now go {lease.deadline:.0f} s without "
            f"any: it may need {step.remedy}"
        )
        self.store.leases.save(lease, {"trouble": Problem(code="deadline", message=message)})
        ids: dict[str, Any] = {} if lease.index == JOB else {"shard": lease.index}
        fields = {"link": step.name, "seconds": lease.deadline, "message": message}
        self.log(lease.job.id, [("deadline", fields)], level=logging.WARNING, **ids)

    def publish_merge(self, lease: Lease, epoch: int, ids: list[str], *, small: bool = False) -> None:
        self.publish(Message(lease.job.id, JOB, epoch, State.FINALIZING, ids, lease.job.queue, small=small))

    def log(
        self,
        job_id: str,
        events: Iterable[tuple[str, dict[str, Any]]],
        *,
        level: int = logging.INFO,
        recorded: bool = False,
        **ids: Any,
    ) -> None:
        """Write events to the job's log and ours. The log is only for people: losing an event must not fail a turn.

        ``recorded``: a script has added them to the job's log.
        """
        for event, fields in events:
            log_event(logger, event, fields, level=level, job=job_id, **ids)
            if event in TROUBLE:
                message = str(fields.get("message", event))
                record_safely(partial(self.notices.job_trouble, job_id, event, message))
            if recorded:
                continue
            try:
                self.store.events.add(job_id, event, **ids, **fields)
            except StoreUnavailable as error:
                logger.warning("event not recorded: %s", error, extra={"event": event, "job": job_id, **ids})

    def held(self, job: JobRecord) -> JobRecord:
        """Returns the job; one that has waited for a person long enough sends nothing more from now on.

        Raises OnHold while it waits.
        """
        if job.hold is None or job.hold_at is None or job.cancel or job.send_no_more:
            return job
        left = job.hold_at + self.settings.hold_seconds - self.store.now()
        if left > 0:
            raise OnHold(job.hold.message, code=job.hold.code, after=min(left, LONGEST_PAUSE))
        if self.store.jobs.resolve_hold(job.id, "land")[0] == "ok":
            self.log(job.id, [("hold_ended", {"message": job.hold.message})], level=logging.WARNING)
        return job.evolve(hold=None, hold_at=None, send_no_more=True)

    # -- counting --------------------------------------------------------------------------------------------------

    def counted(self, steps: Sequence[Step], job_id: str, index: int, turn: Callable[[], Next]) -> Next:
        """Take a turn and count how it ended. Raises StoreUnavailable, and nothing else.

        ``steps``: those that it takes. When it has ended there may be more: all but the last one led to the next.
        """
        try:
            following = turn()
        except StoreUnavailable:
            self.counters.turn(steps[-1].name, "error")  # reported with a later turn
            raise
        except out_of_time():
            raise
        except Exception as error:  # raised around a turn: it could not be claimed, or not ended
            following = self._outside(error, job_id, index)
        if isinstance(following, Retry):
            self.counters.wait(following.reason, following.after)
        for step in steps[:-1]:
            self.counters.turn(step.name, "continue")
        self.counters.turn(steps[-1].name, type(following).__name__.lower())
        self.counters.hand_over(self.flush)
        return following

    def _outside(self, error: Exception, job_id: str, index: int) -> Next:
        """Nobody holds the record, so no try is counted: the error is noted for people, and the work is tried again."""
        logger.error("turn failed", exc_info=error, extra={"event": "turn_failed", "job": job_id, "shard": index})
        problem = Problem(code=getattr(error, "code", "internal_error"), message=words(error))
        with suppress(RecordUnreadable):
            self.store.due.note_trouble(job_id, index, problem)
        return Retry(LONGEST_PAUSE, problem.message)

    def wait_for_workspace(self, lease: Lease, error: StorageTrouble) -> None:
        """A file of the workspace is missing. Returns when we stop waiting for it.

        Raises StorageTrouble (``workspace_gone``), which says from when until when, while it may come back, as a mount
        does.
        """
        record, now = lease.record, self.store.now()
        again = record.gone_at is not None and now - (record.gone_seen or 0.0) < GONE_SEEN_SECONDS
        since = record.gone_at if again and record.gone_at is not None else now
        self.store.leases.save(lease, {"gone_at": since, "gone_seen": now})
        patience = self.settings.workspace_wait_seconds
        if lease.job.cancel:
            patience = min(patience, GONE_CANCELLED_SECONDS)
        if now - since >= patience:
            return
        message = (
            f"{error}: the job's workspace has lost it; waited for since {utc(since)}, until {utc(since + patience)} "
            "(BATCHPIPE_WORKSPACE_WAIT_SECONDS), then the job ends with what the provider still has"
        )
        # not above a minute: a mount that comes back is noticed then
        raise StorageTrouble(message, code=WORKSPACE_GONE, after=min(30.0, since + patience - now + 0.1)) from error

    def flush(self) -> None:
        """Report what was counted. Counts are only for people: a Redis that is away must not fail a turn."""
        taken = self.counters.take()
        try:
            self.store.counters.add(taken)
        except StoreUnavailable:
            self.counters.put_back(taken)

    def count_stage(self, stage: str, entered: float | None) -> None:
        """A stage was left: add the seconds since it was entered to the counters."""
        if entered is None:
            return
        try:
            self.counters.add("stage_seconds", max(self.store.now() - entered, 0.0), stage=stage)
        except StoreUnavailable:
            logger.debug("seconds in stage %s not counted", stage)


def check_cancel(lease: Lease) -> None:
    """The check of a transfer that may be broken off, because a cancelled job no longer needs it."""
    lease.check()
    if lease.news.cancel and not lease.job.cancel:
        raise TransientError("the job is being cancelled", code=CANCELLING)


def foreseen(error: Exception, step: Step) -> Exception:
    """The same error; but a worker's time limit is trouble of that worker, not a failure of the work."""
    if not isinstance(error, out_of_time()):
        return error
    message = f"{step.name} met the time limit of its worker (task_soft_time_limit); it may need {step.remedy}"
    return TransientError(message, code="time_limit")


def words(error: BaseException) -> str:
    """What a person reads of an error that may come from any library."""
    return shortened(without_secrets(str(error)), MOST_MESSAGE) or type(error).__name__


def numbers(counts: dict[str, Any]) -> str:
    """Rows by outcome, in words."""
    found = [f"{counts[name]} {name}" for name in ("ok", "failed", "missing") if counts.get(name)]
    return ", ".join(found) or "no rows"


def _ids(job_id: str, index: int) -> dict[str, Any]:
    return {"event": "not_published", "job": job_id, "shard": index}
