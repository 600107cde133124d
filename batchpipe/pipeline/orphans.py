"""Orphans: batches of ours that run and that no shard waits for. A visitor of looks; what it finds is cancelled."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from batchpipe.errors import Refused, Unavailable
from batchpipe.model.provider import Batch, Provider
from batchpipe.model.records import ShardRecord, Stage, Status
from batchpipe.pipeline.looks import Walk
from batchpipe.pipeline.runner import Runner

logger = logging.getLogger(__name__)


class Orphans:
    """Cancels what must not run."""

    def __init__(self, runner: Runner, api: Provider) -> None:
        self._runner, self._api = runner, api
        self.left = 0  #: orphans that could not be cancelled
        self.ours = 0  #: batches that show a shard of ours

    def visit(self, batches: Sequence[Batch], recorded: frozenset[str]) -> tuple[()]:
        """The records are read after the list, so a batch that is not recorded by now was not recorded then."""
        self.ours += len(recorded)
        rest = [batch for batch in batches if batch.id not in recorded]
        ours = [(batch, place) for batch in rest if (place := place_of(batch)) is not None]
        shards = self._runner.store.shards.at([place for _, place in ours])
        for (batch, _), shard in zip(ours, shards, strict=True):
            if shard is None:
                continue  # of another Redis, or of one that has lost it: see recover
            self.ours += 1
            if _is_orphan(batch, shard):
                self.left += not self._cancel(batch, shard)
        return ()

    def walked(self, walk: Walk) -> None:
        """Nothing more to do."""

    def _cancel(self, batch: Batch, shard: ShardRecord) -> bool:
        """Returns whether the batch is dealt with."""
        ids = {"job": shard.job, "shard": shard.index, "batch": batch.id}
        logger.error("an orphan batch is cancelled: its shard has another", extra={"event": "orphan", **ids})
        try:
            self._api.cancel_batch(batch.id)
        except Refused:
            return True  # it has just ended
        except Unavailable as error:  # one batch must not hold up the others
            logger.error("an orphan batch could not be cancelled: %s", error, extra={"event": "orphan", **ids})
            return False
        self._runner.counters.add("orphans_cancelled")
        self._runner.log(shard.job, [("orphan_cancelled", {"batch_id": batch.id})], shard=shard.index)
        return True


def place_of(batch: Batch) -> tuple[str, int] | None:
    """The job and shard that a batch names, if it is one of ours."""
    job, index = batch.metadata.get("batchpipe_job"), batch.metadata.get("batchpipe_shard", "")
    return (job, int(index)) if job and index.isascii() and index.isdigit() and len(index) < 10 else None


def _is_orphan(batch: Batch, shard: ShardRecord) -> bool:
    """It is running, and its shard has another batch or will have none. While that is open, it may yet be adopted."""
    if batch.status in Status.FINAL or batch.status == "cancelling":
        return False
    if batch.id == shard.batch_id or batch.id in shard.spent:
        return False
    if batch.metadata.get("batchpipe_key", shard.key) != shard.key:
        return True  # from an earlier try: it can never be adopted, because the number of tries only grows
    return shard.batch_id is not None or shard.stage == Stage.COLLECTED
