"""The task that beat sends for the schedules. Apart from ``tasks``, for it uses the client, which uses those.

``batchpipe.setup(app)`` imports it; nothing else is needed to have it in a site's workers.
"""

from __future__ import annotations

from typing import Any

from celery import shared_task

from batchpipe.client import default_client
from batchpipe.schedules import tick
from batchpipe.tasks import PULSE


@shared_task(name="batchpipe.schedules", **PULSE)
def schedules(**newer: Any) -> int:
    """Submit the scheduled jobs that are due."""
    return len(tick(default_client()))
