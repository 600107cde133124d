"""Redis' clock is set back and leaps forward: nothing stands still for an hour, and nothing is paid twice."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchpipe.cli import cli
from batchpipe.errors import AmbiguousResult
from batchpipe.model.provider import BatchPage
from batchpipe.model.records import JobRecord, Problem, Stage, State, new_job_id
from batchpipe.store import Store
from batchpipe.testing import FakeOpenAI, Pump, Vanished
from tests.size import scaled

Rows = Callable[..., list[dict[str, object]]]

HOUR = 3_600.0


class ShortPages(FakeOpenAI):
    """A batch a page: a walk sees at most one that is older than it has to go back, so none is found by chance."""

    def batch_page(self, after: str | None = None) -> BatchPage:
        page = super().batch_page(after)
        return BatchPage(batches=page.batches[:1], more=page.more or len(page.batches) > 1)


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """Two rows a shard; a batch ends when the provider is told so."""
    return Pump(tmp_path, api=ShortPages(), max_rows=2)


def running(pump: Pump, rows: list[dict[str, object]]) -> str:
    job_id = pump.submit(rows)
    pump.run_for(30.0)
    assert {shard.stage for shard in pump.shards(job_id)} == {Stage.CREATED}
    return job_id


def finish(pump: Pump) -> None:
    for batch in list(pump.api.batches):
        pump.api.finish(batch)


def test_a_job_goes_on_though_redis_clock_is_set_back_by_an_hour(pump: Pump, chat_rows: Rows) -> None:
    """Its polls, whose times were given out before, are not refused as too early until the hour is over."""
    job_id = running(pump, chat_rows(4))
    pump.redis_off = -HOUR
    finish(pump)
    pump.run_for(240.0)
    assert pump.job(job_id).state is State.SUCCEEDED
    assert pump.api.billed == Counter(f"r{number}" for number in range(4))


def test_a_worker_that_vanished_before_the_clock_was_set_back_is_replaced(pump: Pump, chat_rows: Rows) -> None:
    """Its lease does not last an hour longer."""
    job_id = pump.submit(chat_rows(2))
    lease = pump.store.leases.claim_job(job_id, 1, [State.PENDING.value], deadline=600.0, enter=State.PREPARING.value)
    assert lease
    pump.redis_off = -HOUR
    pump.run_for(200.0)
    assert {shard.stage for shard in pump.shards(job_id)} == {Stage.CREATED}


def test_the_pause_of_an_account_ends_in_time_though_the_clock_is_set_back(pump: Pump) -> None:
    pump.store.accounts.pause("default", 60.0, Problem(code="insufficient_quota", message="no money"))
    pump.redis_off = -HOUR
    pump.run_for(70.0)
    assert pump.store.accounts.pause_of("default") is None


def test_polls_of_an_account_are_granted_though_the_clock_is_set_back(pump: Pump) -> None:
    """The budget fills again."""
    while not pump.store.accounts.take_rate_token("default", per_second=1.0)[1]:
        pass
    pump.redis_off = -HOUR
    pump.store.due.note_sweep()
    pump.advance(4.0)
    assert pump.store.accounts.take_rate_token("default", per_second=1.0) == ("slot", 0)


def test_that_the_clock_was_set_back_is_logged_once(pump: Pump, caplog: pytest.LogCaptureFixture) -> None:
    pump.run_for(10.0)
    pump.redis_off = -HOUR
    with caplog.at_level(logging.ERROR):
        pump.run_for(60.0)
    warnings = [record.message for record in caplog.records if getattr(record, "event", "") == "clock_back"]
    assert len(warnings) == 1
    assert "set back by 3595 s" in warnings[0]


def test_a_batch_is_found_though_the_clock_was_an_hour_ahead_when_it_was_made(pump: Pump, chat_rows: Rows) -> None:
    """The provider's clock was right: the list must be read back to what was then, not to what Redis took for it."""
    pump.redis_off = HOUR
    job_id = pump.submit(chat_rows(2))
    pump.api.fail_next("create_batch", AmbiguousResult("the answer is lost"), processed=True)
    pump.api.hide_from_list("batch_0001")
    pump.run_for(1.0)
    assert pump.shards(job_id)[0].calls
    [made] = pump.api.batches.values()
    for _ in range(2):  # of others, later: the list is not read to its end by chance
        key = {"batchpipe_key": "job_other:0:1"}
        pump.api.create_batch(
            endpoint="/v1/x", completion_window="24h", input_file_id=made.input_file_id, metadata=key, extra={}
        )
    pump.api.hide_from_list(False)
    pump.redis_off = 0.0
    pump.run_for(150.0)
    assert len(pump.api.batches) == 3
    assert pump.shards(job_id)[0].batch_id == made.id


