"""A further step of a shard in the turn of the one before, of a visit that would take it next: Redis is told of both in
one script.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from dataclasses import replace

import msgspec

from batchpipe.config.limits import out_of_time
from batchpipe.errors import LeaseLost, StoreUnavailable
from batchpipe.model.provider import Provider
from batchpipe.model.records import Move, ShardRecord, Stage
from batchpipe.model.steps import SHARD_STEPS, Step
from batchpipe.pipeline.create_actions import Over
from batchpipe.pipeline.messages import Continue, Next, Retry
from batchpipe.pipeline.runner import Runner
from batchpipe.pipeline.shard_trouble import Failed, ShardTrouble
from batchpipe.store import Following, ShardLease

logger = logging.getLogger(__name__)


class FurtherSteps(Runner):
    """What it needs of the turns of shards, and the two steps that may be taken so."""

    trouble: ShardTrouble

    @abstractmethod
    def _step(self, step: Step, lease: ShardLease, api: Provider | Exception) -> Move | Over | Failed:
        """Take a step. Raises what it raises."""

    @abstractmethod
    def _following(self, lease: ShardLease, move: Move) -> Following | None:
        """The turn that this visit takes next, if it takes one."""

    @abstractmethod
    def _as_move(self, shard: ShardRecord, ending: Move | Failed) -> tuple[Move, str]:
        """What the end of a turn writes, and what becomes of its count of tries."""

    @abstractmethod
    def _count_move(self, account: str, shard: ShardRecord, move: Move) -> None:
        """Count for people that a stage was left."""

    def download_too(
        self, lease: ShardLease, api: Provider | Exception, seen: Move | Over | Failed
    ) -> Move | Over | Failed:
        """A small batch was seen to have ended, and this visit would go on: its rows are fetched in the same turn, and
        both are recorded at once. What stands in the way of that is left to the turn of download, which then follows.
        """
        if not (isinstance(seen, Move) and seen.stage == Stage.ENDED and seen.hold is None):
            return seen
        if self._following(lease, seen) is None:
            return seen
        shard, began = lease.shard, time.monotonic()
        lease.shard = shard.evolve(**seen.changes, stage=Stage.ENDED.value)
        try:
            found = self._step(SHARD_STEPS["download"], lease, api)
        except (LeaseLost, StoreUnavailable):
            raise
        except out_of_time():
            raise
        except Exception as error:
            logger.debug("not downloaded in the turn that saw the end: %s", error)
            return seen
        finally:
            lease.shard = shard
        if not (isinstance(found, Move) and found.stage == Stage.COLLECTED):
            return seen
        self.counters.turn("download", "done")
        self.counters.add("stage_seconds", time.monotonic() - began, stage=Stage.ENDED.value)
        changes, events = {**seen.changes, **found.changes}, [*seen.events, *found.events]
        return msgspec.structs.replace(found, changes=changes, events=events)

    def create_too(
        self, step: Step, lease: ShardLease, api: Provider | Exception, uploaded: Move | Over | Failed
    ) -> tuple[Step, Move | Over | Failed]:
        """A file was uploaded, and this visit would go on: its batch is created in the same turn, and the intent,
        without which nothing is sent, records both. Until that is written the turn is the upload's, and whatever stands
        in the way is left to the turn of create, which then follows. Returns the step that the turn ends as.
        """
        shard, create_ = lease.shard, SHARD_STEPS["create"]
        if not (isinstance(uploaded, Move) and (shard.stage, uploaded.stage) == (Stage.PLANNED, Stage.UPLOADED)):
            return step, uploaded
        if shard.intent_at is not None or shard.calls or self._following(lease, uploaded) is None:
            return step, uploaded
        move, _ = self._as_move(shard, uploaded)
        recorded = [(event, {"shard": lease.index, **fields}) for event, fields in move.events]
        lease.unrecorded = msgspec.structs.replace(move, events=recorded)
        lease.shard = shard.evolve(**move.changes, stage=Stage.UPLOADED.value, uploaded_at=self.store.now())
        ending: Move | Over | Failed = uploaded
        try:
            ending = self._step(create_, lease, api)
        except (LeaseLost, StoreUnavailable):
            raise
        except Exception as error:
            if lease.is_recorded():
                ending = self.trouble.met(create_, lease, error)
            elif isinstance(error, out_of_time()):
                raise
        if not lease.is_recorded():
            lease.shard, lease.unrecorded = shard, None
            return step, uploaded
        self.ahead.link = "poll"
        self.counters.turn("upload", "continue")
        self._count_move(lease.job.account, shard, move)
        self.log(lease.job.id, move.events, recorded=True, shard=lease.index)
        return create_, ending


def of_link(link: str, following: Next) -> Next:
    """How the chain of a message goes on whose turn has done a further link, too."""
    if isinstance(following, Retry):
        return Continue(following.why, following.after, link=link)
    if isinstance(following, Continue):
        names = list(SHARD_STEPS)
        return replace(following, link=following.link or names[names.index(link) + 1])
    return following
