"""Sent when a job has ended, by a worker that has loaded the app, at least once: a second call must do no harm.

The sender is the Flask app, and its context is pushed; ``job`` is the job. A receiver that raises is called again,
about a minute later and for about an hour, and so are the others: the database may be away when a job ends.
"""

from __future__ import annotations

import logging
from typing import Any

from blinker import Namespace
from flask import Flask

logger = logging.getLogger(__name__)

_signals = Namespace()

job_succeeded = _signals.signal("batchpipe-job-succeeded", "Every row is ok.")
job_partial = _signals.signal("batchpipe-job-partial", "Some rows are ok, some are not.")
job_failed = _signals.signal("batchpipe-job-failed", "No row is ok, or the input was refused: job.error says why.")
job_cancelled = _signals.signal("batchpipe-job-cancelled", "Cancelled; job.results() has the rows that had finished.")

_BY_STATE = {
    "succeeded": job_succeeded,
    "partial": job_partial,
    "failed": job_failed,
    "cancelled": job_cancelled,
}


def send(app: Flask, job: Any) -> None:
    """Send the signal of a job's end to all receivers. Raises the error of the first receiver that failed."""
    failed: Exception | None = None
    for receiver in _BY_STATE[job.state.value].receivers_for(app):
        try:
            receiver(app, job=job)
        except Exception as error:  # one failing receiver must not keep the signal from the others
            if failed is not None and not job.record.receiver_errors:  # once, as with the first
                logger.exception("a further receiver failed for job %s", job.id)
            failed = failed or error
    if failed is not None:
        raise failed
