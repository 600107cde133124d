"""The paid call and its batch: intent, withdraw, settle; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.errors import LeaseLost
from batchpipe.model.records import Stage
from batchpipe.store import Store
from batchpipe.store.shards import MOST_NAMED
from tests.contract.store.protocol import (
    LEASE,
    about,
    advance,
    claim,
    due_in,
    granted,
    shard,
    uploaded,
)


def test_the_time_of_the_first_intent_is_never_overwritten(store: Store, clock: Any) -> None:
    """It says from when on a batch may be in the provider's list. Each call clears the time of the empty look."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    first = shard(store, job_id).intent_at
    advance(store, lease, Stage.UPLOADED, empty_at=store.now())
    clock.advance(40)
    second = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(second)
    found = shard(store, job_id)
    assert (found.intent_at, found.empty_at, found.calls) == (first, None, [lease.token, second.token])


def test_a_repeated_intent_is_one_call(store: Store) -> None:
    """After a lost answer the client repeats it."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    store.leases.record_intent(lease)
    assert shard(store, job_id).calls == [lease.token]


def test_an_intent_tells_of_a_cancel(store: Store) -> None:
    """Then the paid call is not made."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    assert not store.leases.record_intent(lease).cancel
    store.jobs.cancel(job_id)
    assert store.leases.record_intent(lease).cancel


def test_only_the_last_withdrawn_call_clears_the_intent(store: Store) -> None:
    """While another call is unanswered its batch may turn up. Withdrawing twice is no different from once."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    advance(store, lease, Stage.UPLOADED)
    second = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(second)
    record = shard(store, job_id)
    for _ in range(2):
        store.shards.withdraw_call(record, second.token)
        found = shard(store, job_id)
        assert (found.intent_at, found.calls) == (record.intent_at, [lease.token])
    for _ in range(2):
        store.shards.withdraw_call(record, lease.token)
        found = shard(store, job_id)
        assert (found.intent_at, found.calls) == (None, [])


def test_withdrawing_an_unknown_call_leaves_the_intent(store: Store) -> None:
    """A call of an older key has nothing to say about this one."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    store.shards.withdraw_call(shard(store, job_id), "somebody")
    store.shards.withdraw_call(shard(store, job_id).evolve(try_=7), lease.token)
    assert shard(store, job_id).calls == [lease.token]


def settle(store: Store, job_id: str, batch: str = "batch_1", token: str | None = None, **fields: Any) -> Any:
    record = shard(store, job_id).evolve(**fields)
    return store.shards.settle(record, batch, token=token, after=5.0, changes={"status": "validating"})


def test_settling_by_the_holder_is_an_advance(store: Store) -> None:
    """The id, the stage and the index of batches are written, the lease is released."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    assert settle(store, job_id, token=lease.token).verdict == "ok"
    found = shard(store, job_id)
    assert (found.stage, found.batch_id, found.status) == (Stage.CREATED, "batch_1", "validating")
    assert (found.token, found.calls, found.tries) == (None, [], 0)
    assert found.next_at == about(store.now() + 5)
    assert due_in(store, job_id, 0) == about(5 + LEASE)
    assert store.shards.place_of_batch("batch_1") == (job_id, 0)


def test_a_repeated_settle_of_the_holder_is_the_same(store: Store) -> None:
    """After a lost answer it still counts as its own end of the turn."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    record = shard(store, job_id)
    for _ in range(2):
        settled = store.shards.settle(record, "batch_1", token=lease.token, after=5.0, changes={})
        assert settled.verdict == "ok"
    assert shard(store, job_id).next_at == about(store.now() + 5)


def test_a_batch_that_another_shard_has_is_not_settled_but_by_its_own_word(store: Store) -> None:
    """An answer may name the wrong one; a server that counts its ids again after a restart names the right one."""
    job_id = uploaded(store, 2)
    assert settle(store, job_id).verdict == "late"
    record = shard(store, job_id, 1)
    assert store.shards.settle(record, "batch_1", token=None, after=0.0, changes={}).verdict == "other"
    assert shard(store, job_id, 1).batch_id is None
    assert store.shards.settle(record, "batch_1", token=None, after=0.0, changes={}, sure=True).verdict == "late"


def test_another_account_may_have_the_same_id(store: Store) -> None:
    """Each server counts for itself."""
    assert settle(store, uploaded(store)).verdict == "late"
    other = uploaded(store, account="other")
    assert store.shards.of_batches("other", ["batch_1"]) == {}
    assert settle(store, other).verdict == "late"
    assert [found.job for found in store.shards.of_batches("other", ["batch_1", "batch_9"]).values()] == [other]


