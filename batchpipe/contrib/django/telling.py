"""The end of a job becomes a signal of Django."""

from __future__ import annotations

from batchpipe.contrib.django import signals


def tell(job_id: str) -> None:
    """Send the signal of a job's end to all receivers. Raises what the first of those that failed has raised."""
    from batchpipe.client import Job, get_job

    job = get_job(job_id)
    signal = {
        "succeeded": signals.job_succeeded,
        "partial": signals.job_partial,
        "failed": signals.job_failed,
        "cancelled": signals.job_cancelled,
    }[job.state.value]
    # one receiver that fails must not keep the others from theirs
    for _, answer in signal.send_robust(sender=Job, job=job):
        if isinstance(answer, Exception):
            raise answer
