"""Records that cannot be read are skipped where that is safe, and logged once."""

from __future__ import annotations

import logging

from batchpipe.config.site import current_site
from batchpipe.errors import RecordUnreadable

logger = logging.getLogger(__name__)


def log_once(error: RecordUnreadable) -> str:
    """Log that a record is skipped, once in this process; returns the message."""
    if current_site().is_first_time("record_unreadable", error.message):
        logger.warning("%s", error.message, extra={"event": "record_unreadable"})
    return error.message
