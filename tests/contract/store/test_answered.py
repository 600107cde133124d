"""How many rows of a job are answered, and why rows are not ok: sums that the scripts keep, on both kinds of Redis."""

from __future__ import annotations

from typing import Any

from batchpipe.model.progress import progress_of_job
from batchpipe.model.provider import Batch
from batchpipe.model.records import Counts, JobRecord, Stage
from batchpipe.store import Store
from tests.contract.store.protocol import about, advance, claim, granted, new_job, shard, uploaded


def created(store: Store, count: int = 1) -> tuple[str, list[Any]]:
    """A job with shards of two rows, each with a batch; and claims on them for a poll."""
    job_id = uploaded(store, count)
    for index in range(count):
        lease = granted(claim(store, job_id, index, Stage.UPLOADED))
        settled = store.shards.settle(lease.shard, f"batch_{index}", token=lease.token, after=0.0, changes={})
        assert settled.verdict == "ok"
    return job_id, [granted(claim(store, job_id, index, Stage.CREATED)) for index in range(count)]


def counts(completed: int, failed: int = 0) -> Counts:
    return Counts(total=2, completed=completed, failed=failed)


def summed(store: Store, job_id: str) -> int:
    job = store.jobs.get(job_id)
    assert job.answered == sum(one.answered or 0 for one in store.shards.of_job(job))
    return job.answered


def test_what_a_list_or_a_look_counts_is_added_once(store: Store) -> None:
    """However often it is said, and also where the number falls."""
    job_id, leases = created(store, 2)
    for said, total in (((1, 0), 1), ((1, 0), 1), ((1, 1), 2), ((0, 1), 1), ((9, 9), 2)):
        store.shards.record_batch_status(leases[0].shard, "batch_0", {"counts": counts(*said)})
        assert summed(store, job_id) == total
    advance(store, leases[1], Stage.CREATED, counts=counts(1))
    advance(store, leases[1], Stage.CREATED, counts=counts(2))  # the same turn, repeated after a lost reply
    assert summed(store, job_id) == 3


def test_a_page_of_the_list_adds_what_it_counts(store: Store) -> None:
    """Once, as often as it is read; also at the end of a batch."""
    job_id = uploaded(store, 2)
    for index in range(2):
        lease = granted(claim(store, job_id, index, Stage.UPLOADED))
        changes = {"status": "validating", "snapshot_at": store.now()}
        store.shards.settle(lease.shard, f"batch_{index}", token=lease.token, after=60.0, changes=changes)
    for said, total in (((1, 0), 1), ((1, 0), 1), ((1, 1), 2)):
        batches = [
            Batch(id="batch_0", status="in_progress", counts=counts(*said)),
            Batch(id="batch_x", status="failed"),
        ]
        store.looks.record_page("default", batches, every=0.0, net=600.0)
        assert summed(store, job_id) == total
    for _ in range(2):
        ended = Batch(id="batch_1", status="completed", output_file_id="out", counts=counts(2))
        store.looks.record_page("default", [ended], every=0.0, net=600.0)
        assert summed(store, job_id) == 4


def test_a_batch_that_is_made_again_begins_anew(store: Store) -> None:
    job_id, [lease] = created(store)
    store.shards.record_batch_status(lease.shard, "batch_0", {"counts": counts(2)})
    advance(store, lease, Stage.UPLOADED, counts=None, batch_id=None, spent=["batch_0"], try_=2)
    assert summed(store, job_id) == 0


def test_counts_that_are_nonsense_count_nothing_twice(store: Store) -> None:
    job_id, [lease] = created(store)
    for odd in (Counts(), Counts(completed=-5), Counts(completed=10**15), Counts(total=1, failed=2)):
        store.shards.record_batch_status(lease.shard, "batch_0", {"counts": odd})
        assert 0 <= summed(store, job_id) <= 2


