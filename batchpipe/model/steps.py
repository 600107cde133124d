"""The steps of a job and of its shards, in one table: each is a Celery task, and a turn takes one of them.

The functions are in ``ShardRunner`` and ``JobRunner``, as ``_NAME``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from batchpipe.model.records import ENDED, JOB, Stage, State

#: How long prepare and merge, which stream the whole input, may go without progress.
JOB_DEADLINE_SECONDS = 3_600.0

_LESS_DATA = "smaller shards (MAX_ROWS, MAX_BYTES), or a higher TRANSFER_TIMEOUT_SECONDS"
_MORE_TIME = "a higher CONTROL_TIMEOUT_SECONDS"
_FASTER = "faster storage, or several smaller inputs"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: when it is taken, how long it may go without progress, and what it may touch."""

    name: str
    stages: tuple[str, ...]  #: the stages of the record in which it is taken
    enters: str = ""  #: the stage that the record has while it is taken, if another
    seconds: float = 0.0  #: its deadline: so many seconds,
    calls: float = 0.0  #: and so many times CONTROL_TIMEOUT_SECONDS,
    transfers: float = 0.0  #: and so many times TRANSFER_TIMEOUT_SECONDS
    is_long: bool = True  #: its task may take hours; False: it makes a few short calls
    slot: Literal["transfer", "job"] | None = None  #: the kind of slot that its task needs, see ``pipeline.slots``
    sends: bool = False  #: it brings rows to the provider: not for a cancelled job, nor without quota
    waits: str = "failure"  #: why it is retried though nothing is wrong, for the counters
    remedy: str  #: what a person can change if it always takes too long

    def deadline(self, *, control: float, transfer: float) -> float:
        """Seconds that a turn may go without progress the first time it is tried."""
        return self.seconds + self.calls * control + self.transfers * transfer


def _by_name(*steps: Step) -> dict[str, Step]:
    return {step.name: step for step in steps}


#: The chain of a shard, in its order.
SHARD_STEPS = _by_name(
    Step(
        name="upload",
        stages=(Stage.PLANNED.value,),
        calls=2,
        transfers=1,
        slot="transfer",
        sends=True,
        remedy=_LESS_DATA,
    ),
    Step(name="create", stages=(Stage.UPLOADED.value,), calls=10, sends=True, waits="create", remedy=_MORE_TIME),
    Step(name="poll", stages=(Stage.CREATED.value,), calls=4, is_long=False, waits="poll", remedy=_MORE_TIME),
    Step(
        name="download",
        stages=(Stage.ENDED.value,),
        transfers=3,
        slot="transfer",
        waits="files",
        remedy=_LESS_DATA,
    ),
)
#: The job's own steps: each is a chain of its own.
JOB_STEPS = _by_name(
    Step(
        name="prepare",
        stages=(State.PENDING.value, State.PREPARING.value),
        enters=State.PREPARING.value,
        seconds=JOB_DEADLINE_SECONDS,
        slot="job",
        remedy=_FASTER,
    ),
    Step(
        name="merge",
        stages=(State.FINALIZING.value, *(state.value for state in ENDED)),
        seconds=JOB_DEADLINE_SECONDS,
        slot="job",
        remedy=_FASTER,
    ),
)
STEPS = {"prepare": JOB_STEPS["prepare"], **SHARD_STEPS, "merge": JOB_STEPS["merge"]}


def chain_from(index: int, stage: str) -> list[Step]:
    """The steps that lead from a stage of a shard, or of the job (``JOB``), to the end of its chain."""
    if index == JOB:
        return [next((step for step in JOB_STEPS.values() if stage in step.stages), JOB_STEPS["merge"])]
    steps = list(SHARD_STEPS.values())
    while stage not in steps[0].stages:
        steps = steps[1:]
    return steps


def follows(before: str, after: str) -> bool:
    """Whether a shard that goes from the one stage to the other goes on with the next link of its chain."""
    order = [stage for step in SHARD_STEPS.values() for stage in step.stages]
    return before in order and after in order and order.index(after) == order.index(before) + 1