def test_ids_that_answers_named_are_kept_until_the_shard_has_its_batch(store: Store) -> None:
    """Or until somebody calls again, having settled them; a few at most."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    store.shards.record_named_batches(shard(store, job_id), {"batch_1": False, "batch_2": True})
    store.shards.record_named_batches(shard(store, job_id), {"batch_1": True, "batch_2": False})
    assert shard(store, job_id).named == {"batch_1": True, "batch_2": True}
    store.shards.record_named_batches(shard(store, job_id), {f"batch_{n}": True for n in range(50)})
    assert len(shard(store, job_id).named) == MOST_NAMED
    store.shards.record_named_batches(shard(store, job_id).evolve(try_=9), {"batch_77": True})
    store.leases.record_intent(lease)
    assert shard(store, job_id).named == {}
    store.shards.record_named_batches(shard(store, job_id), {"batch_3": True})
    settle(store, job_id, token=lease.token)
    store.shards.record_named_batches(shard(store, job_id), {"batch_4": True})
    assert shard(store, job_id).named == {}


def test_calls_without_an_answer_do_not_pile_up(store: Store) -> None:
    """A provider may be down for days; the intent stays."""
    job_id = uploaded(store)
    for number in range(30):
        lease = granted(claim(store, job_id, 0, Stage.UPLOADED, epoch=shard(store, job_id).epoch))
        store.leases.record_intent(lease)
        advance(store, lease, Stage.UPLOADED)
        assert shard(store, job_id).calls[-1] == lease.token, number
    assert len(shard(store, job_id).calls) == 20


def test_settling_tells_the_holder_to_publish_again_and_of_a_cancel(store: Store) -> None:
    """It publishes the new chain itself."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.jobs.cancel(job_id)
    store.due.bump_epoch(job_id, 0, ["new"])
    news = settle(store, job_id, token=lease.token).news
    assert (news.republish, news.cancel) == (True, True)
    assert shard(store, job_id).next_at == about(store.now())


@pytest.mark.parametrize("token", [None, "thawed"], ids=["by sweep", "by a late worker"])
def test_settling_late_ends_a_living_lease_and_makes_the_shard_due(store: Store, token: str | None) -> None:
    """The batch is a fact, and paid: who works on the shard meanwhile must not make another."""
    job_id = uploaded(store)
    other = granted(claim(store, job_id, 0, Stage.UPLOADED))
    assert settle(store, job_id, token=token).verdict == "late"
    found = shard(store, job_id)
    assert (found.batch_id, found.stage, found.token) == ("batch_1", Stage.CREATED, None)
    assert due_in(store, job_id, 0) == about(0)
    with pytest.raises(LeaseLost):
        store.leases.record_intent(other)


def test_a_recorded_id_is_known(store: Store) -> None:
    """Adopting it a second time, by anyone, is no news."""
    job_id = uploaded(store)
    settle(store, job_id)
    assert settle(store, job_id).verdict == "known"
    assert settle(store, job_id, token="somebody").verdict == "known"


def test_a_spent_id_is_known(store: Store) -> None:
    """It was given up on purpose; it is not cancelled again, and never recorded."""
    job_id = uploaded(store)
    advance(store, claim(store, job_id, 0, Stage.UPLOADED), Stage.UPLOADED, spent=["batch_0"])
    assert settle(store, job_id, "batch_0").verdict == "known"
    assert shard(store, job_id).batch_id is None


def test_the_recorded_id_wins(store: Store) -> None:
    """Every other batch is to be cancelled by who made it."""
    job_id = uploaded(store)
    settle(store, job_id)
    assert settle(store, job_id, "batch_2").verdict == "cancel"
    assert shard(store, job_id).batch_id == "batch_1"


def test_a_batch_of_another_key_stage_or_record_is_to_be_cancelled(store: Store) -> None:
    """An unknown record, too: nobody would ever read its rows."""
    job_id = uploaded(store)
    assert settle(store, job_id, try_=9).verdict == "cancel"
    assert settle(store, job_id, index=7).verdict == "cancel"
    advance(store, claim(store, job_id, 0, Stage.UPLOADED), Stage.COLLECTED)
    assert settle(store, job_id).verdict == "cancel"
    assert shard(store, job_id).batch_id is None


def test_a_snapshot_is_noted_only_of_the_batch_that_is_waited_for(store: Store) -> None:
    """It needs no lease, so it touches nothing else."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    assert lease.shard is not None
    assert not store.shards.record_batch_status(lease.shard, "batch_1", {"status": "completed"})
    store.shards.settle(lease.shard, "batch_1", token=lease.token, after=0.0, changes={})
    assert not store.shards.record_batch_status(lease.shard, "batch_2", {"status": "completed"})
    assert store.shards.record_batch_status(lease.shard, "batch_1", {"status": "completed"})
    found = shard(store, job_id)
    assert (found.status, found.stage, found.epoch) == ("completed", Stage.CREATED, 1)
    assert found.snapshot_at == about(store.now())
