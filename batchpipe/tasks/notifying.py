"""Tells of a job's end: its ``on_done``, and the receivers of the sites that this process has loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from celery import signature
from celery.exceptions import SoftTimeLimitExceeded

from batchpipe.config.site import FRAMEWORKS, current_site, worker_of
from batchpipe.errors import TransientError
from batchpipe.masking import one_line, without_secrets
from batchpipe.model.records import JobRecord
from batchpipe.pipeline.closing import NotDelivered
from batchpipe.tasks.app import app_in_use
from batchpipe.tasks.publishing import BROKER_TROUBLE

logger = logging.getLogger(__name__)


def tell(job: JobRecord) -> None:
    """Send the job's ``on_done`` under a fixed task id, and call the receivers; at least once. Raises TransientError.

    The job of a site is told only to that site's receivers; if they are not registered here, to none.
    """
    if job.on_done is not None and not job.notify_attempts:  # else it was sent, and only receivers were not called
        try:
            signature(job.on_done, app=app_in_use()).apply_async(args=(job.id,), task_id=f"{job.id}-done", retry=True)
        except BROKER_TROUBLE as error:
            raise TransientError(f"on_done not sent: {type(error).__name__}", code="broker_unavailable") from error
    receivers = current_site().receivers
    if missing := [name for name in job.notify_sites if name not in receivers]:
        raise _not_loaded(job, missing)
    for name, receiver in list(receivers.items()):
        if job.notify_sites and name in FRAMEWORKS and name not in job.notify_sites:
            continue
        try:
            receiver(job.id)
        except SoftTimeLimitExceeded:  # the worker's limit, not an error of the receiver
            raise
        except Exception as error:  # it is the site's code
            message = f"{name} failed: {type(error).__name__}: {without_secrets(str(error))}"
            if job.receiver_errors:
                logger.warning("%s", one_line(message), extra={"event": "not_delivered", "job": job.id})
            else:
                logger.exception("%s failed for job %s", name, job.id, extra={"event": "not_delivered"})
            raise NotDelivered(message, raised=True) from error


def _not_loaded(job: JobRecord, names: Sequence[str]) -> NotDelivered:
    frameworks = ", ".join(FRAMEWORKS[name][0] if name in FRAMEWORKS else name for name in names)
    message = (
        f"this worker has not loaded the site with the receivers of this job ({frameworks}): "
        f"start it as {worker_of(names)}"
    )
    if job.notify_attempts == job.receiver_errors:  # once, since later tries say the same
        logger.warning("job %s has ended: %s", job.id, message, extra={"event": "not_delivered"})
    return NotDelivered(message, raised=False)
