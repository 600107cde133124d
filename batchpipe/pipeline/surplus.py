"""Cancels a batch that was made in vain: its shard has another one, or will have none."""

from __future__ import annotations

import logging

from batchpipe.errors import BatchpipeError, Refused
from batchpipe.model.provider import Batch, Provider
from batchpipe.model.records import Status

logger = logging.getLogger(__name__)


def cancel(batch: Batch, api: Provider) -> None:
    """Cancel a batch that must not run. What goes wrong is logged: a later look cancels it."""
    if batch.status in Status.FINAL:
        return
    try:
        api.cancel_batch(batch.id)
    except Refused:
        pass  # it has ended
    except BatchpipeError as error:
        logger.error("batch %s could not be cancelled: %s", batch.id, error, extra={"event": "orphan"})
