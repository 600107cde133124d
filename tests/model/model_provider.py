"""The provider of a `World`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batchpipe.errors import (
    AmbiguousResult,
    Refused,
    Unavailable,
)
from batchpipe.model.provider import Batch, BatchPage
from batchpipe.model.records import BatchError, Status
from batchpipe.testing import FakeBatch, FakeOpenAI

if TYPE_CHECKING:
    from tests.model.world import World

#: What may befall whatever else takes time: provider calls that cost nothing, files.
CALL_FAULTS = ("trouble",)
#: What may come of a create call besides "", a clear yes.
CREATE_FAULTS = ("unsent", "unanswered", "dropped", "refused", "no file")


class ModelOpenAI(FakeOpenAI):
    """The provider, with a point before and after each call; new batches may show up late in its list."""

    def __init__(self, world: World) -> None:
        super().__init__(lambda: world.at, autofinish=True)
        self.world = world
        self.endings: Callable[[], str] = lambda: Status.COMPLETED  #: what becomes of a new batch
        self.outcome: Callable[[], str] = lambda: ""  #: of the present create call
        self.lag: Callable[[], float] = lambda: 0.0  #: how long a new batch stays out of the list
        self._shown_at: dict[str, float] = {}
        self._ends_as: dict[str, str] = {}

    def create_batch(self, **arguments: Any) -> Batch:
        lease = self.world.leases[self.world.actor]
        self.world.watch.calls(lease.age() <= lease.seconds / 2)
        self.world.point("create_batch")
        fault = self.outcome()
        if fault:
            self.world.watch.facts[fault] += 1
        if fault == "dropped":
            raise AmbiguousResult("dropped before it arrived")
        if fault == "refused":
            raise Refused("no", code="invalid_request", status=400)
        if fault == "unsent":
            raise Unavailable("slow down", code="rate_limit_exceeded", status=429)
        if fault == "no file":
            raise Unavailable("Cannot find file", code="file_not_found", status=400)
        batch = super().create_batch(**arguments)
        self._shown_at[batch.id] = self.world.at + self.lag()
        self._ends_as[batch.id] = self.endings()
        self.world.tell(f"create_batch -> {batch.id}, shown from {self._shown_at[batch.id] - self.world.at:+.1f}")
        late = lease.age() > lease.seconds / 2 + 0.001
        self.world.watch.called(batch.id, arguments["metadata"]["batchpipe_key"], lease.token, late)
        self.world.point()
        if fault == "unanswered":
            raise AmbiguousResult("dropped")
        return batch

    def cancel_batch(self, batch_id: str) -> Batch:
        self.world.point()
        self.world.watch.cancelled(batch_id)
        return super().cancel_batch(batch_id)

    def batch_page(self, after: str | None = None) -> BatchPage:
        """Two batches a page: a walk may fail half way, and finds nothing older than it goes back to by chance."""
        page = super().batch_page(after)
        return BatchPage(batches=page.batches[:2], more=page.more or len(page.batches) > 2)

    def _shows(self, batch: FakeBatch) -> bool:
        return self._shown_at[batch.id] <= self.world.at

    def _called(self, method: str, argument: str, effect: Callable[[], Any]) -> Any:
        if method in ("create_batch", "cancel_batch"):
            return effect()
        self.world.point()
        if self.world.take_fault(CALL_FAULTS):
            raise Unavailable("not now")
        answer = effect()
        self.world.point()
        return answer

    def _move_on(self, batch: FakeBatch) -> None:
        if batch.status == "validating":
            batch.status = "in_progress"
        elif batch.status == "in_progress":
            batch.status = self._ends_as[batch.id]
            if batch.status == Status.FAILED:
                batch.errors = [BatchError(code="token_limit_exceeded", message="the queue is full")]
        elif batch.status == "cancelling":
            batch.status = Status.CANCELLED
