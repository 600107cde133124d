"""The sweep: overdue work is published again, as are shards whose batch has ended; orphans are cancelled."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import Gone, Paused, Refused, Unavailable
from batchpipe.model.provider import BatchPage
from batchpipe.model.records import Problem, Stage, State
from batchpipe.pipeline.sweep import LIST_SECONDS, sweep
from batchpipe.store import Connection, Store
from batchpipe.testing import FakeOpenAI, Pump
from tests.redis_server import new_redis

Rows = Callable[..., list[dict[str, object]]]


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """A provider whose batches stay as they are."""
    return Pump(tmp_path, api=FakeOpenAI())


def created(pump: Pump, rows: list[dict[str, object]], **fields: Any) -> str:
    """A job whose one shard has its batch."""
    job_id = pump.submit(rows, **fields)
    until(pump, lambda: bool(pump.shards(job_id)) and pump.shards(job_id)[0].stage == Stage.CREATED)
    return job_id


def until(pump: Pump, done: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if done():
            return
        if pump.step() is None:
            pump.advance(1)
    raise TimeoutError


def second_batch(pump: Pump, job_id: str, **metadata: str) -> str:
    """What a worker makes that was frozen right before its call and thaws."""
    shard = pump.shards(job_id)[0]
    made = pump.api.create_batch(
        endpoint="/v1/chat/completions",
        completion_window="24h",
        input_file_id=pump.api.upload(io.BytesIO(b'{"custom_id":"r0"}\n'), "f", lambda: None),
        metadata={
            "batchpipe_job": job_id,
            "batchpipe_shard": str(shard.index),
            "batchpipe_key": shard.key,
            **metadata,
        },
        extra={},
    )
    return made.id


def statuses(pump: Pump) -> list[str]:
    return [batch.status for batch in pump.api.batches.values()]


def test_an_orphan_is_cancelled_within_one_sweep(pump: Pump, chat_rows: Rows) -> None:
    """The recorded batch lives on, and the log of the job says what was cancelled."""
    job_id = created(pump, chat_rows(2))
    orphan = second_batch(pump, job_id)
    sweep(pump.job_runner, listing=True)
    assert statuses(pump) == ["validating", "cancelling"]
    assert [e["batch_id"] for e in pump.store.events.read(job_id) if e["event"] == "orphan_cancelled"] == [orphan]
    sweep(pump.job_runner, listing=True)
    assert pump.api.count("cancel_batch") == 1


def test_an_orphan_of_a_shard_that_has_ended_is_cancelled(pump: Pump, chat_rows: Rows) -> None:
    """Also when the whole job has."""
    job_id = created(pump, chat_rows(2))
    pump.api.finish("batch_0001")
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.SUCCEEDED
    second_batch(pump, job_id)
    sweep(pump.job_runner, listing=True)
    assert statuses(pump) == ["completed", "cancelling"]


def test_an_orphan_of_a_job_cancelled_before_it_had_a_batch_is_cancelled(pump: Pump, chat_rows: Rows) -> None:
    """Its shard is collected and has no batch: nothing may be adopted any more."""
    job_id = pump.submit(chat_rows(2))
    until(pump, lambda: bool(pump.shards(job_id)) and pump.shards(job_id)[0].stage == Stage.UPLOADED)
    pump.cancel(job_id)
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.CANCELLED
    created(pump, chat_rows(1))  # else nobody made a create call of late, and there would be nothing to look for
    second_batch(pump, job_id)
    sweep(pump.job_runner, listing=True)
    assert statuses(pump) == ["validating", "cancelling"]


def test_what_may_yet_be_adopted_is_left_alone(pump: Pump, chat_rows: Rows) -> None:
    """While the shard has no batch and has not ended, only the create step decides."""
    pump.api.fail_next("create_batch", Unavailable("gone"), processed=True)
    job_id = pump.submit(chat_rows(1))
    until(pump, lambda: bool(pump.api.batches))
    assert pump.shards(job_id)[0].batch_id is None
    sweep(pump.job_runner, listing=True)
    assert statuses(pump) == ["validating"]


def test_spent_batches_of_others_and_of_unknown_jobs_are_left_alone(pump: Pump, chat_rows: Rows) -> None:
    """Another Redis, or another program, may work on the same account."""
    job_id = created(pump, chat_rows(1))
    shard = pump.shards(job_id)[0]
    spent = second_batch(pump, job_id)
    key = pump.store.connection.key(job_id, 0)
    pump.store.connection.client.hset(key, "spent", f'["{spent}"]')
    second_batch(pump, job_id, batchpipe_job="job_unknown")
    second_batch(pump, job_id, batchpipe_shard="7")
    second_batch(pump, job_id, batchpipe_shard="-1")
    second_batch(pump, job_id, batchpipe_shard="x")
    second_batch(pump, job_id, batchpipe_shard="9" * 5_000)
    second_batch(pump, job_id, batchpipe_job="")
    sweep(pump.job_runner, listing=True)
    assert statuses(pump) == ["validating"] * 8
    assert shard.batch_id == "batch_0001"


def test_the_record_is_read_after_the_list(tmp_path: Path, chat_rows: Rows) -> None:
    """A batch that is recorded between the two must not be cancelled."""

    class Slow(FakeOpenAI):
        after: Callable[[], None] = staticmethod(lambda: None)

        def batch_page(self, after: str | None = None) -> BatchPage:
            found = super().batch_page(after)
            self.after()
            return found

    pump = Pump(tmp_path, api=Slow())
    job_id = created(pump, chat_rows(1))
    late = second_batch(pump, job_id)
    api: Any = pump.api
    api.after = lambda: pump.store.connection.client.hset(pump.store.connection.key(job_id, 0), "batch_id", late)
    sweep(pump.job_runner, listing=True)
    assert statuses(pump) == ["cancelling", "validating"]


def test_a_shard_whose_batch_has_ended_is_published_again(pump: Pump, chat_rows: Rows) -> None:
    """It need not wait for its next look, which may be ten minutes away."""
    job_id = created(pump, chat_rows(1))
    pump.advance(3)  # the answer to the create call counts as a look
    while pump.step() is not None:
        pass
    pump.api.finish("batch_0001")
    before = pump.at
    sweep(pump.job_runner, listing=True)
    while pump.step() is not None:
        pass
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert pump.at == before


def test_sweeps_share_one_look_into_the_list(pump: Pump, chat_rows: Rows) -> None:
    """However many there are; who asks for it explicitly gets it at once."""
    created(pump, chat_rows(1))
    for _ in range(20):
        sweep(pump.job_runner)
    assert pump.api.count("batch_page") == 1
    pump.advance(LIST_SECONDS + 1)
    sweep(pump.job_runner)
    sweep(pump.job_runner, listing=True)
    sweep(pump.job_runner, listing=False)
    assert pump.api.count("batch_page") == 3


def test_an_account_without_recent_create_calls_is_not_asked(pump: Pump, chat_rows: Rows) -> None:
    """Orphans come from create calls only."""
    created(pump, chat_rows(1))
    pump.api.finish("batch_0001")
    pump.run_until_idle()
    pump.advance(48 * 3_600)
    asked = pump.api.count("batch_page")
    sweep(pump.job_runner, listing=True)
    assert pump.api.count("batch_page") == asked


@pytest.mark.parametrize("error", [Unavailable("down"), Refused("no such route"), Gone("no"), Paused("401")])
def test_a_list_that_fails_does_not_end_the_sweep(pump: Pump, chat_rows: Rows, error: Exception) -> None:
    """The rest is swept, and what was not seen is looked for the next time."""
    job_id = created(pump, chat_rows(1))
    second_batch(pump, job_id)
    pump.api.fail_next("batch_page", error)
    sweep(pump.job_runner, listing=True)
    assert statuses(pump) == ["validating", "validating"]
    sweep(pump.job_runner, listing=True)
    assert statuses(pump) == ["validating", "cancelling"]


def test_an_orphan_that_has_just_ended_is_no_error(pump: Pump, chat_rows: Rows) -> None:
    """The provider refuses to cancel it."""
    job_id = created(pump, chat_rows(1))
    second_batch(pump, job_id)
    pump.api.fail_next("cancel_batch", Refused("Cannot cancel a batch with status 'completed'.", status=409))
    sweep(pump.job_runner, listing=True)
    assert [e for e in pump.store.events.read(job_id) if e["event"] == "orphan_cancelled"] == []


def test_an_orphan_that_cannot_be_cancelled_does_not_hold_up_the_others(pump: Pump, chat_rows: Rows) -> None:
    """Nor what comes after it in the list."""
    job_id = created(pump, chat_rows(1))
    second_batch(pump, job_id)
    second_batch(pump, job_id)
    pump.api.fail_next("cancel_batch", Unavailable("down"))
    sweep(pump.job_runner, listing=True)
    assert sorted(statuses(pump)[1:]) == ["cancelling", "validating"]
    sweep(pump.job_runner, listing=True)
    assert statuses(pump)[1:] == ["cancelling", "cancelling"]


def test_an_old_orphan_that_could_not_be_cancelled_is_looked_for_again(pump: Pump, chat_rows: Rows) -> None:
    """However far back it lies: lists are read back only to the last one after which nothing was left to do."""
    job_id = created(pump, chat_rows(1))
    second_batch(pump, job_id)
    pump.advance(3_600)
    for _ in range(130):  # beyond the first page
        second_batch(pump, job_id, batchpipe_job="job_unknown")
    pump.api.fail_next("cancel_batch", Unavailable("down"))
    sweep(pump.job_runner, listing=True)
    assert statuses(pump)[:2] == ["validating", "validating"]
    sweep(pump.job_runner, listing=True)
    assert statuses(pump)[:2] == ["validating", "cancelling"]


@pytest.mark.parametrize("how", ["paused", "no key", "cannot list"])
def test_accounts_that_must_or_can_not_be_asked_are_passed_over(tmp_path: Path, chat_rows: Rows, how: str) -> None:
    """A host without the key, as one that only runs beat, sweeps all the same."""
    pump = Pump(tmp_path, api=FakeOpenAI())
    created(pump, chat_rows(1))
    if how == "paused":
        pump.store.accounts.pause("default", 60, Problem(code="x", message="no money"))
    else:
        account = Account(api_key=SecretStr("k"), lists_batches=False) if how == "cannot list" else Account()
        pump.job_runner.settings = pump.settings.model_copy(update={"accounts": {"default": account}})
    assert sweep(pump.job_runner, listing=True) == 0
    assert pump.api.count("batch_page") == 0


@pytest.mark.parametrize(("account", "said"), [("default", 1), ("sandbox", 0)])
def test_an_account_that_is_not_in_the_settings_is_warned_of_once_and_that_of_a_sandbox_not_at_all(
    tmp_path: Path,
    chat_rows: Rows,
    caplog: pytest.LogCaptureFixture,
    account: str,
    said: int,
) -> None:
    """A worker warned every minute, for a day, of the account of a `run --sandbox` that had long ended."""
    key = Account(api_key=SecretStr("k"))
    pump = Pump(tmp_path, api=FakeOpenAI(), accounts={account: key})
    created(pump, chat_rows(1), account=account)
    here = pump.settings.model_copy(update={"accounts": {}, "openai_api_key": None})
    elsewhere, pump.job_runner.settings = pump.job_runner.settings, here
    for _ in range(5):
        pump.advance(LIST_SECONDS + 1)
        assert sweep(pump.job_runner) >= 0
    warned = [
        record for record in caplog.records if "not listed" in record.getMessage() and record.levelname != "DEBUG"
    ]
    assert len(warned) == said

    pump.job_runner.settings = elsewhere  # a worker that has it looks at once: its turn was not taken
    sweep(pump.job_runner)
    assert pump.api.count("batch_page") == 1


@pytest.mark.parametrize("index", [-1, 0])
def test_several_sweeps_at_once_publish_once(tmp_path: Path, chat_rows: Rows, index: int) -> None:
    """The first one moves the due time; the next one leaves alone what is under way."""
    pump = Pump(tmp_path, store=Store(Connection(new_redis())))
    job_id = pump.submit(chat_rows(1))
    if index == 0:
        until(pump, lambda: bool(pump.shards(job_id)))
    pump.waiting.clear()
    pump.advance(1_000)
    assert [sweep(pump.job_runner) for _ in range(3)] == [1, 0, 0]
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.SUCCEEDED
