"""Jobs: submit, cancel, where their results are, and lists of them; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.errors import JobNotFound, OutputInUse
from batchpipe.model.records import JOB, Stage, State
from batchpipe.store import Store
from tests.contract.store.protocol import (
    LEASE,
    about,
    advance,
    claim,
    claim_job,
    due_in,
    granted,
    merging,
    new_job,
    planned,
)


def test_a_submitted_job_is_pending_and_due_one_margin_later(store: Store) -> None:
    """Its due time is recorded before any message: a submit that crashes here is found by sweep."""
    job = new_job(name="n", tags={"user": 7}, metadata={"a": "b"})
    assert store.jobs.submit(job) == (job.id, True)
    found = store.jobs.get(job.id)
    assert found.evolve(created_at=0.0, next_at=0.0) == job
    assert found.created_at == about(store.now())
    assert due_in(store, job.id, JOB) == about(LEASE)


def test_a_second_submit_with_the_same_key_answers_the_first_job(store: Store) -> None:
    """Nothing of the second is recorded."""
    first, second = new_job(key="k"), new_job(key="k")
    store.jobs.submit(first)
    assert store.jobs.submit(second) == (first.id, False)
    assert store.jobs.id_of_key("k") == first.id
    with pytest.raises(JobNotFound):
        store.jobs.get(second.id)


@pytest.mark.parametrize(("again", "taken"), [("1", True), ("first", True), ("job_of_somebody", False)])
def test_replace_job_takes_the_key_over(store: Store, again: str, taken: bool) -> None:
    """ "1" from any job, an id from that job only."""
    first, second = new_job(key="k"), new_job(key="k")
    store.jobs.submit(first)
    assert store.jobs.submit(second, replace_job=first.id if again == "first" else again)[1] is taken
    assert store.jobs.id_of_key("k") == (second.id if taken else first.id)


def test_an_output_belongs_to_one_unfinished_job(store: Store) -> None:
    """Under each of its names."""
    first = new_job(output="/out/x", owns=["/out/x", "/real/x"])
    store.jobs.submit(first)
    for names in (["/out/x"], ["/other", "/real/x"]):
        with pytest.raises(OutputInUse, match=f"{first.id}, which has not ended"):
            store.jobs.submit(new_job(owns=names))
    assert store.jobs.submit(new_job(owns=["/other"]))[1]  # which the refused one has not taken


def test_a_refused_output_does_not_take_the_key(store: Store) -> None:
    """The key stays free for the next try."""
    store.jobs.submit(new_job(output="/out/x"))
    with pytest.raises(OutputInUse):
        store.jobs.submit(new_job(output="/out/x", key="k"))
    assert store.jobs.id_of_key("k") is None


def test_a_repeated_submit_is_no_second_one(store: Store) -> None:
    """The client repeats it after a lost answer: the same job, its key and its output are its own."""
    job = new_job(key="k")
    assert store.jobs.submit(job) == (job.id, True)
    claim_job(store, job.id)
    assert store.jobs.submit(job) == (job.id, True)
    assert store.jobs.get(job.id).stage == State.PREPARING


def test_cancel_tells_the_number_of_shards_and_is_learnt_by_each_holder(store: Store) -> None:
    """The flag is the truth; it stands beside the state."""
    job_id = planned(store, 2)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    assert store.jobs.cancel(job_id) == (True, 2)
    assert store.jobs.cancel(job_id) == (True, 2)
    assert store.leases.renew(lease)[1].cancel
    assert advance(store, lease, Stage.UPLOADED)[0].cancel
    assert granted(claim(store, job_id, 1, Stage.PLANNED)).job.cancel
    assert store.jobs.get(job_id).state is State.CANCELLING


def test_cancelling_an_unknown_job_raises(store: Store) -> None:
    """It may have expired."""
    with pytest.raises(JobNotFound):
        store.jobs.cancel("job_no")


def test_that_results_were_moved_is_noted_where_there_are_some(store: Store) -> None:
    """A job that has none, or that this Redis does not know, gets no record by it."""
    lease = merging(store, results="/out/a")
    store.jobs.set_results(lease.job.id, "/out/a/.batchpipe/x", "/real/a/.batchpipe/x")
    assert store.jobs.get(lease.job.id).results == "/out/a/.batchpipe/x"
    without = planned(store)
    for job_id in (without, "job_unknown"):
        store.jobs.set_results(job_id, "/elsewhere", "/elsewhere")
    assert store.jobs.get(without).results == ""
    with pytest.raises(JobNotFound):
        store.jobs.get("job_unknown")


def test_jobs_are_listed_newest_first_and_by_state(store: Store, clock: Any) -> None:
    """`cancelling` is a state to the user, though it is never stored."""
    pending = new_job()
    store.jobs.submit(pending)
    clock.advance(1)
    running = planned(store)
    clock.advance(1)
    cancelling = planned(store)
    store.jobs.cancel(cancelling)
    clock.advance(1)
    ended = merging(store)
    store.leases.finish(ended, State.SUCCEEDED, {})

    def ids(state: State | None, limit: int = 100) -> list[str]:
        return [job.id for job in store.jobs.newest(state=state, limit=limit)]

    assert ids(None) == [ended.job.id, cancelling, running, pending.id]
    assert ids(None, limit=2) == [ended.job.id, cancelling]
    assert ids(State.RUNNING) == [running]
    assert ids(State.CANCELLING) == [cancelling]
    assert ids(State.SUCCEEDED) == [ended.job.id]
    assert ids(State.FINALIZING) == []


def test_expired_jobs_vanish_from_the_lists(store: Store) -> None:
    """The lists are no memory of their own."""
    job_id, other = planned(store), planned(store)
    store.connection.client.delete(f"{store.connection.prefix}job:{job_id}")
    for _ in range(2):
        assert [job.id for job in store.jobs.newest()] == [other]


def test_expired_jobs_do_not_hide_others(store: Store, clock: Any) -> None:
    """However many there are, one listing finds what is left."""
    kept = new_job()
    store.jobs.submit(kept)
    clock.advance(1)
    for _ in range(300):
        gone = new_job()
        store.jobs.submit(gone)
        store.connection.client.delete(f"{store.connection.prefix}job:{gone.id}")
    assert [job.id for job in store.jobs.newest()] == [kept.id]


def test_fields_of_a_newer_version_are_ignored(store: Store) -> None:
    """Deploys roll: an older worker reads what a newer one wrote."""
    job_id = planned(store)
    store.connection.client.hset(f"{store.connection.prefix}job:{job_id}", "from_the_future", "[1")
    assert store.jobs.get(job_id).id == job_id
