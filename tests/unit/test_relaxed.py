"""Where webhooks tell of the ends of batches, polls are only a safety net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchpipe.model.records import Stage
from batchpipe.pipeline.relaxed import Trust
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """A provider whose batches run until they are ended."""
    return Pump(tmp_path, api=FakeOpenAI())


def created(pump: Pump, rows: list[dict[str, object]], **fields: Any) -> str:
    """A job whose one shard has its batch, and sleeps."""
    job_id = pump.submit(rows, **fields)
    while not (pump.shards(job_id) and pump.shards(job_id)[0].batch_id and not pump.step()):
        if pump.step() is None:
            pump.advance(0.5)
    return job_id


def tell(pump: Pump, job_id: str, number: int = 0) -> None:
    """A webhook arrives, and wakes the shard."""
    batch_id = pump.shards(job_id)[0].batch_id or ""
    told = pump.store.news.record(f"evt_{batch_id}_{number}", batch_id, ["default"])
    if told.place is not None:
        pump.advance(0.05)
        pump.shard_runner.republish(*told.place, when="overdue")


def test_a_webhook_ends_a_shards_sleep(pump: Pump, chat_rows: Rows) -> None:
    """The batch is read and its files are fetched, and no time passes."""
    job_id = created(pump, chat_rows(2))
    pump.api.finish(pump.shards(job_id)[0].batch_id or "")
    tell(pump, job_id)
    pump.run_due()
    assert pump.job(job_id).stage == "succeeded"


def test_a_webhook_counts_though_its_receiver_died_before_it_sent_the_message(pump: Pump, chat_rows: Rows) -> None:
    """The next sweep sends it."""
    job_id = created(pump, chat_rows(2))
    batch_id = pump.shards(job_id)[0].batch_id or ""
    pump.api.finish(batch_id)
    assert pump.store.news.record("evt_1", batch_id, ["default"]).place == (job_id, 0)
    pump.advance(0.1)
    assert pump.sweep() == 1
    pump.run_due()
    assert pump.job(job_id).stage == "succeeded"


def test_a_webhook_that_came_before_the_answer_to_the_create_is_followed_at_once(
    tmp_path: Path, chat_rows: Rows
) -> None:
    """Not after the shortest pause: the batch has ended."""

    class Quick(FakeOpenAI):
        def create_batch(self, **arguments: Any) -> Any:
            batch = super().create_batch(**arguments)
            self.finish(batch.id)
            quick.store.news.record(f"evt_{batch.id}", batch.id, ["default"])
            return batch

    quick = Pump(tmp_path, api=Quick())
    job_id = quick.submit(chat_rows(2))
    began = quick.at
    quick.run_due()
    assert quick.job(job_id).stage == "succeeded"
    assert quick.at == began


def test_polls_relax_while_webhooks_come_and_hurry_when_one_did_not(pump: Pump, chat_rows: Rows) -> None:
    """The longest pause after the first look; the usual ones from a minute after an end that no webhook told of."""
    first = created(pump, chat_rows(2))
    tell(pump, first)
    pump.shard_runner.trust = Trust(pump.store.news.trusted)
    second = created(pump, chat_rows(2))
    pump.advance(10)  # the first look comes soon, whatever webhooks do
    pump.run_due()
    asleep = pump.shards(second)[0]
    assert asleep.next_at > pump.at + 500
    pump.api.finish(asleep.batch_id or "")
    pump.advance(600)
    pump.run_due()
    assert pump.shards(second)[0].stage == Stage.COLLECTED
    pump.advance(61)
    pump.shard_runner.trust = Trust(pump.store.news.trusted)
    third = created(pump, chat_rows(2))
    assert pump.shards(third)[0].next_at < pump.at + 60


def test_a_webhook_that_was_lost_costs_five_minutes_though_few_batches_are_in_flight(
    pump: Pump, chat_rows: Rows
) -> None:
    """Its batch stands deep in the list, where looks for orphans do not go, and its poll comes after ten minutes."""
    tell(pump, created(pump, chat_rows(2)))
    job_id = created(pump, chat_rows(2))
    for number in range(250):
        arguments: dict[str, Any] = {"metadata": {}, "extra": {}, "endpoint": "/", "completion_window": "24h"}
        pump.api.create_batch(input_file_id=pump.shards(job_id)[0].file_id or "", **arguments)
        pump.advance(10.0 if number < 200 else 0.0)
    pump.run_for(700.0)
    pump.api.calls.clear()
    pump.api.finish(pump.shards(job_id)[0].batch_id or "")
    ended = pump.at
    while pump.job(job_id).stage != "succeeded":
        pump.run_for(5.0)
    assert pump.at - ended <= 330
    pump.run_for(1_800.0)
    assert pump.api.count("retrieve") <= 2 * (1_800 / 300 + 2)  # two in flight at first, none twice within five minutes


def test_a_job_that_is_cancelled_is_watched_as_closely_as_ever(pump: Pump, chat_rows: Rows) -> None:
    """Somebody waits for its end."""
    first = created(pump, chat_rows(2))
    tell(pump, first)
    pump.shard_runner.trust = Trust(pump.store.news.trusted)
    second = created(pump, chat_rows(2))
    pump.cancel(second)
    pump.run_due()
    assert pump.shards(second)[0].next_at < pump.at + 60


def test_redis_is_asked_about_an_account_every_ten_seconds_at_most() -> None:
    """Polls are many."""
    asked: list[str] = []

    def read(account: str) -> bool:
        asked.append(account)
        return True

    trust = Trust(read)
    assert [trust.of("a") for _ in range(100)] == [True] * 100
    assert trust.of("b")
    assert asked == ["a", "b"]
