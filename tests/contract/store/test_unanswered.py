"""Which shards have an unanswered create call, and what walks were noted; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.model.records import ShardRecord, Stage
from batchpipe.store import Store
from batchpipe.store.unanswered import MOST_WALKS
from tests.contract.store.protocol import advance, claim, granted, shard, uploaded


def called(store: Store, **call: Any) -> tuple[str, Any]:
    """A shard whose worker has just said that it calls."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease, **call)
    return job_id, lease


def in_index(store: Store, job_id: str) -> bool:
    return store.unanswered.among("default", [(job_id, 0)]) == [True]


def file_of(store: Store, job_id: str) -> str:
    return str(shard(store, job_id).file_id)


def settle(store: Store, record: ShardRecord, token: str | None = None) -> str:
    return store.shards.settle(record, f"batch_of_{record.job}", token=token, after=0.0, changes={}).verdict


def test_an_intent_puts_the_shard_and_its_file_into_the_index_and_a_settled_batch_takes_them_out(store: Store) -> None:
    """In the script that changes the one, the other changes, too: no walk can come in between."""
    job_id, lease = called(store)
    file_id = file_of(store, job_id)
    assert in_index(store, job_id)
    assert store.unanswered.of_files("default", [file_id, "file-other"]) == [(job_id, 0), None]
    record = shard(store, job_id)
    first = (record.intent_at or 0.0) - record.intent_ahead
    assert store.unanswered.oldest("default") == pytest.approx(first, abs=1e-4)
    assert settle(store, shard(store, job_id), lease.token) == "ok"
    assert not in_index(store, job_id)
    assert store.unanswered.of_files("default", [file_id]) == [None]
    assert (store.unanswered.count("default"), store.unanswered.oldest("default")) == (0, None)


def test_the_index_forgets_a_call_that_was_withdrawn_and_a_shard_that_was_given_up(store: Store) -> None:
    """And keeps one whose turn has ended without an answer."""
    job_id, lease = called(store)
    store.shards.withdraw_call(shard(store, job_id), lease.token)
    assert not in_index(store, job_id)
    other, lease = called(store)
    advance(store, lease, Stage.UPLOADED)
    assert in_index(store, other)
    advance(store, granted(claim(store, other, 0, Stage.UPLOADED)), Stage.COLLECTED)
    assert not in_index(store, other)


def test_a_call_is_over_when_its_turn_ends_and_else_when_its_time_is_over(store: Store, clock: Any) -> None:
    """A worker that vanished may have sent it in its last moment."""
    job_id, lease = called(store, seconds=45.0)
    record = shard(store, job_id)
    assert record.latest_call == lease.token
    assert record.call_over_at is not None
    assert abs(record.call_over_at - (record.intent_at or 0.0) - 45.0) < 0.01
    clock.advance(3.0)
    advance(store, lease, Stage.UPLOADED)
    over = shard(store, job_id).call_over_at
    clock.advance(3.0)
    advance(store, granted(claim(store, job_id, 0, Stage.UPLOADED)), Stage.UPLOADED)
    assert over is not None
    assert shard(store, job_id).call_over_at == over < record.call_over_at


def test_whose_key_called_is_known_only_if_it_was_one_for_all_calls(store: Store) -> None:
    """A worker of an older version does not say so, and another key may belong to another project."""
    job_id, lease = called(store, identity="a")
    advance(store, lease, Stage.UPLOADED)
    assert shard(store, job_id).called_as == "a"
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease, identity="b")
    assert shard(store, job_id).called_as is None


def test_shards_that_wait_for_a_walk_are_found_by_the_time_from_which_on_it_must_have_begun(store: Store) -> None:
    """A settled one waits no longer."""
    job_id, lease = called(store)
    advance(store, lease, Stage.UPLOADED, walk_from=50.0)
    assert store.unanswered.is_walk_awaited("default")
    assert store.unanswered.awaiting_walk("default", 0.0, 49.0, 9) == []
    assert store.unanswered.awaiting_walk("default", 0.0, 50.0, 9) == [(job_id, 0)]
    assert store.unanswered.awaiting_walk("default", 50.0, 99.0, 9) == []
    assert settle(store, shard(store, job_id)) == "late"
    assert not store.unanswered.is_walk_awaited("default")


def test_what_an_older_worker_has_answered_or_nobody_knows_leaves_the_index_when_it_is_checked(store: Store) -> None:
    """What is there by right stays."""
    stays, _ = called(store)
    answered, lease = called(store)
    key, member = f"{store.connection.prefix}unanswered:default", f"{answered}/0"
    settle(store, shard(store, answered), lease.token)
    store.connection.client.zadd(key, {member: 1.0, "job_gone/0": 2.0})
    store.unanswered.recheck("default")
    assert store.connection.client.zrange(key, 0, -1) == [f"{stays}/0"]


def test_files_of_records_that_are_gone_are_forgotten_once_nobody_waits(store: Store) -> None:
    lost, _ = called(store)
    files = f"{store.connection.prefix}unanswered_files:default"
    store.connection.client.delete(store.connection.key(lost, 0))
    assert store.connection.client.hlen(files) == 1
    store.unanswered.recheck("default")
    assert not store.connection.client.exists(files)


def test_only_the_latest_walks_are_kept(store: Store) -> None:
    """However many there are."""
    for number in range(MOST_WALKS + 5):
        store.unanswered.note_walk("default", str(number).encode())
    walks = store.unanswered.walks("default")
    assert (len(walks), walks[0]) == (MOST_WALKS, str(MOST_WALKS + 4))
    assert store.unanswered.walks("other") == []