def test_a_call_that_may_still_be_under_way_is_waited_for_when_the_clock_leaps_forward(
    pump: Pump, chat_rows: Rows
) -> None:
    """The lease of its worker ends by the leap and not by the time that has passed; the batch is listed late."""
    job_id = pump.submit(chat_rows(2))
    pump.api.fail_next("create_batch", Vanished(), processed=True)
    pump.api.hide_from_list()
    while not pump.vanished:
        assert pump.step() is not None
    pump.redis_off = HOUR
    pump.run_for(50.0)
    pump.api.hide_from_list(False)
    pump.run_for(120.0)
    assert len(pump.api.batches) == 1
    assert pump.shards(job_id)[0].stage == Stage.CREATED


@pytest.mark.scaled
@pytest.mark.parametrize("seed", range(scaled(12)))
def test_whatever_the_clock_does_each_row_is_paid_for_once(tmp_path: Path, chat_rows: Rows, seed: int) -> None:
    """It is moved back and forth by hours between turns, while workers vanish and answers are lost."""
    maker = random.Random(seed)
    pump = Pump(tmp_path, api=ShortPages(autofinish=True), max_rows=2)
    job_id = pump.submit(chat_rows(8))
    for _ in range(60):
        if maker.random() < 0.3:
            pump.redis_off = maker.choice([-2 * HOUR, -HOUR, -61.0, -3.0, 0.0, 3.0, 61.0, HOUR, 2 * HOUR])
        if maker.random() < 0.2:
            pump.api.fail_next("create_batch", maker.choice([Vanished(), AmbiguousResult("lost")]), processed=True)
        if pump.waiting:
            pump.advance(max(min(delivery.at for delivery in pump.waiting) - pump.at, 0.0) + 0.01)
            pump.step()
        pump.sweep()
    pump.run_for(3 * HOUR, pace=30.0)
    job = pump.job(job_id)
    assert (job.state, job.ok) == (State.SUCCEEDED, 8)
    assert pump.api.billed == Counter(f"r{number}" for number in range(8))


def times(store: Any, clock: Any, moves: list[float]) -> list[float]:
    found = []
    for move in moves:
        clock.advance(move)
        store.due.note_sweep()
        found.append(store.now())
    return found


def test_time_never_goes_back_and_returns_to_redis_clock(store: Any, clock: Any) -> None:
    """By a twentieth of what passes, so that messages on hosts' clocks are not too early."""
    first = store.now()
    assert times(store, clock, [0.0, 100.0, -HOUR]) == pytest.approx([first, first + 100, first + 100], abs=1.5)
    assert store.connection.clock().ahead == pytest.approx(HOUR, abs=1.5)
    after = times(store, clock, [20.0] * 10)
    assert after == sorted(after)
    assert after[-1] - first - 100 == pytest.approx(200 * 0.95, abs=2.5)
    times(store, clock, [600.0] * 130)
    assert store.connection.clock().ahead == 0
    assert store.connection.clock().back_by == pytest.approx(HOUR, abs=1.5)


def test_a_clock_that_is_set_right_again_is_taken_at_its_word(store: Any, clock: Any) -> None:
    times(store, clock, [0.0, -HOUR, 10.0])
    before = store.now()
    times(store, clock, [HOUR])
    assert store.connection.clock().ahead == 0
    assert store.now() >= before


def test_a_leap_forward_is_remembered_and_not_hidden_by_a_smaller_one(store: Any, clock: Any) -> None:
    times(store, clock, [0.0, HOUR, 40.0])
    known = store.connection.clock()
    assert known.leap_by == pytest.approx(HOUR, abs=1.5)
    assert known.now - known.leap_at == pytest.approx(40.0, abs=1.5)


def test_status_list_and_doctor_say_that_the_clock_was_set_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """In one line each: for people who wonder about the times."""
    monkeypatch.setenv("BATCHPIPE_REDIS_URL", redis_url)
    monkeypatch.setenv("BATCHPIPE_PREFIX", prefix)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    store = Store.connect(redis_url, prefix=prefix)
    store.connection.skew = lambda: HOUR
    job = JobRecord(id=new_job_id(), epoch=1, output="/nowhere/out")
    store.jobs.submit(job)
    store.connection.skew = lambda: 0.0
    store.due.note_sweep()
    store.connection.client.close()
    for command in (["status", job.id], ["list"], ["doctor"]):
        assert "Redis' clock was set back by 3600 s" in CliRunner().invoke(cli, command).output
