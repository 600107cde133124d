"""Called in the worker when a job has ended."""

from typing import Any

from django.dispatch import receiver

import batchpipe
from batchpipe.contrib.django.signals import job_cancelled, job_partial, job_succeeded
from catalogue.descriptions import write_back


@receiver([job_succeeded, job_partial, job_cancelled])
def descriptions_are_there(job: batchpipe.Job, **_: Any) -> None:
    if job.name == "product descriptions":
        write_back(job)
