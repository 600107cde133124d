"""What an error of a step means for its shard: it is tried again, and when, or its rows are given up."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import Any

from batchpipe.errors import (
    FILE_MISSING,
    WORKSPACE_GONE,
    LeaseLost,
    Paused,
    PermanentError,
    Refused,
    SettingsError,
    StorageTrouble,
    StoreUnavailable,
    TransientError,
)
from batchpipe.model.lateness import waits_of
from batchpipe.model.records import LONGEST_PAUSE, Move, Problem, ShardRecord, Stage
from batchpipe.model.retry import SHARD_TROUBLE, UNFORESEEN
from batchpipe.model.room import TooLarge, with_limit
from batchpipe.model.steps import Step
from batchpipe.pipeline.collecting import abandon
from batchpipe.pipeline.manifest import workspace_of
from batchpipe.pipeline.notices import record_safely
from batchpipe.pipeline.runner import CANCELLING, MAX_TRIES, Runner, foreseen, words
from batchpipe.pipeline.steps.salvage import lost, salvage
from batchpipe.store import ShardLease
from batchpipe.telemetry.counters import reason_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failed:
    """A turn that failed: why, and how long to wait."""

    problem: Problem
    after: float
    counted: bool
    reason: str = "failure"  #: for the counters

    def as_move(self, shard: ShardRecord) -> Move:
        """The shard stays where it is, and is tried again; trouble that was said already is no event."""
        changes: dict[str, Any] = {**waits_of(shard), "trouble": self.problem, "backoff": shard.backoff + 1}
        said = {"message": self.problem.message, "seconds": round(self.after, 1), "reason": self.reason}
        repeated = shard.trouble is not None and shard.trouble.message == self.problem.message
        events = [] if repeated else [("deferred", said)]
        return Move(stage=Stage(shard.stage), after=self.after, changes=changes, events=events)


class ShardTrouble:
    """Decides what trouble means, for the turns of ``runner``."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def met(self, step: Step, lease: ShardLease, error: Exception) -> Move | Failed:
        """What an error of a step means for the shard."""
        error = foreseen(error, step)
        if isinstance(error, StorageTrouble) and error.code == FILE_MISSING:
            try:
                return self._without_files(lease, error)
            except (LeaseLost, StoreUnavailable):
                raise
            except Exception as other:
                error = foreseen(other, step)
        problem = Problem(code=getattr(error, "code", "internal_error"), message=words(error))
        after = getattr(error, "after", None)
        if isinstance(error, Paused):
            after = self.pause(lease, problem, after)
        if isinstance(error, TransientError | SettingsError | OSError):
            return self._defer(lease, problem, after, reason_of(error))
        if isinstance(error, PermanentError) and not is_committed(lease.shard):
            return self._give_up(step, lease, problem, refused=isinstance(error, Refused))
        logger.error("%s failed", step.name, exc_info=error, extra={"event": "turn_failed"})
        return self.unforeseen(step, lease, problem)

    def _without_files(self, lease: ShardLease, error: StorageTrouble) -> Move:
        """The shard's file is gone from the workspace. Raises StorageTrouble while we wait for it.

        After that the provider's answers are kept; the other rows are missing, and only counted.
        """
        self._runner.wait_for_workspace(lease, error)
        job, shard = lease.job, lease.shard
        problem = Problem(code=WORKSPACE_GONE, message=f"{error}: the workspace of the job is gone, or a file of it")
        self._runner.log(job.id, [(WORKSPACE_GONE, {"message": str(error)})], level=logging.ERROR, shard=shard.index)
        if shard.stage != Stage.ENDED or not (shard.output_file_id or shard.error_file_id):
            return lost(shard, problem)
        workspace = workspace_of(job, self._runner.settings)
        try:
            return salvage(shard, workspace, self._runner.apis(job.account), problem, check=lease.check)
        except StorageTrouble as trouble:
            if trouble.code != FILE_MISSING:
                raise
            return lost(shard, problem)  # its whole storage is gone

    def unforeseen(self, step: Step, lease: ShardLease, problem: Problem) -> Move | Failed:
        """A mistake of ours, or a refusal while there may be a batch: a try is counted."""
        spent = lease.shard.tries >= MAX_TRIES
        if spent and not is_committed(lease.shard):
            return self._give_up(step, lease, problem)
        return Failed(problem, LONGEST_PAUSE if spent else UNFORESEEN.pause(lease.shard.tries), counted=True)

    def _give_up(self, step: Step, lease: ShardLease, problem: Problem, *, refused: bool = False) -> Move | Failed:
        try:
            return self.abandon(lease, problem, refused=refused)
        except StorageTrouble as error:
            if error.code == FILE_MISSING:
                return self.met(step, lease, error)
            return self._defer(lease, Problem(code=error.code, message=str(error)), None, reason_of(error))
        except (TransientError, OSError) as error:
            return self._defer(lease, Problem(code="storage_trouble", message=words(error)), None, reason_of(error))

    def _defer(self, lease: ShardLease, problem: Problem, after: float | None, reason: str) -> Failed:
        """Foreseen trouble: no try is counted, and the pauses become longer."""
        pause = SHARD_TROUBLE.pause(lease.shard.backoff)
        # a pause that the provider named is kept, and spread so that not all retries fall in the same second
        named = after * random.uniform(1.0, 1.1) if after is not None else 0.0
        if problem.code == CANCELLING:
            pause = 0.0
        return Failed(problem, min(max(named, pause), LONGEST_PAUSE), counted=False, reason=reason)

    def pause(self, lease: ShardLease, problem: Problem, after: float | None) -> float:
        """Pause the account: every further call would be refused, too. Returns the seconds that the pause lasts."""
        if (pause := self._runner.store.accounts.pause_of(lease.job.account)) is not None:
            return pause.seconds
        seconds = max(after if after is not None else self._runner.settings.account_pause_seconds, 1.0)
        record_safely(lambda: self._runner.notices.account_paused(lease.job.account, problem, seconds))
        self._runner.store.accounts.pause(lease.job.account, seconds, problem)
        self._runner.counters.add("account_pauses", account=lease.job.account)
        fields = {"account": lease.job.account, "seconds": seconds, "message": problem.message}
        self._runner.log(lease.job.id, [("account_paused", fields)], level=logging.ERROR, shard=lease.index)
        return seconds

    def abandon(self, lease: ShardLease, problem: Problem, *, refused: bool = False) -> Move:
        """Account for the rows of a shard that has no files: failed if the provider refused it, else missing."""
        workspace = workspace_of(lease.job, self._runner.settings)
        return abandon(lease.job, lease.shard, workspace, lease.token, problem, refused=refused, check=lease.check)

    def too_large(self, lease: ShardLease, found: TooLarge) -> Move:
        """Its rows come back in a further round, in shards below the limit that is known now, or have failed."""
        workspace = workspace_of(lease.job, self._runner.settings)
        job, shard, again = lease.job, lease.shard, found.again
        move = abandon(job, shard, workspace, lease.token, found.problem, refused=True, again=again, check=lease.check)
        return with_limit(move, found)


def is_committed(shard: ShardRecord) -> bool:
    """It has a batch, or may have one: trouble on our side must never make us abandon it."""
    return shard.batch_id is not None or shard.intent_at is not None
