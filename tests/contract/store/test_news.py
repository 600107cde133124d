"""What webhooks tell: a shard whose batch has ended is due at once, once; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.model.provider import Batch
from batchpipe.model.records import Stage
from batchpipe.store import Store
from batchpipe.store.news import Told
from tests.contract.store.protocol import about, advance, claim, granted, shard, uploaded


def created(store: Store, batch_id: str = "batch_1", *, after: float = 600.0, **fields: Any) -> str:
    """A job whose one shard has this batch, and sleeps for ten minutes."""
    job_id = uploaded(store, **fields)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.shards.settle(shard(store, job_id), batch_id, token=lease.token, after=after, changes={})
    return job_id


def ends(store: Store, job_id: str, status: str = "completed") -> None:
    """A look sees the end of the batch."""
    found = shard(store, job_id)
    assert store.shards.record_batch_status(found, found.batch_id or "", {"status": status})


def test_a_shard_is_due_as_soon_as_a_webhook_tells_of_its_end(store: Store) -> None:
    """In the script that remembers the webhook: whoever dies after that has lost nothing."""
    job_id = created(store)
    assert store.news.record("evt_1", "batch_1", ["default"]) == Told("woken", (job_id, 0))
    found = shard(store, job_id)
    assert (found.news_at, found.next_at) == (about(store.now()), about(store.now()))
    assert (job_id, 0) in store.due.overdue()


def test_a_repeat_changes_nothing_but_names_the_shard_until_somebody_has_published_it(store: Store) -> None:
    """The first may have died in between; then one new message is sent, and no second."""
    job_id = created(store)
    store.news.record("evt_1", "batch_1", ["default"])
    before = shard(store, job_id)
    assert store.news.record("evt_1", "batch_1", ["default"]) == Told("repeated", (job_id, 0))
    assert shard(store, job_id) == before
    assert store.due.bump_epoch(job_id, 0, ["new"], when="overdue") is not None
    assert store.due.bump_epoch(job_id, 0, ["new"], when="overdue") is None
    assert store.news.record("evt_1", "batch_1", ["default"]) == Told("repeated", None)


def test_a_turn_that_is_under_way_is_told_to_publish_again(store: Store) -> None:
    """It may have read the batch a moment before its end."""
    job_id = created(store)
    store.due.bump_epoch(job_id, 0, ["new"])
    lease = granted(claim(store, job_id, 0, Stage.CREATED, epoch=2))
    assert store.news.record("evt_1", "batch_1", ["default"]) == Told("woken", None)
    assert advance(store, lease, Stage.CREATED, after=600)[0].republish
    assert shard(store, job_id).next_at == about(store.now())


def test_a_webhook_that_is_quicker_than_the_answer_to_the_create_is_kept_for_it(store: Store) -> None:
    """The shard is then due at once, and its first look asks."""
    job_id = uploaded(store)
    assert store.news.record("evt_1", "batch_1", ["default"]) == Told("early", None)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.shards.settle(shard(store, job_id), "batch_1", token=lease.token, after=600.0, changes={})
    found = shard(store, job_id)
    assert (found.news_at, found.next_at) == (about(store.now()), about(store.now()))


def test_what_is_kept_is_of_its_account_for_an_hour_and_bounded(store: Store, clock: Any) -> None:
    """Other programs of the same project have batches, too."""
    store.news.record("evt_1", "batch_1", ["other"])
    assert shard(store, created(store)).news_at is None
    store.news.record("evt_2", "batch_2", ["default"])
    clock.advance(3_601)
    store.news.record("evt_3", "batch_3", ["default"])
    prefix = store.connection.prefix
    assert store.connection.client.zrange(f"{prefix}news:default", 0, -1) == ["batch_3"]
    store.connection.client.zadd(f"{prefix}news:default", {f"other_{n}": store.now() for n in range(10_050)})
    store.news.record("evt_4", "batch_4", ["default"])
    assert store.connection.client.zcard(f"{prefix}news:default") == 10_000


def test_the_batch_of_an_account_that_did_not_sign_is_not_touched(store: Store) -> None:
    """A secret is good for the batches of its own accounts only."""
    job_id = created(store, account="team")
    assert store.news.record("evt_1", "batch_1", ["default", "other"]).what == "early"
    assert shard(store, job_id).news_at is None
    assert store.news.record("evt_2", "batch_1", ["default", "team"]).what == "woken"


def test_a_batch_that_is_not_waited_for_any_more_wakes_nobody(store: Store) -> None:
    """Downloaded, or spent: it is known, and that is all."""
    job_id = created(store)
    store.due.bump_epoch(job_id, 0, ["new"])
    advance(store, granted(claim(store, job_id, 0, Stage.CREATED, epoch=2)), Stage.ENDED, status="completed")
    before = shard(store, job_id)
    assert store.news.record("evt_1", "batch_1", ["default"]) == Told("known", None)
    assert shard(store, job_id) == before


def test_news_of_an_earlier_batch_is_not_news_of_the_next_one(store: Store) -> None:
    """After a full queue the shard has another."""
    job_id = created(store)
    store.news.record("evt_1", "batch_1", ["default"])
    store.due.bump_epoch(job_id, 0, ["new"])
    lease = granted(claim(store, job_id, 0, Stage.CREATED, epoch=2))
    advance(store, lease, Stage.UPLOADED, batch_id=None, spent=["batch_1"], try_=2)
    store.shards.settle(shard(store, job_id), "batch_2", token=None, after=600.0, changes={})
    assert shard(store, job_id).news_at is None
    assert store.news.record("evt_2", "batch_1", ["default"]).what == "known"
    assert shard(store, job_id).news_at is None


# -- whether they are relied on ------------------------------------------------------------------------------------


def test_webhooks_are_relied_on_from_the_first_about_a_batch_of_ours(store: Store, clock: Any) -> None:
    """Those of other programs prove nothing; after a day without any they are not."""
    assert (store.news.state("default").seen, store.news.trusted("default")) == (None, False)
    store.news.record("evt_1", "batch_of_others", ["default"])
    state = store.news.state("default")
    assert (state.seen, state.ours, state.trusted) == (about(store.now()), None, False)
    created(store)
    store.news.record("evt_2", "batch_1", ["default"])
    assert store.news.trusted("default")
    assert not store.news.trusted("other")
    clock.advance(86_401)
    assert not store.news.trusted("default")


@pytest.fixture
def relied_on(store: Store) -> Store:
    """Webhooks come."""
    created(store, "batch_0")
    store.news.record("evt_0", "batch_0", ["default"])
    assert store.news.trusted("default")
    return store


def test_an_end_that_no_webhook_tells_of_within_a_minute_is_noticed(relied_on: Store, clock: Any) -> None:
    """Looks are then as frequent as ever, for ten minutes at least."""
    store = relied_on
    ends(store, created(store))
    assert store.news.trusted("default")
    clock.advance(61)
    assert not store.news.trusted("default")
    created(store, "batch_2")
    store.news.record("evt_2", "batch_2", ["default"])
    assert not store.news.trusted("default")
    clock.advance(600)
    created(store, "batch_3")
    assert not store.news.trusted("default")
    store.news.record("evt_3", "batch_3", ["default"])
    assert store.news.trusted("default")


@pytest.mark.parametrize("late", [10, 300], ids=["soon", "late"])
def test_a_look_may_be_a_little_quicker_than_the_webhook(relied_on: Store, clock: Any, late: float) -> None:
    """When it comes, nothing is missing."""
    store = relied_on
    ends(store, created(store))
    clock.advance(late)
    store.news.record("evt_1", "batch_1", ["default"])
    clock.advance(100)
    assert store.news.trusted("default")


def test_an_end_that_a_webhook_told_of_is_none_that_was_missed(relied_on: Store, clock: Any) -> None:
    """Nor one that is no end: a look may see a batch alive."""
    store = relied_on
    job_id = created(store)
    store.news.record("evt_1", "batch_1", ["default"])
    ends(store, job_id)
    ends(store, created(store, "batch_2"), "in_progress")
    clock.advance(100)
    assert store.news.trusted("default")


def test_the_reading_of_an_account_writes_nothing(store: Store) -> None:
    """It works on a Redis that is full."""
    store.news.state("default")
    assert store.connection.client.keys(f"{store.connection.prefix}*") == []


def test_a_parked_shard_is_woken_and_no_look_puts_it_to_sleep_again(store: Store) -> None:
    """Though the list still shows its batch alive, and the receiver has died before it sent the message."""
    job_id = created(store, after=0.0)
    lease = granted(claim(store, job_id, 0, Stage.CREATED))
    advance(store, lease, Stage.CREATED, 200.0, status="in_progress", parked=True)
    assert store.news.record("evt_1", "batch_1", ["default"]) == Told("woken", (job_id, 0))
    store.looks.record_page("default", [Batch(id="batch_1", status="in_progress")], every=60.0, net=600.0)
    assert store.news.record("evt_1", "batch_1", ["default"]) == Told("repeated", (job_id, 0))
    assert store.due.bump_epoch(job_id, 0, ["new"], when="overdue") is not None
    assert not shard(store, job_id).parked
