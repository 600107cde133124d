"""Limits of an account, a job's priority, and how shards wait for room at the provider."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr, ValidationError

from batchpipe.client.landing import decide
from batchpipe.client.measures import Meter
from batchpipe.client.moments import Moments
from batchpipe.config.account import Account
from batchpipe.model.admission import Waiting
from batchpipe.model.provider import Batch
from batchpipe.model.records import JobRecord, Problem, State
from batchpipe.model.views import SHOWN, job_view
from batchpipe.model.waits import job_waits_for
from batchpipe.monitoring.prometheus import JobCollector
from batchpipe.pipeline.republish_many import resume_account
from batchpipe.testing import FakeOpenAI, Pump
from batchpipe.testing.things import FakeBatch, polite_answer

Rows = Callable[..., list[dict[str, object]]]


def test_an_account_limits_tokens_by_model_and_versions_of_a_model_share_its_limit() -> None:
    account = Account(enqueued_tokens={"gpt-5-mini": 5_000_000, "gpt-5-2025-08-07": 7}, enqueued_tokens_default=90_000)
    assert account.limits("gpt-5-mini")["tokens"] == 5_000_000
    assert account.limits("gpt-5-mini-2025-08-07")["tokens"] == 5_000_000
    assert account.limits("gpt-5-2025-08-07")["tokens"] == 7
    assert account.limits("gpt-5")["tokens"] == 7
    assert account.limits("gpt-5-nano")["tokens"] == 90_000
    assert account.limits(None)["tokens"] == 90_000


def test_what_the_settings_do_not_say_is_learned_but_for_the_documented_creations_per_hour() -> None:
    assert Account().limits("gpt-5") == {"creations": 2_000}
    assert Account(creations_per_hour=0).limits("gpt-5") == {}
    limits = Account(batches_in_flight=5, uploads_per_minute=60, creations_per_hour=10).limits("gpt-5")
    assert limits == {"batches": 5, "uploads": 60, "creations": 10}


def test_a_limit_that_would_stop_everything_is_refused_with_its_model() -> None:
    with pytest.raises(ValidationError, match="gpt-5: give a number of tokens above 0"):
        Account(enqueued_tokens={"gpt-5": 0})


class LimitedOpenAI(FakeOpenAI):
    """A provider with a queue of so many tokens: a batch for which it has no room fails when it is first looked at.

    Batches run until they are told to finish.
    """

    def __init__(self, limit: int, *, says: bool = True) -> None:
        super().__init__()
        self.limit, self.says = limit, says
        self.most, self.refused = 0, 0
        usage = {"prompt_tokens": 37, "completion_tokens": 3, "total_tokens": 40}
        self.answer = lambda request: {**cast(Any, polite_answer(request)), "usage": usage}

    def create_batch(self, **arguments: Any) -> Batch:
        made = super().create_batch(**arguments)
        if self.tokens > self.limit:
            self.refused += 1
            words = f"Enqueued token limit reached for m in organization o. Limit: {self.limit:,} enqueued tokens."
            message = words if self.says else "Enqueued token limit reached"
            self.fail(made.id, [{"code": "token_limit_exceeded", "message": message}])
        self.most = max(self.most, self.tokens)
        return made

    @property
    def tokens(self) -> int:
        return sum(
            len(self.files[batch.input_file_id].data) // 4 for batch in self.batches.values() if not batch.is_final
        )

    @property
    def running(self) -> list[FakeBatch]:
        return [batch for batch in self.batches.values() if not batch.is_final]


#: Tokens of one row of ``chat_rows`` as batchpipe estimates them; the provider above counts a little less.
ROW = 42


def limited(folder: Path, rows: int, *, says: bool = True, known: bool = True) -> tuple[Pump, LimitedOpenAI]:
    """One row a shard, and room for so many; in the settings, too, if it is ``known``."""
    api = LimitedOpenAI(rows * ROW, says=says)
    return Pump(folder, api=api, max_rows=1, accounts=account(tokens=rows * ROW if known else None)), api


def account(tokens: int | None) -> dict[str, Account]:
    return {"default": Account(api_key=SecretStr("k"), enqueued_tokens_default=tokens)}


def finish(api: LimitedOpenAI, count: int = 1) -> None:
    for batch in api.running[:count]:
        api.finish(batch.id)


def run_to_the_end(pump: Pump, api: LimitedOpenAI, jobs: list[str], *, rounds: int = 100) -> None:
    for _ in range(rounds):
        pump.run_for(60.0)
        if all(pump.job(job).state.ended for job in jobs):
            return
        finish(api, 100)
    raise TimeoutError(f"{[pump.job(job).state for job in jobs]}")


def test_a_shard_without_room_is_not_uploaded_and_waits_without_a_message(tmp_path: Path, chat_rows: Rows) -> None:
    pump, api = limited(tmp_path, 2)
    job = pump.submit(chat_rows(5))
    pump.run_for(60.0)
    assert len(api.running) == len(api.files) == 2
    waiting = pump.store.admission.waiting_of([(job, index) for index in range(5)])
    assert sorted(one.place for one in waiting.values()) == [1, 2, 3]
    assert {(one.of, one.kind) for one in waiting.values()} == {(3, "tokens")}
    open_polls = [delivery for delivery in pump.waiting if delivery.link == "poll"]
    assert len(pump.waiting) == len(open_polls)


def test_freed_room_goes_to_the_first_in_the_queue_in_the_turn_that_frees_it(tmp_path: Path, chat_rows: Rows) -> None:
    pump, api = limited(tmp_path, 2)
    job = pump.submit(chat_rows(3))
    pump.run_for(60.0)
    finish(api)
    pump.advance(600.0)
    pump.run_due()  # no sweep
    assert len(api.batches) == 3
    run_to_the_end(pump, api, [job])
    assert pump.job(job).ok == 3
    assert api.refused == 0
    assert api.count("upload") == api.count("create_batch") == 3


@pytest.mark.parametrize("says", [True, False])
def test_a_limit_is_learned_from_a_refusal_and_nothing_is_refused_any_more(
    says: bool, tmp_path: Path, chat_rows: Rows
) -> None:
    pump, api = limited(tmp_path, 3, says=says, known=False)
    job = pump.submit(chat_rows(12))
    pump.run_for(60.0)
    refused = api.refused
    assert refused
    run_to_the_end(pump, api, [job])
    assert pump.job(job).ok == 12
    assert set(pump.outcomes(job).values()) == {"ok"}
    assert api.refused <= refused + (0 if says else 1)
    assert api.count("upload") == 12, "a refused shard is not uploaded again"
    room = next(room for room in pump.store.admission.rooms("default") if room.kind == "tokens")
    assert room.held == 0
    assert room.learned is not None


def test_a_shard_larger_than_the_learned_limit_is_cut_again_and_no_row_is_lost(tmp_path: Path, chat_rows: Rows) -> None:
    api = LimitedOpenAI(10 * ROW)
    pump = Pump(tmp_path, api=api, max_rows=20)
    job = pump.submit(chat_rows(20))
    run_to_the_end(pump, api, [job])
    found = pump.job(job)
    assert (found.ok, found.round) == (20, 2)
    assert api.refused == 1
    shards = pump.shards(job)
    assert len(shards) >= 5
    assert all(api.billed[f"r{number}"] == 1 for number in range(20))


def test_rows_that_can_never_fit_fail_with_the_words_of_the_provider_after_a_few_tries(
    tmp_path: Path, chat_rows: Rows
) -> None:
    api = LimitedOpenAI(10 * ROW)
    pump = Pump(tmp_path, api=api, max_rows=20)
    job = pump.submit(chat_rows(20), attempts=1)
    run_to_the_end(pump, api, [job])
    (shard,) = pump.shards(job)
    assert (pump.job(job).failed, api.refused) == (20, 5)
    assert shard.error is not None
    assert "Limit: 420 enqueued tokens" in shard.error.message
    assert f"with smaller ones: batchpipe retry {job}" in shard.error.message


def test_prepare_cuts_shards_below_a_known_limit(tmp_path: Path, chat_rows: Rows) -> None:
    api = LimitedOpenAI(800)
    pump = Pump(tmp_path, api=api, max_rows=1000, accounts=account(800))
    job = pump.submit(chat_rows(40))
    pump.run_for(60.0)
    assert len(pump.shards(job)) >= 8
    assert all(shard.needs["tokens"] <= 200 for shard in pump.shards(job) if shard.needs)
    run_to_the_end(pump, api, [job])
    assert pump.job(job).ok == 40


def test_a_job_of_higher_priority_goes_first_and_a_small_job_is_not_starved(tmp_path: Path, chat_rows: Rows) -> None:
    pump, api = limited(tmp_path, 1)
    large = pump.submit(chat_rows(6))
    pump.run_for(60.0)
    small = pump.submit(chat_rows(1, start=100))
    urgent = pump.submit(chat_rows(2, start=200), priority=5)
    order = []
    for _ in range(12):
        pump.run_for(60.0)
        order += [batch.metadata["batchpipe_job"] for batch in api.running]
        finish(api)
    assert order[:3] == [large, urgent, urgent]
    assert small in order[3:6]
    run_to_the_end(pump, api, [large, small, urgent])


def test_a_cancelled_job_leaves_the_queue_and_gives_back_its_room(tmp_path: Path, chat_rows: Rows) -> None:
    pump, api = limited(tmp_path, 1)
    first, second = pump.submit(chat_rows(3)), pump.submit(chat_rows(1, start=50))
    pump.run_for(60.0)
    pump.cancel(first)
    pump.run_for(120.0)
    for batch in api.running:
        if batch.status == "cancelling":
            api.finish(batch.id, "cancelled", after=0)
    run_to_the_end(pump, api, [first, second])
    assert pump.job(second).ok == 1
    assert all(room.held == 0 for room in pump.store.admission.rooms("default") if room.kind in ("tokens", "batches"))


def test_a_shard_of_an_older_version_that_holds_nothing_asks_before_its_call_and_is_not_uploaded_again(
    tmp_path: Path, chat_rows: Rows
) -> None:
    pump, api = limited(tmp_path, 1)
    job = pump.submit(chat_rows(2))
    pump.step()  # prepare
    connection = pump.store.connection
    for shard, row in zip(pump.shards(job), chat_rows(2), strict=True):  # as an older worker uploads
        changes = {"stage": "uploaded", "file_id": api._add("f", orjson.dumps(row), "batch"), "uploads": "1"}
        for name, value in changes.items():
            connection.client.hset(f"{connection.prefix}shard:{job}:{shard.index}", name, value)
    pump.run_for(120.0)
    assert len(api.running) == 1
    assert api.count("upload") == 0


def test_status_and_list_say_what_is_waited_for_and_at_which_place(tmp_path: Path, chat_rows: Rows) -> None:
    pump, _ = limited(tmp_path, 2)
    job = pump.submit(chat_rows(5))
    pump.run_for(60.0)
    moments, record = Moments(pump.store, pump.settings), pump.job(job)
    view = job_view(record, pump.store.shards.of_job(record, fields=SHOWN), moments.of(record))
    waiting = [shard["waits_for"] for shard in view["shards"] if shard["waits_for"]]
    assert sorted((one["place"], one["of"], one["code"]) for one in waiting) == [(n, 3, "tokens") for n in (1, 2, 3)]
    expected = {
        "code": "tokens",
        "message": "3 shards wait for room in the provider's queue of tokens for its model",
        "place": 1,
        "of": 3,
    }
    assert view["waits_for"] == expected
    moments.prepare([record])
    assert job_view(record, moment=moments.of(record))["waits_for"] == expected


def test_one_shard_waits_and_two_wait() -> None:
    job = JobRecord(id="job_1", stage=State.RUNNING, shards=2)
    said = [job_waits_for(job, room=(count, Waiting(1, 2, "tokens"))) for count in (1, 2)]
    assert [one["message"].split(" for ")[0] for one in said if one] == ["1 shard waits", "2 shards wait"]


def test_metrics_show_what_is_held_what_waits_and_the_limits(tmp_path: Path, chat_rows: Rows) -> None:
    pump, _ = limited(tmp_path, 2)
    pump.submit(chat_rows(5))
    pump.run_for(60.0)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(JobCollector(Meter(lambda: pump.store).read))
    text = generate_latest(registry).decode()
    assert 'batchpipe_shards_waiting_for_room{account="default",resource="tokens"} 3.0' in text
    assert 'batchpipe_room_held{account="default",resource="batches"} 2.0' in text
    assert f'batchpipe_room_limit{{account="default",resource="tokens"}} {2 * ROW}.0' in text


def test_the_end_of_a_pause_gives_room_to_those_who_wait(tmp_path: Path, chat_rows: Rows) -> None:
    pump, api = limited(tmp_path, 2)
    job = pump.submit(chat_rows(5))
    pump.run_for(60.0)
    pump.store.accounts.pause("default", 3_600.0, Problem(code="http_401", message="no"))
    finish(api, 2)
    pump.run_for(60.0)
    assert len(api.batches) == 2
    resume_account(pump.job_runner, "default")
    pump.run_for(700.0)
    assert len(api.batches) == 4
    run_to_the_end(pump, api, [job])


def test_a_job_that_is_held_sends_nothing_and_goes_on_when_a_person_decides(tmp_path: Path, chat_rows: Rows) -> None:
    pump, api = limited(tmp_path, 1)
    job = pump.submit(chat_rows(4))
    pump.run_for(60.0)
    api.finish(api.running[0].id, "cancelled", after=0)
    pump.run_for(1_300.0)
    assert len(api.batches) == 1
    assert pump.job(job).hold is not None
    assert decide(pump.job_runner, job, "resend")
    run_to_the_end(pump, api, [job])
    assert pump.job(job).ok == 4
