"""A job's end: finish, notify, close, and whose output it is until then; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.errors import LeaseLost, OutputInUse
from batchpipe.model.records import JOB, Problem, State
from batchpipe.store import ClaimDenied, Lease, Store
from tests.contract.store.protocol import (
    LEASE,
    about,
    claim,
    due_in,
    merging,
    new_job,
    planned,
)


def test_finishing_fixes_the_state_and_leaves_the_job_due(store: Store) -> None:
    """A crash before its receivers are notified is found by sweep."""
    lease = merging(store)
    assert store.leases.finish(lease, State.PARTIAL, {"ok": 1, "failed": 1}) is State.PARTIAL
    job = store.jobs.get(lease.job.id)
    assert (job.stage, job.ok, job.failed, job.token) == (State.PARTIAL, 1, 1, lease.token)
    assert job.ended_at == about(store.now())
    assert due_in(store, lease.job.id, JOB) == about(LEASE)


def test_the_cancel_flag_wins(store: Store) -> None:
    """A job whose user asked for its end is `cancelled`, however its rows came out."""
    lease = merging(store)
    store.jobs.cancel(lease.job.id)
    assert store.leases.finish(lease, State.SUCCEEDED, {}) is State.CANCELLED
    assert store.events.read(lease.job.id)[-1]["state"] == "cancelled"


def test_the_log_tells_of_the_end_once(store: Store) -> None:
    """With the state that it became and what the caller says besides."""
    lease = merging(store)
    for _ in range(2):
        store.leases.finish(lease, State.PARTIAL, {"ok": 1}, {"total": 2, "ok": 1})
    ended = [event for event in store.events.read(lease.job.id) if event["event"] == "ended"]
    assert [(one["state"], one["total"], one["ok"]) for one in ended] == [("partial", 2, 1)]


def test_a_fixed_end_stays(store: Store) -> None:
    """A repeat, or a cancel that comes too late, changes nothing."""
    lease = merging(store)
    store.leases.finish(lease, State.SUCCEEDED, {"ok": 2})
    assert store.jobs.cancel(lease.job.id) == (False, 1)
    assert store.leases.finish(lease, State.FAILED, {"ok": 0}) is State.SUCCEEDED
    job = store.jobs.get(lease.job.id)
    assert (job.ok, job.cancel) == (2, False)


def test_an_ended_job_that_is_not_closed_can_be_claimed(store: Store, clock: Any) -> None:
    """Whoever notified its receivers may have vanished."""
    lease = merging(store)
    store.leases.finish(lease, State.SUCCEEDED, {})
    clock.advance(LEASE + 1)
    raised = store.due.bump_epoch(lease.job.id, JOB, ["new"], when="overdue")
    assert raised is not None
    assert isinstance(claim(store, lease.job.id, JOB, State.SUCCEEDED, epoch=raised.epoch), Lease)


def test_deferring_an_ended_job_leaves_its_end(store: Store) -> None:
    """Telling may fail for a while; the state that users have seen stays."""
    lease = merging(store)
    store.leases.finish(lease, State.SUCCEEDED, {"ok": 2})
    store.leases.defer(lease, 10.0, {"trouble": Problem(code="x", message="y")}, tries="refund")
    assert store.jobs.get(lease.job.id).stage == State.SUCCEEDED


def test_a_closed_job_leaves_the_due_set_and_its_records_expire(store: Store) -> None:
    """Its output is free for another; closing it twice changes nothing."""
    lease = merging(store, key="k", output="/out/closed/")
    job_id = lease.job.id
    store.events.add(job_id, "x")
    store.leases.finish(lease, State.SUCCEEDED, {})
    for _ in range(2):
        store.leases.close_job(lease)
        assert store.jobs.get(job_id).closed
    assert due_in(store, job_id, JOB) is None
    assert claim(store, job_id, JOB, State.SUCCEEDED, epoch=store.jobs.get(job_id).epoch) == ClaimDenied("stage")
    for name in (f"job:{job_id}", f"shard:{job_id}:0", f"log:{job_id}", "key:k"):
        assert 0 < int(str(store.connection.client.ttl(store.connection.prefix + name))) <= 3600, name
    assert store.jobs.submit(new_job(output="/out/closed"))[1]


def test_an_output_belongs_to_an_ended_job_until_it_is_closed(store: Store) -> None:
    """Its end is repeated, and writes job.json there."""
    lease = merging(store, output="/out/same")
    store.leases.finish(lease, State.SUCCEEDED, {})
    with pytest.raises(OutputInUse, match=f"{lease.job.id}, which has ended, but"):
        store.jobs.submit(new_job(output="/out/same"))
    store.leases.close_job(lease)
    assert store.jobs.submit(new_job(output="/out/same"))[1]


def test_a_job_claims_the_names_that_its_worker_sees_for_its_output(store: Store) -> None:
    """All or none, until it is closed; and no longer than its lease lasts."""
    other = planned(store, owns=["/taken"])
    lease = merging(store, owns=["/link"])
    with pytest.raises(OutputInUse, match=other):
        store.leases.claim_output(lease, ["/real", "/taken"])
    store.leases.claim_output(lease, ["/real", "/link"])
    assert store.jobs.get(lease.job.id).owns == lease.job.owns == ["/link", "/real"]
    for name in ("/link", "/real"):
        with pytest.raises(OutputInUse):
            store.jobs.submit(new_job(owns=[name]))
    store.leases.finish(lease, State.SUCCEEDED, {})
    store.leases.close_job(lease)
    with pytest.raises(LeaseLost):
        store.leases.claim_output(lease, ["/late"])
    assert store.jobs.submit(new_job(owns=["/link", "/real", "/late"]))[1]


def test_a_closed_job_does_not_free_the_output_of_another(store: Store) -> None:
    """A frozen worker may close it late."""
    lease = merging(store, owns=["/out/a"])
    store.connection.client.set(f"{store.connection.prefix}output:/out/a", "job_of_another")
    store.leases.finish(lease, State.SUCCEEDED, {})
    store.leases.close_job(lease)
    assert store.connection.client.get(f"{store.connection.prefix}output:/out/a") == "job_of_another"
