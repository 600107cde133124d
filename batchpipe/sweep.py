"""The safety net: what is past due is published anew. Any number of sweeps at once do no harm."""

from __future__ import annotations

import logging

from batchpipe.pipeline import Turns

logger = logging.getLogger(__name__)

#: Records looked at in one pass; the longest overdue come first, the rest with the next pass.
PASS_LENGTH = 1_000


def sweep(turns: Turns, *, limit: int = PASS_LENGTH) -> int:
    """One pass. Answers how many records were published anew. Raises StoreUnavailable."""
    woken = 0
    for job_id, index in turns.store.due(limit):
        if turns.wake(job_id, index, when="overdue") is not None:
            woken += 1
            logger.info("overdue, published anew", extra={"event": "swept", "job": job_id, "shard": index})
    return woken