def test_a_collected_shard_says_itself_how_many_of_its_rows_are_answered(store: Store) -> None:
    """Those that are sent again are not; its reasons are added to those of the job, once."""
    job_id, leases = created(store, 2)
    store.shards.record_batch_status(leases[0].shard, "batch_0", {"counts": counts(1, 1)})
    for lease in leases:
        for _ in range(2):
            advance(store, lease, Stage.COLLECTED, answered=1, reasons={"~500 server_error": 1})
    assert summed(store, job_id) == 2
    assert store.jobs.get(job_id).reasons == {"~500 server_error": 2}


def test_the_reasons_of_a_job_stay_few(store: Store) -> None:
    job_id, leases = created(store, 3)
    for at, lease in enumerate(leases):
        advance(store, lease, Stage.COLLECTED, answered=0, reasons={f"400 c{at}_{n}": 7 for n in range(20)})
    reasons = store.jobs.get(job_id).reasons
    assert len(reasons) <= 42
    assert sum(reasons.values()) == 3 * 20 * 7


def test_a_job_that_is_gone_does_not_come_back_by_a_late_count(store: Store) -> None:
    """Its record expires before that of a shard, say."""
    job_id, [lease] = created(store)
    store.connection.client.delete(store.connection.job_key(job_id))
    store.shards.record_batch_status(lease.shard, "batch_0", {"counts": counts(1)})
    assert not store.connection.client.exists(store.connection.job_key(job_id))


def test_the_rate_is_that_of_the_last_minutes(store: Store, clock: Any) -> None:
    """From two marks, five minutes apart at least; not of the hours before, and not for ever of a batch that stands."""
    job_id, [lease] = created(store)
    place = store.connection.key(job_id, 0)
    store.connection.client.hset(place, "rows", "100000")
    store.connection.client.hset(store.connection.job_key(job_id), "total", "100000")

    def said(completed: int) -> float | None:
        store.shards.record_batch_status(lease.shard, "batch_0", {"counts": Counts(total=100_000, completed=completed)})
        return progress_of_job(store.jobs.get(job_id), now=store.now()).rows_per_second

    clock.advance(100)
    assert said(1_000) == about(10.0)
    clock.advance(400)
    assert said(1_000) == about(2.0)  # 500 s, and 1,000 rows
    for minute in range(1, 41):
        clock.advance(60)
        rate = said(1_000 + 600 * minute)
    assert rate == about(10.0)
    assert len(store.jobs.get(job_id).answered_before) == 2
    clock.advance(3_600)
    stands = progress_of_job(store.jobs.get(job_id), now=store.now()).rows_per_second
    assert (stands or 9.0) < 2.0


def test_ids_are_found_by_their_beginning(store: Store, clock: Any) -> None:
    """Also those of restored jobs; not those whose records are gone."""
    ids = [f"job_0mwa{name}{'x' * 14}" for name in "abc"] + [f"job_0mwb{'x' * 15}"]
    for job_id in ids[:2] + ids[3:]:
        store.jobs.submit(new_job(output=f"/o/{job_id}").evolve(id=job_id, name=f"n{job_id[7]}"))
    store.jobs.restore(JobRecord(id=ids[2], stage="running", output="/o/2", owns=["/o/2"], created_at=store.now()), [])

    def found(begin: str, most: int = 9) -> list[str]:
        return [job.id for job in store.jobs.beginning_with(begin, most=most)]

    assert found("job_0mwa") == ids[:3]
    assert found("job_0mwa", 2) == ids[:2]
    assert found(ids[3][:9]) == ids[3:]
    assert found("job_zzzz") == []
    assert [job.name for job in store.jobs.beginning_with(ids[0], most=1)] == ["na"]
    for job_id in ids[:2]:
        store.connection.client.delete(store.connection.job_key(job_id))
    assert found("job_0mw", 1) == [ids[2]]
    clock.advance(4_000)
    store.jobs.prune_lists()
    assert store.connection.client.zcard(f"{store.connection.prefix}job_ids") == 2


def test_a_shard_that_was_never_counted_has_no_number(store: Store) -> None:
    """Records of an older version have none, either: they are counted with the next look."""
    job_id = uploaded(store)
    assert shard(store, job_id).answered is None
