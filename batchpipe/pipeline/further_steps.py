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
from batchpipe.pipeline.shard_words import why
from batchpipe.store import Following, ShardLease

logger = logging.getLogger(__name__)

#: How a turn ends.
Ending = Move | Over | Failed


class FurtherSteps(Runner):
    """What it needs of the turns of shards, and the two steps that may be taken so."""

    trouble: ShardTrouble

    @abstractmethod
    def _step(self, step: Step, lease: ShardLease, api: Provider | Exception) -> Ending:
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

    def go_further(
        self, steps: list[Step], lease: ShardLease, api: Provider | Exception, ending: Ending
    ) -> tuple[Ending, str]:
        """Take the next step in the same turn, and add it to ``steps``, if one can be and nothing went wrong lately.
        Returns how the turn ends, and what people read of the step before ('' if no further one was taken).
        """
        shard = lease.shard
        if not isinstance(ending, Move) or shard.trouble is not None or shard.tries > 1:
            return ending, ""  # by itself: what hangs must not keep what is known from being recorded
        if self._following(lease, ending) is None:
            return ending, ""
        further: Ending | None = None
        if ending.stage == Stage.ENDED and ending.hold is None:
            further, step = self._download_too(lease, api, ending), "download"
        elif (shard.stage, ending.stage) == (Stage.PLANNED, Stage.UPLOADED):
            further, step = self._create_too(lease, api, ending), "create"
        if further is None:
            return ending, ""
        steps.append(SHARD_STEPS[step])
        return further, why(shard, ending)

    def _download_too(self, lease: ShardLease, api: Provider | Exception, seen: Move) -> Move | None:
        """A small batch was seen to have ended: its rows are fetched, and both are recorded at once. What stands in the
        way of that is left to the turn of download, which then follows.
        """
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
            return None
        finally:
            lease.shard = shard
        if not (isinstance(found, Move) and found.stage == Stage.COLLECTED):
            return None
        self.counters.add("stage_seconds", time.monotonic() - began, stage=Stage.ENDED.value)
        changes, events = {**seen.changes, **found.changes}, [*seen.events, *found.events]
        return msgspec.structs.replace(found, changes=changes, events=events)

    def _create_too(self, lease: ShardLease, api: Provider | Exception, uploaded: Move) -> Ending | None:
        """A file was uploaded: its batch is created, and the intent, without which nothing is sent, records both. Until
        that is written the turn is the upload's, and whatever stands in the way is left to the turn of create.
        """
        shard, create = lease.shard, SHARD_STEPS["create"]
        if shard.intent_at is not None or shard.calls:
            return None
        move, _ = self._as_move(shard, uploaded)
        recorded = [(event, {"shard": lease.index, **fields}) for event, fields in move.events]
        lease.unrecorded = msgspec.structs.replace(move, events=recorded)
        lease.shard = shard.evolve(**move.changes, stage=Stage.UPLOADED.value, uploaded_at=self.store.now())
        ending: Ending = uploaded
        try:
            ending = self._step(create, lease, api)
        except (LeaseLost, StoreUnavailable):
            raise
        except Exception as error:
            if lease.is_recorded():
                ending = self.trouble.met(create, lease, error)
            elif isinstance(error, out_of_time()):
                raise
        if not lease.is_recorded():
            lease.shard, lease.unrecorded = shard, None
            return None
        self.ahead.link = "poll"
        self._count_move(lease.job.account, shard, move)
        self.log(lease.job.id, move.events, recorded=True, shard=lease.index)
        return ending


def after_further(step: Step, before: str, following: Next) -> Next:
    """How the chain of a message goes on whose turn has taken a further step of it, and what people read of both."""
    said = " - ".join(part for part in (before, following.why) if part)
    if isinstance(following, Retry):
        return Continue(said, following.after, link=step.name)
    if isinstance(following, Continue):
        names = list(SHARD_STEPS)
        return replace(following, why=said, link=following.link or names[names.index(step.name) + 1])
    return replace(following, why=said)
