"""The Celery tasks, the app, and how messages are published. Importing this package registers the tasks."""

from batchpipe.tasks.chain import create, download, merge, poll, prepare, sweep, upload

__all__ = ["create", "download", "merge", "poll", "prepare", "sweep", "upload"]
