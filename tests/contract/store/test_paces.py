"""How long batches took, and which are late: on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.model.pace import bin_of, edge
from batchpipe.model.records import Problem, Stage
from batchpipe.store import Store
from tests.contract.store.protocol import advance, claim, granted, planned, shard

DAY = 86_400.0


def created(store: Store, *, model: str | None = "m", made_ago: float = 0.0, **fields: Any) -> str:
    """A job with one shard whose batch was made so many seconds ago, as the provider says."""
    job_id = planned(store, **fields)
    changes: dict[str, Any] = {"file_id": "file-0", "model": model}
    advance(store, granted(claim(store, job_id, 0, Stage.PLANNED)), Stage.UPLOADED, **changes)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    store.shards.settle(
        shard(store, job_id),
        f"batch_{job_id}",
        token=lease.token,
        after=0.0,
        changes={"status": "validating"},
        made_at=store.now() - made_ago,
    )
    return job_id


def end(store: Store, job_id: str, status: str = "completed", **times: float) -> None:
    record = shard(store, job_id)
    store.shards.record_batch_status(record, record.batch_id or "", {"status": status, **times})


def took(store: Store, model: str = "m") -> int:
    return store.paces.read("default", model).took.ended


@pytest.mark.parametrize("status", ["completed", "expired"])
def test_the_end_of_a_batch_is_counted_once_with_the_time_that_it_took(store: Store, status: str) -> None:
    """However often it is seen; by the provider's own times."""
    job_id = created(store, made_ago=1_000)
    made = shard(store, job_id).made_at or 0.0
    for _ in range(3):
        end(store, job_id, status, in_progress_at=made + 100, finished_at=made + 900)
    advance(store, granted(claim(store, job_id, 0, Stage.CREATED)), Stage.ENDED, status=status)
    found = store.paces.read("default", "m")
    assert (found.took.ended, found.queued.ended) == (1, 1)
    fields: Any = store.connection.client.hgetall(f"{store.connection.prefix}pace:default:m")
    assert sorted(fields.values()) == sorted([f'{{"{bin_of(900)}":1}}', f'{{"{bin_of(100)}":1}}'])


def test_a_turn_that_sees_the_end_counts_it_too(store: Store) -> None:
    """By our own time where the provider gives none."""
    job_id = created(store, model=None)
    store.connection.skew.advance(500)  # type: ignore[attr-defined]
    advance(store, granted(claim(store, job_id, 0, Stage.CREATED)), Stage.ENDED, status="completed")
    found = store.paces.read("default", "")
    assert (found.took.ended, found.queued.ended) == (1, 0)
    fields: Any = store.connection.client.hgetall(f"{store.connection.prefix}pace:default:")
    assert list(fields.values()) == [f'{{"{bin_of(500)}":1}}']


@pytest.mark.parametrize("status", ["failed", "cancelled", "canceled"])
def test_a_batch_that_failed_or_was_cancelled_is_no_turnaround(store: Store, status: str) -> None:
    """It did not run, or not to its end."""
    end(store, created(store, made_ago=100), status, finished_at=store.now())
    assert took(store) == 0


def test_times_that_cannot_be_are_ours_instead(store: Store, clock: Any) -> None:
    """Milliseconds, an end before the beginning, or one in another century."""
    for finished in (1.0, 9e10):
        job_id = created(store)
        clock.advance(60)
        end(store, job_id, finished_at=finished, in_progress_at=9e10)
    fields: Any = store.connection.client.hgetall(f"{store.connection.prefix}pace:default:m")
    assert list(fields.values()) == [f'{{"{bin_of(60)}":2}}']


def test_a_sketch_keeps_eight_days_and_ends_after_nine(store: Store, clock: Any) -> None:
    """Its size does not grow with the number of batches, nor with the days."""
    for _ in range(12):
        for _ in range(3):
            end(store, created(store, made_ago=50), in_progress_at=store.now() - 40, finished_at=store.now())
        clock.advance(DAY)
    key = f"{store.connection.prefix}pace:default:m"
    client: Any = store.connection.client
    assert client.hlen(key) == 16
    assert 8 * DAY < client.ttl(key) <= 9 * DAY
    assert took(store) == 7 * 3  # today there was none yet


def test_models_beyond_two_hundred_share_one_sketch(store: Store) -> None:
    """So texts of users cannot make endless keys. Old ones make room."""
    client: Any = store.connection.client
    models = f"{store.connection.prefix}paces:default"
    client.zadd(models, {f"old-{number}": store.now() for number in range(200)})
    for model in ("a", "b"):
        end(store, created(store, model=model, made_ago=50), finished_at=store.now())
    assert client.zcard(models) == 201
    assert [took(store, model) for model in ("", "a", "unheard of")] == [2, 2, 2]
    client.zadd(models, {"old-0": store.now() - 10 * DAY, "old-1": store.now() - 10 * DAY})
    end(store, created(store, model="c", made_ago=50), finished_at=store.now())
    assert (took(store, "c"), client.zcard(models)) == (1, 200)
    assert store.paces.models("default", 1) == ["c"]


