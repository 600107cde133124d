"""The task that beat sends for the schedules. Not in ``tasks``, because it uses the client, which uses ``tasks``.

``batchpipe.setup(app)`` imports it; nothing else is needed to have it in a site's workers.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded

from batchpipe.client.client import default_client
from batchpipe.client.schedules import tick
from batchpipe.errors import BatchpipeError
from batchpipe.tasks.options import beat_options

logger = logging.getLogger(__name__)


@shared_task(name="batchpipe.schedules", **beat_options(lambda settings: settings.schedule_seconds))
def schedules(**newer: Any) -> int:
    """Submit the scheduled jobs that are due."""
    try:
        return len(tick(default_client()))
    except BatchpipeError as error:  # Redis is away, or the settings are wrong: one line, every few seconds
        logger.error("schedules: %s", error, extra={"event": "schedules"})
        return 0
    except SoftTimeLimitExceeded:  # each run has its key: the next look continues
        logger.warning("schedules met the worker's soft time limit", extra={"event": "time_limit"})
        return 0
