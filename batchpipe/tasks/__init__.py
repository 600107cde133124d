"""The Celery tasks, the app, and how messages are published. Importing this package registers the tasks."""

from batchpipe.tasks.celery_tasks import create, download, merge, poll, prepare, sweep, upload
from batchpipe.tasks.notifying import notify

__all__ = ["create", "download", "merge", "notify", "poll", "prepare", "sweep", "upload"]
