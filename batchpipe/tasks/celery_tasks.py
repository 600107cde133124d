"""The Celery tasks: a few lines each. The logic is in ``batchpipe.pipeline``.

They are shared tasks: a site's own app and workers run them; where there is no app, one is made from the settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import Celery, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from batchpipe.errors import BatchpipeError, RecordUnreadable, SettingsError, StoreUnavailable
from batchpipe.masking import one_line
from batchpipe.model.records import JOB
from batchpipe.model.retry import REDIS_PAUSE_SECONDS, SETTINGS_PAUSE_SECONDS
from batchpipe.model.steps import STEPS
from batchpipe.pipeline.messages import Continue, Done, Message, Next, Retry
from batchpipe.pipeline.slots import SMALL_BYTES, SMALL_ROWS, Kind, Slots
from batchpipe.pipeline.sweep import sweep as sweep_once
from batchpipe.storage.local import unnamed_file
from batchpipe.tasks.app import countdown_of, state_of
from batchpipe.tasks.delivery import BEGIN_SECONDS
from batchpipe.tasks.options import BEAT_OPTIONS, OPTIONS, beat_options
from batchpipe.tasks.publishing import subject
from batchpipe.tasks.runtime import runtime

logger = logging.getLogger(__name__)

#: A look at many batches takes seconds, most of them asleep: it is left to the threads of workers that sweep, which ask
#: every five seconds whether it is time, unless none of them comes.
LOOKS_LATE_SECONDS = 7.0
#: The prefix of the displayed arguments of a retried task.
LAST_TIME = "last time: "


class Waiting(Exception):
    """Not an error: why a task is retried later, for Celery's log and for monitors."""

    def __repr__(self) -> str:
        return str(self)


def _later(task: Any, again: Retry) -> BaseException:
    """Let Celery retry the task. ``task.retry`` keeps its id and the rest of its chain, but not its displayed args."""
    about, why = task.request.kwargs or {}, one_line(again.why) or "its turn is still to come"
    retry: BaseException = task.retry(
        countdown=countdown_of(task.app, again.after),
        exc=Waiting(why),
        argsrepr=subject(about.get("job", ""), about.get("shard", JOB)),
        kwargsrepr=f"{LAST_TIME}{why}; again after {again.after:.0f} s",
    )
    return retry


def _answer(task: Any, turn: Callable[[], Next]) -> str | None:
    """Do a turn and tell Celery what follows. Returns the outcome in words, for people who watch the tasks."""
    try:
        following = turn()
    except StoreUnavailable as error:
        runtime().shard_runner.counters.wait("redis", REDIS_PAUSE_SECONDS)
        ids = {name: value for name, value in task.request.kwargs.items() if name in ("job", "shard")}
        logger.warning("%s: %s", task.name, error, extra={"event": "redis_away", **ids})
        following = Retry(REDIS_PAUSE_SECONDS, str(error))
    except SettingsError as error:  # settings of this process: where it looks for the record is unknown, or wrong
        logger.error("%s: %s", task.name, error, extra={"event": "settings"})
        following = Retry(SETTINGS_PAUSE_SECONDS, str(error))
    except SoftTimeLimitExceeded:  # raised while the turn's end was written; its lease expires by itself
        following = Retry(REDIS_PAUSE_SECONDS, "the worker's soft time limit was met")
    if isinstance(following, Retry):
        raise _later(task, following)
    if isinstance(following, Done):
        task.request.chain = None  # else Celery publishes the next link
    elif isinstance(following, Continue):
        _lead_on(task, following)
    return one_line(following.why) or None


def _lead_on(task: Any, following: Continue) -> None:
    """Let the chain go on at the link that follows, at its time; Celery publishes the last one of ``chain`` next."""
    chain = task.request.chain
    while chain and following.link and chain[-1]["task"] != f"batchpipe.{following.link}":
        chain.pop()  # this visit has done it
    if chain and following.after:
        chain[-1]["options"]["countdown"] = countdown_of(task.app, following.after)


def bound_long_tasks(app: Celery, at_once: int) -> None:
    """Keep some of this worker's capacity for short tasks; call it before its pool forks. With one task at once, none
    can be kept. Raises StorageTrouble without a folder for temporary files.
    """
    state_of(app).slots = Slots(at_once, unnamed_file()) if at_once > 1 else None


