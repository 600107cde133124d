"""New epochs, and when a message counts as lost; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

from batchpipe.model.records import JOB, Stage
from batchpipe.store import Lease, Store
from tests.contract.store.protocol import (
    LEASE,
    about,
    advance,
    claim,
    due_in,
    granted,
    planned,
    shard,
)


def test_a_new_epoch_voids_the_old_one_and_returns_its_task_ids(store: Store) -> None:
    """next_at is now, the new ids are stored, and the old message ends at its claim."""
    job_id = planned(store)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.PLANNED, after=500)
    raised = store.due.bump_epoch(job_id, 0, ["new"])
    assert raised is not None
    assert (raised.epoch, raised.stage, raised.queue) == (2, Stage.PLANNED, "batchpipe")
    assert raised.old_ids == ["u", "c", "p", "d"]
    assert shard(store, job_id).task_ids == ["new"]
    assert claim(store, job_id, 0, Stage.PLANNED).why == "epoch"
    assert isinstance(claim(store, job_id, 0, Stage.PLANNED, epoch=2), Lease)


def test_a_new_epoch_during_a_lease_is_left_to_its_holder(store: Store) -> None:
    """The holder learns of it from each write, and from its end; the record is then due now."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    assert store.due.bump_epoch(job_id, 0, ["new"]) is None
    assert shard(store, job_id).epoch == 1
    assert store.leases.renew(lease)[1].republish
    assert store.leases.save(lease, {}).republish
    news, _ = advance(store, lease, Stage.UPLOADED, after=500)
    assert news.republish
    assert shard(store, job_id).next_at == about(store.now())
    assert store.due.bump_epoch(job_id, 0, ["new"]) is not None
    assert not shard(store, job_id).republish


def test_a_claim_clears_what_was_left_to_an_earlier_holder(store: Store, clock: Any) -> None:
    """What it was meant for is being done."""
    job_id = planned(store)
    claim(store, job_id, 0, Stage.PLANNED)
    store.due.bump_epoch(job_id, 0, ["new"])
    clock.advance(LEASE + 1)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    assert not advance(store, lease, Stage.UPLOADED)[0].republish


def test_an_ended_lease_does_not_stop_a_new_epoch(store: Store, clock: Any) -> None:
    """A vanished worker's shard is published again."""
    job_id = planned(store)
    claim(store, job_id, 0, Stage.PLANNED)
    clock.advance(LEASE + 1)
    assert store.due.bump_epoch(job_id, 0, ["new"]) is not None


def test_the_margin_doubles_with_each_publication_up_to_half_an_hour(store: Store) -> None:
    """Without it a backlog makes sweep outrun the workers for ever. A claim that succeeds resets it."""
    job_id = planned(store)
    margins = []
    for _ in range(7):
        store.due.bump_epoch(job_id, 0, ["new"])
        margins.append(due_in(store, job_id, 0))
    assert margins == [about(seconds) for seconds in (120, 240, 480, 960, 1800, 1800, 1800)]
    advance(store, claim(store, job_id, 0, Stage.PLANNED, epoch=8), Stage.PLANNED)
    assert due_in(store, job_id, 0) == about(LEASE)


def test_overdue_leaves_alone_what_is_under_way(store: Store, clock: Any) -> None:
    """Two sweeps at once: the second finds it published."""
    job_id = planned(store)
    assert store.due.bump_epoch(job_id, 0, ["new"], when="overdue") is None
    clock.advance(LEASE + 1)
    assert store.due.overdue() == [(job_id, 0)]
    assert store.due.bump_epoch(job_id, 0, ["new"], when="overdue") is not None
    assert store.due.bump_epoch(job_id, 0, ["newer"], when="overdue") is None
    assert store.due.overdue() == []


def test_waiting_reaches_what_waits_for_its_time_and_not_what_is_under_way(store: Store, clock: Any) -> None:
    """Else new epochs that come faster than workers work would void each message before it is read."""
    job_id = planned(store)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.PLANNED, after=500)
    assert store.due.bump_epoch(job_id, 0, ["new"], when="waiting") is not None
    assert store.due.bump_epoch(job_id, 0, ["newer"], when="waiting") is None
    assert shard(store, job_id).task_ids == ["new"]
    clock.advance(2 * LEASE + 1)
    assert store.due.bump_epoch(job_id, 0, ["newest"], when="waiting") is not None
    claim(store, job_id, 0, Stage.PLANNED, epoch=3)
    assert store.due.bump_epoch(job_id, 0, ["x"], when="waiting") is None
    assert shard(store, job_id).republish


def test_due_tells_the_longest_overdue_first(store: Store, clock: Any) -> None:
    """A pass of the sweep is bounded."""
    first = planned(store)
    clock.advance(10)
    second = planned(store)
    clock.advance(LEASE + 1)
    assert store.due.overdue() == [(first, 0), (second, 0)]
    assert store.due.overdue(limit=1) == [(first, 0)]


def test_what_has_ended_or_is_unknown_leaves_the_due_set(store: Store) -> None:
    """Raising it is refused."""
    job_id = planned(store, 2)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.COLLECTED)
    store.connection.client.zadd(
        f"{store.connection.prefix}due", {f"{job_id}/0": 1.0, "job_no/3": 1.0, f"{job_id}/-1": 1.0}
    )
    for name, index in [(job_id, 0), ("job_no", 3), (job_id, JOB)]:
        assert store.due.bump_epoch(name, index, ["new"]) is None
        assert due_in(store, name, index) is None
