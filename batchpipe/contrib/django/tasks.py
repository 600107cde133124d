"""Found by ``app.autodiscover_tasks()`` in INSTALLED_APPS: the tasks become those of the site's Celery app."""

from __future__ import annotations

from batchpipe import schedule_tasks, tasks

__all__ = ["schedule_tasks", "tasks"]