def _bounded(task: Any, kind: Kind, job: str, index: int, epoch: int, turn: Callable[[], Next]) -> Next:
    """Take a turn that may be long, if this worker has a slot for it; else its task is retried later."""
    if (slots := state_of(task.app).slots) is None:
        return turn()
    with slots.take(kind) as taken:
        if taken:
            return turn()
    after = slots.wait(kind)
    with suppress(RecordUnreadable):  # its turn notes that
        if runtime().store.queues.requeue(job, index, epoch, after, small=(SMALL_BYTES, SMALL_ROWS)) == "later":
            return Retry(after, "this worker is busy with others of its kind", "slots")
    return turn()


def _step(task: Any, job: str, index: int, epoch: int) -> str | None:
    """Take the turn of the step that this task is named after."""
    step = STEPS[task.name.removeprefix("batchpipe.")]

    def turn() -> Next:
        return runtime().turn(step.name, job, index, epoch)

    def first() -> Next:
        return turn() if step.slot is None else _bounded(task, step.slot, job, index, epoch, turn)

    def visit() -> Next:
        taken, message = runtime(), Message(job, index, epoch, step.stages[0], [], "")
        return taken.visits.go_on(message, first, taken.turn, lambda: not _is_stopping(task.app))

    return _answer(task, visit)


def _is_stopping(app: Celery) -> bool:
    """Whether this worker is told to stop: then a visit takes no further turn."""
    worker = state_of(app).worker
    return worker is not None and bool(worker.stopping.is_set())


@shared_task(name="batchpipe.prepare", **OPTIONS["batchpipe.prepare"])
def prepare(self: Any, *, job: str, epoch: int, shard: int = JOB, **newer: Any) -> str | None:
    """Check and split a job's input, plan its shards."""
    return _step(self, job, JOB, epoch)


@shared_task(name="batchpipe.upload", **OPTIONS["batchpipe.upload"])
def upload(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> str | None:
    """Upload a shard's file."""
    return _step(self, job, shard, epoch)


@shared_task(name="batchpipe.create", **OPTIONS["batchpipe.create"])
def create(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> str | None:
    """Create a shard's batch, once."""
    return _step(self, job, shard, epoch)


@shared_task(name="batchpipe.poll", **OPTIONS["batchpipe.poll"])
def poll(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> str | None:
    """Look at a shard's batch; retry by countdown until it has ended."""
    return _step(self, job, shard, epoch)


@shared_task(name="batchpipe.download", **OPTIONS["batchpipe.download"])
def download(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> str | None:
    """Download a shard's results and account for its rows."""
    return _step(self, job, shard, epoch)


@shared_task(name="batchpipe.merge", **OPTIONS["batchpipe.merge"])
def merge(self: Any, *, job: str, epoch: int, shard: int = JOB, **newer: Any) -> str | None:
    """Merge a job's results, record its end, notify."""
    return _step(self, job, JOB, epoch)


@shared_task(name="batchpipe.deliver", **BEAT_OPTIONS)
def deliver(**newer: Any) -> int:
    """Send the notifications that are due. What it has begun goes on beside the next tasks; returns what was delivered
    by then.
    """
    try:
        return runtime().deliverer.deliver_due(wait_for=BEGIN_SECONDS)
    except BatchpipeError as error:  # the sweep tries again
        logger.warning("notifications not sent: %s", error, extra={"event": "not_told"})
        return 0


@shared_task(name="batchpipe.sweep", **beat_options(lambda settings: settings.sweep_seconds))
def sweep(**newer: Any) -> int:
    """Publish overdue work again."""
    try:
        return sweep_once(runtime().job_runner, late=LOOKS_LATE_SECONDS)
    except BatchpipeError as error:  # Redis is away, or the settings are wrong: one line, every few seconds
        logger.warning("not swept: %s", error, extra={"event": "not_swept"})
        return 0
    except SoftTimeLimitExceeded:
        logger.warning("a sweep met the worker's soft time limit; the next one goes on", extra={"event": "time_limit"})
        return 0
