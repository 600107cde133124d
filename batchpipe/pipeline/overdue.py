"""Publishes overdue work again, unless its message must still be waiting in a queue that no worker serves.

A message that is published again makes the one before it void, but does not remove it. So nothing more is sent to a
queue that is not empty and from which nothing was taken since: each time would leave another void message.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from batchpipe.config.site import current_site
from batchpipe.errors import RecordUnreadable
from batchpipe.masking import without_secrets
from batchpipe.model.retry import QUEUE_STUCK
from batchpipe.pipeline.runner import Runner
from batchpipe.store import WaitingMessage, When, log_once

logger = logging.getLogger(__name__)

#: Records looked at in one go, the longest overdue first.
PASS_LENGTH = 1_000
#: How many such looks in one pass, while all records found wait in idle queues: they must not hold up others.
MOST_PASSES = 20
#: Such records are looked at again after this many seconds at most: after a lease, if they are not too many.
LOOK_AGAIN_SECONDS = 300.0
#: A message taken so shortly after one was published proves nothing: clocks are read one after the other.
MOMENT_SECONDS = 1.0
#: How often a process logs that no worker serves a queue, in seconds.
SAY_SECONDS = 3_600.0


@dataclass(frozen=True)
class _Queue:
    """What a pass has found out about a queue."""

    is_empty: bool  #: or unknown
    taken: float  #: when a worker last took something from it
    listened: bool  #: a worker listens on it

    def still_has(self, waiting: WaitingMessage, now: float) -> bool:
        """Whether a message is certainly still there, unless the broker has lost just this one."""
        if self.is_empty or self.taken > waiting.published + MOMENT_SECONDS:
            return False
        # if a worker listens and takes nothing for so long, ours may be lost and only other messages be there
        return not self.listened or now - waiting.published < QUEUE_STUCK.pause(waiting.times)


def publish_overdue(runner: Runner, limit: int = PASS_LENGTH) -> int:
    """Returns how many records were published again. Raises StoreUnavailable."""
    republished, queues = 0, _Queues(runner)
    for number in range(1, MOST_PASSES + 1):
        places = runner.store.due.overdue(limit)
        waiting = queues.that_have(places)
        for job_id, index in places:
            if (job_id, index) not in waiting and republish_or_set_aside(runner, job_id, index, "overdue"):
                republished += 1
                logger.info("overdue, published again", extra={"event": "swept", "job": job_id, "shard": index})
        if waiting:
            runner.counters.add("left_waiting", len(waiting))
            runner.store.due.postpone(list(waiting), min(LOOK_AGAIN_SECONDS, number * runner.settings.lease_seconds))
        if len(waiting) < limit:
            break
    queues.report()
    return republished


def republish_or_set_aside(runner: Runner, job_id: str, index: int, when: When) -> bool:
    """Returns whether it was published again. A record that cannot be read is logged and skipped."""
    try:
        return runner.republish(job_id, index, when=when) is not None
    except RecordUnreadable as error:
        log_once(error)
        runner.store.due.set_aside(job_id, index)
        return False


class _Queues:
    """The queues of overdue records; the broker is asked about each once in a pass."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: dict[str, _Queue] = {}
        self._listening: dict[str, list[str]] | None = None
        self._dead: dict[str, int] = {}

    def that_have(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], WaitingMessage]:
        """Those of these overdue records with messages that still wait in their queues."""
        if self._runner.waiting_in is None or not places:
            return {}
        now, found = self._runner.store.now(), {}
        for place, waiting in zip(places, self._runner.store.queues.waiting(places), strict=True):
            if waiting is None or not (queue := self._look(waiting.queue)).still_has(waiting, now):
                continue
            found[place] = waiting
            if not queue.listened and not waiting.own_queue:
                self._dead[waiting.queue] = self._dead.get(waiting.queue, 0) + 1
        return found

    def _look(self, name: str) -> _Queue:
        if (known := self._known.get(name)) is not None:
            return known
        store, count = self._runner.store, self._runner.waiting_in
        if self._listening is None:
            self._listening = store.queues.listening()
        # read first what was taken: a message taken between the two reads then counts as still waiting
        taken, messages = store.queues.last_taken(name), count(name) if count is not None else None
        self._known[name] = found = _Queue(not messages, taken, name in self._listening)
        return found

    def report(self) -> None:
        """Log now and then that work waits for a worker."""
        for name, records in self._dead.items():
            if not current_site().is_first_time("no_worker_swept", name, seconds=SAY_SECONDS):
                continue
            logger.warning(
                "%d pieces of work wait in queue %s, and no worker listens on it: "
                "start one (batchpipe worker --queues %s)",
                *(records, without_secrets(name), without_secrets(name)),
                extra={"event": "no_worker"},
            )