def test_a_sketch_that_was_spoilt_stops_no_turn(store: Store) -> None:
    """It is for people: the end of the batch is recorded all the same."""
    client: Any = store.connection.client
    client.set(f"{store.connection.prefix}pace:default:m", "text")
    job_id = created(store, made_ago=50)
    end(store, job_id, finished_at=store.now())
    assert shard(store, job_id).over_at is not None
    client.delete(f"{store.connection.prefix}pace:default:m")
    client.hset(f"{store.connection.prefix}pace:default:m", "x", "y")
    client.hset(f"{store.connection.prefix}pace:default:m", f"{int(store.now() // DAY)}:took", '["no"]')
    assert took(store) == 0


def test_batches_that_run_are_part_of_the_history(store: Store) -> None:
    """Those of the same model, some of very many: who ends first is not all there is."""
    for number in range(6):
        end(store, created(store, made_ago=100 + number), finished_at=store.now())
    for _ in range(3):
        created(store, made_ago=1_000)
    created(store, made_ago=1_000, model="other")
    history = store.paces.read("default", "m").took
    assert history.quantile(0.5) is not None
    assert history.quantile(0.9) is None  # a third of them has not ended
    assert abs(history.alive(edge(bin_of(900))) - 0.4) < 0.1


def test_a_history_is_kept_for_half_a_minute(store: Store, clock: Any) -> None:
    end(store, created(store, made_ago=50), finished_at=store.now())
    assert store.paces.of("default", "m").took.ended == 1
    end(store, created(store, made_ago=50), finished_at=store.now())
    assert store.paces.of("default", "m").took.ended == 1
    clock.advance(31)
    assert store.paces.of("default", "m").took.ended == 2


LATE = Problem(code="batch_late", message="it is late")


def test_a_batch_is_said_to_be_late_once_and_until_it_ends(store: Store) -> None:
    """In its record and in the account's number; the next batch of its shard is not."""
    job_id = created(store, made_ago=9_000)
    record = shard(store, job_id)
    assert [store.paces.mark_late(record, LATE) for _ in range(3)] == [True, False, False]
    assert (shard(store, job_id).stall, store.paces.late("default")) == (LATE, 1)
    assert store.paces.in_flight("default", 0, 10) == []
    end(store, job_id)
    assert store.paces.late("default") == 0
    assert not store.paces.mark_late(record, LATE)


def test_a_batch_that_ended_or_was_replaced_is_not_said_to_be_late(store: Store) -> None:
    """It may end between the look and the word."""
    job_id = created(store, made_ago=9_000)
    assert not store.paces.mark_late(shard(store, job_id).evolve(batch_id="batch_other"), LATE)
    end(store, job_id)
    assert not store.paces.mark_late(shard(store, job_id), LATE)
    assert store.paces.late("default") == 0


def test_what_a_new_batch_of_a_shard_shows_is_not_that_of_the_old_one(store: Store) -> None:
    """After a full queue of the provider its times and its lateness begin anew."""
    job_id = created(store, made_ago=9_000)
    assert store.paces.mark_late(shard(store, job_id), LATE)
    lease = granted(claim(store, job_id, 0, Stage.CREATED))
    again: dict[str, Any] = {"try_": 2, "batch_id": None, "intent_at": None, "spent": ["batch_x"], "status": None}
    advance(store, lease, Stage.UPLOADED, **again, in_progress_at=5.0, finished_at=6.0)
    assert store.paces.late("default") == 0
    store.shards.settle(shard(store, job_id), "batch_2", token=None, after=0.0, changes={"status": "validating"})
    found = shard(store, job_id)
    assert (found.made_at, found.in_progress_at, found.finished_at, found.stall) == (None,) * 4
    assert took(store) == 0


def test_late_ones_that_are_in_flight_no_more_are_forgotten(store: Store) -> None:
    """Which a lost second of Redis may leave."""
    client: Any = store.connection.client
    job_id = created(store, made_ago=9_000)
    store.paces.mark_late(shard(store, job_id), LATE)
    client.zadd(f"{store.connection.prefix}late:default", {"job_gone/0": 1.0})
    store.paces.forget_late("default")
    assert client.zrange(f"{store.connection.prefix}late:default", 0, -1) == [f"{job_id}/0"]


def test_late_ones_are_looked_for_once_a_minute(store: Store, clock: Any) -> None:
    assert [store.paces.take_judging("default", store.now()) for _ in range(2)] == [True, False]
    clock.advance(61)
    assert store.paces.take_judging("default", store.now())
