"""Waiting for the end of a job, from any process: its record is read again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from batchpipe.errors import StoreUnavailable
from batchpipe.model.records import JobRecord
from batchpipe.store import Store

#: Pause between two readings of an event log.
LOG_PAUSE_SECONDS = 0.5
#: How long ``wait`` gives an ended job to write its job.json and notify its receivers.
NOTIFY_SECONDS = 10.0
#: How long ``wait`` tolerates a Redis that does not answer.
REDIS_AWAY_SECONDS = 60.0


def follow(
    store: Store,
    job_id: str,
    *,
    timeout: float | None = None,
    tick: Callable[[JobRecord], None] = lambda job: None,
    pause: float = 0.2,
) -> JobRecord:
    """Read a job again and again until it is closed; ``tick`` is called with every reading.

    Raises TimeoutError after ``timeout`` seconds, JobNotFound.
    """
    started, ended = time.monotonic(), 0.0
    seen = started
    while True:
        now = time.monotonic()
        try:
            job = store.jobs.get(job_id)
            tick(job)
            seen = now
        except StoreUnavailable:  # Redis is being restarted, say; the job goes on
            if now - seen > REDIS_AWAY_SECONDS:
                raise
            if timeout is not None and now - started >= timeout:
                raise TimeoutError(f"job {job_id} has not ended after {timeout:g} s") from None
            time.sleep(min(1.0, timeout or 1.0))
            continue
        if job.closed or (job.state.ended and ended and now - ended > NOTIFY_SECONDS):
            return job
        if job.state.ended and not ended:
            ended = now
        if timeout is not None and now - started >= timeout and not job.state.ended:
            raise TimeoutError(f"job {job_id} has not ended after {timeout:g} s")
        left = timeout - (now - started) if timeout is not None else pause
        time.sleep(min(pause, max(left, 0.01)) if now - started > 2 else min(pause, 0.1))


def follow_log(
    store: Store, job_id: str, *, after: str = "-", pause: float = LOG_PAUSE_SECONDS
) -> Iterator[dict[str, Any]]:
    """The events of a job as they come, until it is closed. Raises JobNotFound, and StoreUnavailable if Redis has been
    away for a minute.
    """
    away = 0.0
    while True:
        try:
            over = store.jobs.get(job_id).closed  # read before the log, so that events after the end are not missed
            events, away = store.events.read(job_id, after=after), 0.0
        except StoreUnavailable:
            away = away or time.monotonic()
            if time.monotonic() - away > REDIS_AWAY_SECONDS:
                raise
            over, events = False, []
        yield from events
        if events:
            after = events[-1]["id"]
        elif over:
            return
        else:
            time.sleep(pause)
