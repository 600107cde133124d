"""Which queues have a worker, and what to say to people if a job waits in one that has none.

Workers note in Redis on which queues they listen (``worker.setup``); only if none has, all are asked by broadcast. Who
must not wait for that asks only where the note of a worker has lapsed, so that nobody knows whether it is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Literal

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site, worker_of
from batchpipe.errors import StoreUnavailable
from batchpipe.model.records import JobRecord
from batchpipe.store import Store

logger = logging.getLogger(__name__)

#: When to ask all workers about a queue on which none has noted that it listens.
Ask = Literal["always", "lapsed", "never"]
#: Seconds that the worker of a ``run`` may need to start; until then, nothing is said about its queue.
STARTING_SECONDS = 10.0
#: For a caller that waits for a job: seconds to the first look, between looks, and between two warnings.
FIRST_LOOK_SECONDS, LOOK_SECONDS, SAY_SECONDS = 2.0, 10.0, 60.0


def deserted(store: Store, queues: Collection[str], *, ask: Ask = "always") -> set[str]:
    """Those of these queues on which no worker listens; not those for which that is unknown. Raises StoreUnavailable.

    A few reads; if there are such queues, also a question to all workers, which takes a second (``ask``).
    """
    if not queues:
        return set()
    listening = store.queues.listening()
    silent = {queue for queue in queues if queue not in listening}
    doubtful = silent if ask == "always" else silent & store.queues.lapsed() if silent and ask == "lapsed" else set()
    if not doubtful:
        return silent
    from batchpipe.tasks.inspection import queues_of_workers

    answers = queues_of_workers()
    return silent - (set(answers) if answers is not None else doubtful)


def missing_worker(store: Store, settings: Settings, job: JobRecord, *, ask: Ask = "always") -> str:
    """One line that says that no worker listens on this job's queue, and what to start; else "".

    Raises StoreUnavailable.
    """
    if job.closed or (job.input_here and store.now() - job.created_at < STARTING_SECONDS):
        return ""
    if not deserted(store, [job.queue], ask=ask):
        return ""
    return f"no worker listens on queue {job.queue}; {how_to_start(settings, job.queue, [job])}"


def how_to_start(settings: Settings, queue: str, jobs: Sequence[JobRecord]) -> str:
    """The command that starts a worker of this site, or of the site that the jobs belong to."""
    if own := next((job for job in jobs if job.input_here), None):
        return f"start one: `batchpipe wait {own.id}`"
    names = sorted({*current_site().frameworks(), *(name for job in jobs for name in job.notify_sites)})
    ours = queue == settings.queue
    there = "" if ours else f", each for this queue ({queue})"
    if names:
        plain = "a plain `batchpipe worker` does not run a site's receivers"
        return f"start one: {worker_of(names)}{there}; {plain}"
    from batchpipe.tasks.app import current_site_app, is_ours

    app = current_site_app()
    if app is not None and not is_ours(app):
        return f"start one: `celery -A ... worker` of the app {app.main}, or `batchpipe -A ... worker`{there}"
    return f"start one: `batchpipe worker{'' if ours else f' --queues {queue}'}` (`batchpipe run` brings its own)"


def warn_of_submit(store: Store, settings: Settings, job: JobRecord) -> None:
    """Log that no worker listens on this new job's queue: at once, at the cost of one read; once a minute per queue."""
    with suppress(StoreUnavailable):  # it is recorded: its submit must not fail for this
        line = missing_worker(store, settings, job, ask="never")
        if line and current_site().is_first_time("no_worker", job.queue, seconds=SAY_SECONDS):
            logger.warning("job %s waits: %s", job.id, line, extra={"event": "no_worker", "job": job.id})


class Watch:
    """Called repeatedly with a job while a caller waits for it: says if no worker listens on its queue."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        say: Callable[[str], object] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``say``: what to do with the line; by default it is logged as a warning."""
        self._store, self._settings, self._clock = store, settings, clock
        self._say = say or (lambda line: logger.warning("%s", line, extra={"event": "no_worker"}))
        self._next = clock() + FIRST_LOOK_SECONDS

    def __call__(self, job: JobRecord) -> None:
        """Raises StoreUnavailable."""
        if self._clock() < self._next or job.closed:
            return
        self._next = self._clock() + LOOK_SECONDS
        if line := missing_worker(self._store, self._settings, job):
            self._next = self._clock() + SAY_SECONDS
            self._say(f"job {job.id} waits: {line}")
