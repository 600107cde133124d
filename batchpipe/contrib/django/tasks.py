"""Found by ``app.autodiscover_tasks()`` in INSTALLED_APPS: this adds the tasks to the site's Celery app."""

from __future__ import annotations

from batchpipe.tasks import celery_tasks as tasks
from batchpipe.worker import schedule_tasks

__all__ = ["schedule_tasks", "tasks"]
