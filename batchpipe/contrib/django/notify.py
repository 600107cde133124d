"""Sends a Django signal at the end of a job."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from batchpipe.contrib.django import signals

logger = logging.getLogger(__name__)

#: Django's log while our signals are sent, also for receivers that are coroutines.
_said: ContextVar[list[logging.LogRecord] | None] = ContextVar("batchpipe_said", default=None)


def notify(job_id: str) -> None:
    """Send the signal of a job's end to all receivers. Raises the error of the first receiver that failed."""
    from batchpipe.client.client import Job, get_job

    job = get_job(job_id)
    signal = {
        "succeeded": signals.job_succeeded,
        "partial": signals.job_partial,
        "failed": signals.job_failed,
        "cancelled": signals.job_cancelled,
    }[job.state.value]
    with _each_failure_once() as said:
        # one failing receiver must not keep the signal from the others
        failed = [answer for _, answer in signal.send_robust(sender=Job, job=job) if isinstance(answer, Exception)]
        said[:] = [record for record in said if not any(_error_of(record) is error for error in failed)]
    for error in failed[1:] if not job.record.receiver_errors else ():  # the first is logged by the caller
        logger.error("a further receiver failed for job %s", job.id, exc_info=error)
    if failed:
        raise failed[0]


@contextmanager
def _each_failure_once() -> Iterator[list[logging.LogRecord]]:
    """Django logs each receiver that fails with its traceback, each time; so do we, but only on the first of 60 tries.

    Yields a list of the log records held back; those still in it at the end are logged.
    """
    log, said = logging.getLogger("django.dispatch"), list[logging.LogRecord]()
    log.addFilter(_hold)  # the filter stays, and is added once
    token = _said.set(said)
    try:
        yield said
    finally:
        _said.reset(token)
        for record in said:
            log.handle(record)


def _error_of(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _hold(record: logging.LogRecord) -> bool:
    if (said := _said.get()) is not None:
        said.append(record)
    return said is None
