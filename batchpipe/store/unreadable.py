"""Records that cannot be read are skipped where that is safe, and named once in the log."""

from __future__ import annotations

import logging

from batchpipe.errors import RecordUnreadable

logger = logging.getLogger(__name__)

#: Records that this process has logged as unreadable.
_named: set[str] = set()


def name_once(error: RecordUnreadable) -> str:
    """Log that a record is skipped, once in this process; returns the message."""
    if error.message not in _named and len(_named) < 10_000:
        _named.add(error.message)
        logger.warning("%s", error.message, extra={"event": "record_unreadable"})
    return error.message
