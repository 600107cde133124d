"""What a visit does next, known to the turn before: its end and the next claim are then one call of Redis.

A thread is in one visit at a time, so what is ahead of it is kept by thread (by green thread, where there are such).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from batchpipe.config.limits import turn_deadline
from batchpipe.config.settings import Settings
from batchpipe.model.steps import STEPS, Step
from batchpipe.store import Following, Lease


class Ahead(threading.local):
    """Of the visit of this thread; outside of a visit nothing is ahead."""

    def __init__(self) -> None:
        self.link = ""  #: the step after the one that is taken now, of the same chain
        self.keeps = False  #: a small message that is published now is done in this visit
        self.may_go_on: Callable[[], bool] = lambda: False
        self._lease: Lease | None = None

    def link_after(self, settings: Settings, stage: str, *, small: bool) -> Following | None:
        """The next link of the chain, for a shard that goes to this stage, if this visit will take it at once."""
        step = STEPS.get(self.link)
        if step is None or stage not in step.stages or not (step.slot is None or small) or not self.may_go_on():
            return None
        return _following(settings, step)

    def link_of(self, settings: Settings, name: str) -> Following | None:
        """The step of this name, the first of a small message that is to be published, if this visit will take it."""
        return _following(settings, STEPS[name]) if self.keeps and self.may_go_on() else None

    def keep(self, lease: Lease | None) -> None:
        """What was claimed for the next turn."""
        self._lease = lease

    @property
    def is_claimed(self) -> bool:
        """Whether the next turn is claimed: then it is taken."""
        return self._lease is not None

    def take(self, job_id: str, index: int, epoch: int, step: Step) -> Lease | None:
        """The lease for this turn, if it is claimed already."""
        lease, self._lease = self._lease, None
        if lease is None or (lease.job.id, lease.index, lease.record.epoch) != (job_id, index, epoch):
            return None
        return lease if lease.record.stage in step.stages else None


def _following(settings: Settings, step: Step) -> Following:
    return Following(step.stages, turn_deadline(settings, step))
