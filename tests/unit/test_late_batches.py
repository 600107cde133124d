"""Turnarounds over whole jobs: counted at their end, used by polls, and late batches that are said to be late."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.model.pace import bin_of
from batchpipe.model.records import Stage, State
from batchpipe.pipeline.stalls import MOST_JUDGED, report_late
from batchpipe.pipeline.steps.poll import Pace
from batchpipe.pipeline.sweep import sweep
from batchpipe.provider import parse_batch
from batchpipe.store import Connection, Store
from batchpipe.testing import FakeOpenAI, Pump
from tests.redis_server import new_redis

Rows = Callable[..., list[dict[str, object]]]
HOUR = 3_600.0


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """A provider whose batches stay as they are."""
    return Pump(tmp_path, api=FakeOpenAI())


def created(pump: Pump, rows: list[dict[str, object]], **fields: Any) -> str:
    """A job whose shards have their batches."""
    job_id = pump.submit(rows, **fields)
    for _ in range(10_000):
        if (shards := pump.shards(job_id)) and all(shard.stage == Stage.CREATED for shard in shards):
            return job_id
        if pump.step() is None:
            pump.advance(1)
    raise TimeoutError


def known(pump: Pump, seconds: float, count: int = 30, model: str = "gpt-4o-mini") -> None:
    """A history, of yesterday."""
    client: Any = pump.store.connection.client
    now = pump.store.now()
    day = int(now // 86_400) - 1
    client.hset(
        f"{pump.store.connection.prefix}pace:default:{model}", f"{day}:took", f'{{"{bin_of(seconds)}":{count}}}'
    )
    client.zadd(f"{pump.store.connection.prefix}paces:default", {model: now})


def model_of(pump: Pump, job_id: str) -> str:
    return pump.shards(job_id)[0].model or ""


def said(pump: Pump, job_id: str) -> list[str]:
    return [
        event["event"] for event in pump.store.events.read(job_id) if event["event"] in ("batch_late", "no_answers")
    ]


def test_the_batches_of_a_job_are_counted_once_each(tmp_path: Path, chat_rows: Rows) -> None:
    """However often sweeps and polls see that they have ended."""
    pump = Pump(tmp_path, max_rows=1)
    job_id = pump.submit(chat_rows(4))
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.SUCCEEDED
    pump.sweep()
    found = pump.store.paces.read("default", model_of(pump, job_id))
    assert (found.took.ended, found.queued.ended) == (4, 4)


def test_a_cancelled_job_leaves_no_turnaround(pump: Pump, chat_rows: Rows) -> None:
    job_id = created(pump, chat_rows(2))
    pump.cancel(job_id)
    while not pump.api.count("cancel_batch"):
        if pump.step() is None:
            pump.advance(1)
    pump.api.finish("batch_0001", "cancelled", after=0)
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.CANCELLED
    assert pump.store.paces.read("default", model_of(pump, job_id)).took.ended == 0


def test_a_late_batch_is_said_to_be_late_once(pump: Pump, chat_rows: Rows) -> None:
    """In the log of its job, in its record and for metrics; until it ends."""
    job_id = created(pump, chat_rows(2))
    known(pump, 300, model=model_of(pump, job_id))
    sweep(pump.job_runner)
    assert said(pump, job_id) == []
    for _ in range(4):
        pump.advance(HOUR)
        sweep(pump.job_runner)
    assert said(pump, job_id) == ["batch_late"]
    shard = pump.shards(job_id)[0]
    assert shard.stall is not None
    assert "ended within" in shard.stall.message
    assert shard.stalled_at is not None
    assert pump.store.paces.late("default") == 1
    pump.api.finish("batch_0001")
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert pump.store.paces.late("default") == 0


def test_the_next_batch_of_a_late_shard_is_not_late(pump: Pump, chat_rows: Rows) -> None:
    """It begins anew."""
    job_id = created(pump, chat_rows(1))
    known(pump, 300, model=model_of(pump, job_id))
    pump.advance(2 * HOUR)
    sweep(pump.job_runner)
    assert pump.store.paces.late("default") == 1
    pump.api.fail("batch_0001", [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}])
    for _ in range(200):
        if pump.shards(job_id)[0].batch_id == "batch_0002":
            break
        if pump.step() is None:
            pump.advance(30)
            pump.sweep()  # grants the room that the shard waits for, without a message, after its refusal
    shard = pump.shards(job_id)[0]
    assert (shard.batch_id, shard.stall, pump.store.paces.late("default")) == ("batch_0002", None, 0)


def test_of_very_many_old_batches_all_come_up_in_time(pump: Pump, chat_rows: Rows, monkeypatch: Any) -> None:
    """Some at each look, wherever they stand."""
    monkeypatch.setattr("batchpipe.pipeline.stalls.MOST_JUDGED", 5)
    assert MOST_JUDGED == 500
    job_id = created(pump, chat_rows(12), max_rows=1)
    known(pump, 300, model=model_of(pump, job_id))
    pump.advance(2 * HOUR)
    looks = 0
    while pump.store.paces.late("default") < 12:
        looks += 1
        assert looks < 300
        assert report_late(pump.job_runner, "default", pump.store.now()) <= 5
        pump.advance(61)
    assert said(pump, job_id).count("batch_late") == 12


def test_a_look_for_late_batches_costs_little_where_all_are_young(pump: Pump, chat_rows: Rows) -> None:
    """No record is read."""
    created(pump, chat_rows(3), max_rows=1)
    commands: list[Any] = []
    client: Any = pump.store.connection.client
    whole, now = client.execute_command, pump.store.now()

    def counted(*args: Any, **more: Any) -> Any:
        commands.append(args[0])
        return whole(*args, **more)

    client.execute_command = counted
    report_late(pump.job_runner, "default", now)
    assert commands == ["GET", "SET", "ZRANGE", "ZCOUNT"]
    commands.clear()
    report_late(pump.job_runner, "default", now)
    assert commands == ["GET"]


def test_polls_pause_by_the_history_of_the_model(pump: Pump, chat_rows: Rows) -> None:
    """Seldom long before the end, often near it; a batch that is not in progress yet as without a history."""
    job_id = created(pump, chat_rows(1))
    model = model_of(pump, job_id)
    known(pump, 5 * HOUR, 100, model)
    history = pump.store.paces.read("default", model).took
    pace = Pace(5.0, 600.0, history)
    assert pace.after(10.0, "validating") < 6
    assert pace.after(10.0, "in_progress") == 600.0
    assert 5 <= pace.after(bin_end(5 * HOUR) - 700, "in_progress") < 300
    assert Pace(5.0, 600.0).after(100.0, "in_progress") < 12


def bin_end(seconds: float) -> float:
    return 1.2 ** (bin_of(seconds) + 1)


def test_polls_keep_their_bounds_and_the_end_is_noticed(tmp_path: Path, chat_rows: Rows) -> None:
    """Eight jobs, each of whose batches takes some minutes: with the history of the first, too, all end, within a few
    looks each."""
    pump = Pump(tmp_path, api=FakeOpenAI(), store=Store(Connection(new_redis())))
    for number in range(8):
        job_id = created(pump, chat_rows(1), output=str(tmp_path / f"out{number}"))
        batch = pump.shards(job_id)[0].batch_id or ""
        pump.api.batches[batch].status, begun = "in_progress", pump.store.now()
        while pump.job(job_id).stage != State.SUCCEEDED:
            if pump.store.now() - begun > 400 and not pump.api.batches[batch].is_final:
                pump.api.finish(batch)
            if pump.step() is None:
                pump.advance(20)
            assert pump.store.now() - begun < 1_200
    assert pump.store.paces.read("default", model_of(pump, job_id)).took.ended == 8


def test_an_end_that_a_look_sees_counts_with_the_provider_s_times(tmp_path: Path, chat_rows: Rows) -> None:
    """Parked shards are not read one by one: what the list shows is what is known."""
    account = Account(api_key=SecretStr("k"), looks_per_second=100.0)
    pump = Pump(tmp_path, api=FakeOpenAI(), max_rows=1, polls_in_flight=2, accounts={"default": account})
    job_id = pump.submit(chat_rows(6))

    pump.run_for(60.0)
    assert all(shard.parked for shard in pump.shards(job_id))
    for batch in pump.api.batches.values():
        batch.status, batch.in_progress_at = "in_progress", pump.api.clock()
    pump.run_for(120.0)
    assert all(shard.in_progress_at is not None for shard in pump.shards(job_id))
    for batch in pump.api.batches.values():
        pump.api.finish(batch.id)
    pump.run_for(120.0)
    assert pump.job(job_id).stage == State.SUCCEEDED
    found = pump.store.paces.read("default", model_of(pump, job_id))
    assert (found.took.ended, found.queued.ended) == (6, 6)
    assert 150 < (found.took.quantile(0.5) or 0) < 260


@pytest.mark.parametrize("value", ["1760000000", True, None, -5, 0, 1e300, {"at": 1}])
def test_times_of_a_batch_that_are_none_are_not_recorded(value: object) -> None:
    """Whatever a provider writes there."""
    batch = parse_batch({"id": "batch_1", "in_progress_at": value, "completed_at": value})
    assert batch.times == {}


def test_the_end_of_a_batch_is_whichever_time_is_there() -> None:
    for name in ("completed_at", "expired_at", "failed_at", "cancelled_at"):
        shown = {"id": "batch_1", "completed_at": None, "in_progress_at": 1_760_000_000, name: 1_760_000_100}
        assert parse_batch(shown).times == {"in_progress_at": 1.76e9, "finished_at": 1760000100.0}
