"""batchpipe in a Flask app: ``BatchPipe(app)``. See docs/flask.md."""

from __future__ import annotations

from batchpipe.contrib.flask.extension import BatchPipe
from batchpipe.contrib.flask.signals import job_cancelled, job_failed, job_partial, job_succeeded
from batchpipe.contrib.flask.views import blueprint
from batchpipe.contrib.flask.webhooks import webhooks

__all__ = ["BatchPipe", "blueprint", "job_cancelled", "job_failed", "job_partial", "job_succeeded", "webhooks"]
