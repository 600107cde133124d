"""Whole jobs on a provider in memory, driven by the Pump: whatever is lost or killed, rows are paid for once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import fakeredis
import orjson
import pytest

from batchpipe.errors import (
    AmbiguousResult,
    Paused,
    PermanentError,
    Refused,
    StoreUnavailable,
    TransientError,
    Unavailable,
)
from batchpipe.model.provider import Batch
from batchpipe.model.records import JOB, JobRecord, Problem, Stage, State, Status
from batchpipe.model.views import job_view
from batchpipe.pipeline.manifest import read_owner, results_place
from batchpipe.pipeline.messages import Message
from batchpipe.pipeline.runner import MAX_LOST, MAX_TRIES
from batchpipe.storage import Folder
from batchpipe.store import Connection, Store
from batchpipe.testing import Delivery, FakeOpenAI, Pump, Vanished
from tests.redis_server import new_redis
from tests.size import thinned

Rows = Callable[..., list[dict[str, object]]]


class Boundaries:
    """Counts the places where a worker may die, and lets it die at one of them."""

    def __init__(self) -> None:
        self.passed = 0
        self.fatal: int | None = None
        self.error: Callable[[], BaseException] = Vanished

    def arm(self, fatal: int, error: Callable[[], BaseException] = Vanished) -> None:
        self.passed, self.fatal, self.error = 0, fatal, error

    def __call__(self) -> None:
        if self.fatal is not None:
            self.passed += 1
            if self.passed == self.fatal:
                raise self.error()


class MortalConnection(Connection):
    """A worker may die before and after each script."""

    boundaries: Boundaries

    def run(self, name: str, keys: Any, *args: Any) -> list[Any]:
        self.boundaries()
        answer = super().run(name, keys, *args)
        self.boundaries()
        return answer


class WatchedOpenAI(FakeOpenAI):
    """A worker may die before and after each call; ``during`` runs in the middle of the first call of a method."""

    def __init__(self) -> None:
        super().__init__(autofinish=True)
        self.boundaries = Boundaries()
        self.during: dict[str, Callable[[], None]] = {}

    def _called(self, method: str, argument: str, effect: Callable[[], Any]) -> Any:
        self.boundaries()
        self.during.pop(method, lambda: None)()
        answer = super()._called(method, argument, effect)
        self.boundaries()
        return answer


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """Two rows a shard."""
    return Pump(tmp_path, api=WatchedOpenAI(), max_rows=2)


def mortal_pump(folder: Path, **settings: Any) -> tuple[Pump, Boundaries]:
    boundaries, api = Boundaries(), WatchedOpenAI()
    connection = MortalConnection(new_redis())
    connection.boundaries = api.boundaries = boundaries
    return Pump(folder, api=api, store=Store(connection), max_rows=2, **settings), boundaries


def go(pump: Pump, turns: int) -> int:
    """Deliver so many messages, moving the clock as needed. Answers how many there were."""
    for done in range(turns):
        if not pump.waiting:
            return done
        pump.advance(max(min(delivery.at for delivery in pump.waiting) - pump.at, 0.0) + 0.001)
        assert pump.step() is not None
    return turns


def once(count: int) -> Counter[str]:
    return Counter(f"r{number}" for number in range(count))


def assert_done(pump: Pump, job_id: str, rows: int) -> None:
    """Every row is ok, was paid for once, and nothing is left to do."""
    job = pump.job(job_id)
    assert (job.stage, job.closed, job.total, job.ok) == (State.SUCCEEDED, True, rows, rows)
    assert pump.outcomes(job_id) == {f"r{number}": "ok" for number in range(rows)}
    assert pump.api.billed == once(rows)
    assert pump.store.connection.client.zcard(f"{pump.store.connection.prefix}due") == 0
    assert pump.waiting == []


# -- the usual course ----------------------------------------------------------------------------------------------


def test_a_job_runs_from_its_input_to_its_output_in_input_order(pump: Pump, chat_rows: Rows) -> None:
    """Several shards, several models; no sweep is needed."""
    rows = [row for number in range(5) for row in chat_rows(1, model=f"m{number % 2}", start=number)]
    job_id = pump.submit(rows)
    pump.run_until_idle(sweeping=False)
    assert_done(pump, job_id, 5)
    lines = (Path(pump.job(job_id).output) / "output.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["custom_id"] for line in lines] == [f"r{number}" for number in range(5)]
    shards = pump.shards(job_id)
    assert sorted((shard.model, shard.rows) for shard in shards) == [("m0", 1), ("m0", 2), ("m1", 2)]
    assert pump.job(job_id).usage == {"input_tokens": 5, "output_tokens": 10, "total_tokens": 15}
    assert [job.stage for job in pump.notified] == [State.SUCCEEDED]


def test_a_job_runs_on_the_redis_in_memory_too(tmp_path: Path, chat_rows: Rows) -> None:
    """What a Pump takes by itself, outside of these tests."""
    pump = Pump(tmp_path, max_rows=2, store=Store(Connection(fakeredis.FakeRedis(decode_responses=True))))
    job_id = pump.submit(chat_rows(3))
    pump.run_until_idle()
    assert_done(pump, job_id, 3)


def test_each_batch_carries_what_recover_needs(pump: Pump, chat_rows: Rows) -> None:
    """Job, shard and key, beside the user's own pairs."""
    job_id = pump.submit(chat_rows(3), metadata={"team": "a"})
    pump.run_until_idle()
    assert [batch.metadata for batch in pump.api.batches.values()] == [
        {
            "team": "a",
            "batchpipe_job": job_id,
            "batchpipe_shard": str(index),
            "batchpipe_key": f"{job_id}:{index}:1",
        }
        for index in range(2)
    ]


def test_rows_that_fail_or_get_no_answer_are_accounted_for(pump: Pump, chat_rows: Rows) -> None:
    """ok + failed + missing is what came in."""
    pump.api.answer = lambda request: {"r1": 400, "r2": None}.get(request["custom_id"], {"text": "fine"})
    job_id = pump.submit(chat_rows(4), attempts=1)
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.stage, job.ok, job.failed, job.missing, job.total) == (State.PARTIAL, 2, 1, 1, 4)
    assert pump.outcomes(job_id) == {"r0": "ok", "r1": "failed", "r2": "missing", "r3": "ok"}


def test_several_jobs_share_the_account(pump: Pump, chat_rows: Rows) -> None:
    """And do not disturb each other."""
    jobs = [pump.submit(chat_rows(3)) for _ in range(3)]
    pump.run_until_idle()
    assert [pump.job(job_id).stage for job_id in jobs] == [State.SUCCEEDED] * 3
    assert pump.api.billed == Counter({f"r{number}": 3 for number in range(3)})


def test_a_batch_that_takes_a_day_is_looked_at_at_a_bearable_pace(pump: Pump, chat_rows: Rows) -> None:
    """Never more than ten minutes apart, and far fewer than a look each few seconds."""
    pump.api.autofinish = False
    job_id = pump.submit(chat_rows(2))
    with pytest.raises(TimeoutError):
        pump.run_until_idle(max_seconds=80_000)
    looks = pump.api.count("retrieve")
    assert 80_000 / 600 * 0.9 <= looks <= 80_000 / 600 + 70  # it begins with some sixty short ones
    assert [message.index for message in pump.published] == [JOB, 0]  # nothing was published again
    pump.api.finish("batch_0001")
    pump.run_until_idle(max_seconds=700)
    assert_done(pump, job_id, 2)


# -- messages are hints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["shards", "job", "all"])
def test_lost_messages_are_repaired_by_the_sweep(pump: Pump, chat_rows: Rows, who: str) -> None:
    """Every first message of a shard, of the job, or of both is lost."""
    seen: set[tuple[int, str]] = set()

    def copies(message: Message) -> int:
        wanted = who == "all" or (message.index == JOB) == (who == "job")
        first = (message.index, message.stage) not in seen
        seen.add((message.index, message.stage))
        return 0 if wanted and first else 1

    pump.copies = copies
    job_id = pump.submit(chat_rows(5))
    pump.run_until_idle(max_seconds=3_600)
    assert_done(pump, job_id, 5)
    assert pump.api.count("create_batch") == 3


def test_messages_that_vanish_on_the_way_are_repaired(pump: Pump, chat_rows: Rows) -> None:
    """The broker loses what waits, again and again."""
    job_id = pump.submit(chat_rows(3))
    for turns in range(12):
        go(pump, turns)
        pump.waiting.clear()
        pump.advance(1_801)
        pump.sweep()
    pump.run_until_idle()
    assert_done(pump, job_id, 3)


@pytest.mark.parametrize("copies", [2, 5])
def test_repeated_messages_create_nothing_twice(pump: Pump, chat_rows: Rows, copies: int) -> None:
    """Celery on Redis delivers more than once."""
    pump.copies = lambda message: copies
    job_id = pump.submit(chat_rows(5))
    pump.run_until_idle()
    assert_done(pump, job_id, 5)
    assert (pump.api.count("upload"), pump.api.count("create_batch")) == (3, 3)
    assert len(pump.notified) == 1


@pytest.mark.parametrize("seed", range(5))
def test_reordered_repeated_and_late_messages_do_no_harm(pump: Pump, chat_rows: Rows, seed: int) -> None:
    """Old messages come back at any time, in any order, while sweeps publish new ones."""
    dice = random.Random(seed)
    job_id = pump.submit(chat_rows(5))
    old: list[Delivery] = []
    for _ in range(120):
        dice.shuffle(pump.waiting)
        if old and dice.random() < 0.5:
            pump.waiting.append(dice.choice(old))
        delivery = pump.step()
        if delivery is None:
            pump.advance(dice.choice([1, 10, 70]))
            pump.sweep()
        else:
            old.append(delivery)
    pump.run_until_idle()
    assert_done(pump, job_id, 5)
    assert pump.api.count("create_batch") == 3


def test_a_broker_that_is_down_costs_only_time(pump: Pump, chat_rows: Rows) -> None:
    """What could not be published is published by the sweep."""
    failures = iter([True] * 3)

    def copies(message: Message) -> int:
        if next(failures, False):
            raise TransientError("the broker is not reachable")
        return 1

    pump.copies = copies
    job_id = pump.submit(chat_rows(3))
    pump.run_until_idle()
    assert_done(pump, job_id, 3)


# -- workers die ---------------------------------------------------------------------------------------------------


def boundaries_of(folder: Path, rows: list[dict[str, object]]) -> int:
    """How many boundaries a job passes that nothing happens to."""
    pump, boundaries = mortal_pump(folder)
    pump.submit(rows)
    boundaries.arm(-1)
    pump.run_until_idle()
    return boundaries.passed


@pytest.mark.scaled
@pytest.mark.parametrize(
    ("error", "rows", "stride"),
    [(Vanished, 2, 1), (Vanished, 3, 5), (lambda: StoreUnavailable("gone"), 2, 1)],
    ids=["worker dies", "worker dies, two shards", "no answer of Redis"],
)
def test_whatever_happens_between_two_calls_each_row_is_paid_for_once(
    tmp_path: Path, chat_rows: Rows, error: Callable[[], BaseException], rows: int, stride: int
) -> None:
    """At each boundary of a job in turn: before and after each script, and each call to the provider."""
    total = boundaries_of(tmp_path / "undisturbed", chat_rows(rows))
    assert total > 40
    for fatal in thinned(range(1, total + 1, stride), 7):
        pump, boundaries = mortal_pump(tmp_path / str(fatal))
        job_id = pump.submit(chat_rows(rows))
        boundaries.arm(fatal, error)
        try:
            pump.run_until_idle(max_seconds=7_200)
            assert_done(pump, job_id, rows)
        except (AssertionError, TimeoutError) as problem:
            pytest.fail(f"boundary {fatal} of {total}: {problem}")


def test_a_worker_that_dies_again_and_again_at_the_same_place_is_outlived(pump: Pump, chat_rows: Rows) -> None:
    """Three times each, at every call to the provider; but what a download has brought need not be fetched again, nor
    what a look has seen be read.
    """
    for method in ("upload", "create_batch", "retrieve", "download"):
        times = 1 if method == "download" else 3
        pump.api.fail_next(method, Vanished(), times=times, processed=method != "create_batch")
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    assert 7 < pump.vanished <= 10
    assert_done(pump, job_id, 2)


def test_a_shard_whose_workers_always_vanish_is_given_up_at_last(pump: Pump, chat_rows: Rows) -> None:
    """The bound is far higher than that of failures, but there is one: nothing loops for ever, and others go on."""
    pump.api.fail_next("upload", Vanished(), times=3 * MAX_LOST)
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    assert MAX_LOST <= pump.api.count("upload") <= MAX_LOST + 2
    assert (pump.job(job_id).stage, pump.outcomes(job_id)) == (State.FAILED, {"r0": "missing", "r1": "missing"})


def test_a_late_holder_writes_nothing(pump: Pump, chat_rows: Rows) -> None:
    """While it is frozen in its upload, another does the work; it thaws and its advance is refused."""
    job_id = pump.submit(chat_rows(2))

    def freeze() -> None:
        pump.advance(61)
        pump.sweep()
        pump.run_until_idle()

    pump.api.during["upload"] = freeze  # type: ignore[attr-defined]
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    assert (pump.api.count("upload"), pump.api.count("create_batch")) == (2, 1)


def test_a_worker_frozen_in_its_create_call_makes_no_second_batch(pump: Pump, chat_rows: Rows) -> None:
    """Another looks twice, finds nothing, and creates; the thawed one's batch is cancelled before a row ran."""
    job_id = pump.submit(chat_rows(2))

    def freeze() -> None:
        pump.advance(61)
        pump.sweep()
        go(pump, 3)

    pump.api.during["create_batch"] = freeze  # type: ignore[attr-defined]
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    live = [batch for batch in pump.api.batches.values() if batch.status == Status.COMPLETED]
    assert len(live) == 1


# -- the paid call -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("echo", [True, False], ids=["metadata told", "no metadata"])
def test_an_unanswered_create_is_adopted_or_repeated(pump: Pump, chat_rows: Rows, processed: bool, echo: bool) -> None:
    """By key, or by the shard's own file."""
    pump.api.echo_metadata = echo
    pump.api.fail_next("create_batch", AmbiguousResult("dropped"), times=2, processed=processed)
    job_id = pump.submit(chat_rows(3))
    pump.run_until_idle()
    assert_done(pump, job_id, 3)
    assert pump.api.count("create_batch") == (2 if processed else 4)


def test_a_batch_that_is_listed_late_is_adopted_at_the_second_look(pump: Pump, chat_rows: Rows) -> None:
    """The grace period is for that."""
    pump.api.hide_from_list(True)
    pump.api.fail_next("create_batch", AmbiguousResult("dropped"), processed=True)
    job_id = pump.submit(chat_rows(2))
    while pump.api.count("batch_page") < 1:
        go(pump, 1)
    pump.api.hide_from_list(False)
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    assert pump.api.count("create_batch") == 1


def test_a_list_that_is_down_holds_the_second_call_back(pump: Pump, chat_rows: Rows) -> None:
    """However long it takes."""
    pump.api.fail_next("create_batch", AmbiguousResult("dropped"), processed=True)
    pump.api.fail_next("batch_page", Unavailable("down"), times=20)
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    assert pump.api.count("create_batch") == 1


def test_a_full_queue_is_waited_for_and_not_asked_in_a_loop(pump: Pump, chat_rows: Rows) -> None:
    """Each new batch has a key of its own; the refused ones ran no row. Nothing loops hot."""

    class FullQueue(WatchedOpenAI):
        left = 6

        def retrieve(self, batch_id: str) -> Batch:
            batch = self.batches[batch_id]
            if self.left and batch.status == "in_progress":
                self.left -= 1
                self.fail(batch_id, [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}])
            return super().retrieve(batch_id)

    api = FullQueue()
    pump = Pump(pump.folder / "full", api=api, max_rows=2)
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    (shard,) = pump.shards(job_id)
    assert (shard.try_, shard.spent) == (7, [f"batch_{number:04d}" for number in range(1, 7)])
    at = [batch.created_at for batch in api.batches.values()]
    gaps = [after - before for before, after in pairwise(at)]
    assert min(gaps) > 5, gaps


def test_an_expired_batch_keeps_the_rows_that_were_paid_for(pump: Pump, chat_rows: Rows) -> None:
    """They are downloaded and never sent again."""
    pump.api.autofinish = False
    job_id = pump.submit(chat_rows(2), attempts=1)
    go(pump, 6)
    pump.api.expire("batch_0001", after=1)
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.PARTIAL
    assert pump.outcomes(job_id)["r0"] == "ok"
    assert pump.api.billed == once(1)


# -- trouble on the way --------------------------------------------------------------------------------------------


def test_a_paused_account_is_not_called_until_it_is_resumed(pump: Pump, chat_rows: Rows) -> None:
    """No attempt is burnt; the pause says why."""
    pump.api.fail_next("create_batch", Paused("no money left", code="insufficient_quota", after=50_000))
    job_id = pump.submit(chat_rows(5))
    with pytest.raises(TimeoutError):
        pump.run_until_idle(max_seconds=20_000)
    pause = pump.store.accounts.pause_of("default")
    assert pause is not None
    assert (pause.code, pause.message) == ("insufficient_quota", "no money left")
    assert pump.api.count("create_batch") == 1
    assert all(shard.tries == 0 for shard in pump.shards(job_id))
    trouble = pump.shards(job_id)[0].trouble
    assert trouble is not None
    assert trouble.message == "no money left"
    pump.store.accounts.resume("default")
    pump.run_until_idle(max_seconds=3_600)
    assert_done(pump, job_id, 5)
    assert all(shard.trouble is None for shard in pump.shards(job_id))


def test_a_pause_ends_by_itself(pump: Pump, chat_rows: Rows) -> None:
    """Somebody has paid the bill meanwhile."""
    pump.api.fail_next("upload", Paused("401", code="invalid_api_key"))
    job_id = pump.submit(chat_rows(3))
    pump.run_until_idle(max_seconds=3_600)
    assert_done(pump, job_id, 3)


def test_a_provider_that_says_at_once_is_not_asked_in_a_hot_loop(pump: Pump, chat_rows: Rows) -> None:
    """`Retry-After: 0` from a server that is down would be hundreds of calls a minute."""
    pump.api.fail_next("upload", Unavailable("HTTP 503", after=0.0, status=503), times=6)
    job_id = pump.submit(chat_rows(1))
    pump.run_until_idle(max_seconds=3_600)
    assert_done(pump, job_id, 1)
    assert pump.at - (pump.shards(job_id)[0].planned_at or 0) > 30


def test_invalid_input_fails_the_job_with_its_line_and_sends_nothing(pump: Pump, chat_rows: Rows) -> None:
    """Before anything is paid."""
    rows = chat_rows(3)
    rows[1]["custom_id"] = ""
    job_id = pump.submit(rows)
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.stage, job.closed, pump.api.calls) == (State.FAILED, True, [])
    assert job.error is not None
    assert "line 2" in job.error.message
    assert len(pump.notified) == 1


@pytest.mark.parametrize("method", ["upload", "create_batch"])
def test_a_refused_shard_is_given_up_with_its_rows_accounted_for(pump: Pump, chat_rows: Rows, method: str) -> None:
    """The others go on."""
    pump.api.fail_next(method, Refused("too large", code="file_too_large", status=413))
    job_id = pump.submit(chat_rows(4))
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.stage, job.ok, job.total) == (State.PARTIAL, 2, 4)
    assert job.error is not None
    assert (job.error.code, job.error.message.startswith("too large")) == ("file_too_large", True)
    assert sorted(pump.outcomes(job_id).values()) == ["failed", "failed", "ok", "ok"]
    assert sum(pump.api.billed.values()) == 2


@pytest.mark.parametrize("method", ["upload", "create_batch", "retrieve", "download"])
def test_a_provider_that_is_down_for_hours_costs_only_time(pump: Pump, chat_rows: Rows, method: str) -> None:
    """Foreseen trouble is never counted, and each pause is bounded."""
    pump.api.fail_next(method, Unavailable("HTTP 503", status=429), times=100)
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    assert_done(pump, job_id, 2)


def test_a_shard_without_a_batch_is_given_up_after_some_failures(pump: Pump, chat_rows: Rows) -> None:
    """A bug of ours must not loop for ever; nothing was paid."""
    pump.api.fail_next("upload", RuntimeError("bug"), times=1_000)
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    assert pump.api.count("upload") == MAX_TRIES
    assert (pump.job(job_id).stage, pump.outcomes(job_id)) == (State.FAILED, {"r0": "missing", "r1": "missing"})


@pytest.mark.parametrize("method", ["retrieve", "download"])
def test_a_shard_with_a_batch_is_never_given_up(pump: Pump, chat_rows: Rows, method: str) -> None:
    """It tries on, ever more slowly, and says what is wrong; its rows are paid for."""
    pump.api.fail_next(method, RuntimeError("bug"), times=10 * MAX_TRIES)
    job_id = pump.submit(chat_rows(2))
    with pytest.raises(TimeoutError):
        pump.run_until_idle(max_seconds=600 * 5 * MAX_TRIES)
    (shard,) = pump.shards(job_id)
    assert shard.stage != Stage.COLLECTED
    assert shard.trouble is not None
    assert shard.trouble.message == "bug"
    assert pump.api.count(method) <= 6 * MAX_TRIES
    pump.run_until_idle()
    assert_done(pump, job_id, 2)


def test_an_open_intent_is_never_given_up_either(pump: Pump, chat_rows: Rows) -> None:
    """A batch may stand behind it."""
    pump.api.fail_next("create_batch", AmbiguousResult("dropped"), processed=True)
    pump.api.fail_next("batch_page", RuntimeError("bug"), times=4 * MAX_TRIES)
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    assert_done(pump, job_id, 2)


def test_files_that_are_gone_make_their_rows_missing_for_good(pump: Pump, chat_rows: Rows) -> None:
    """They may have been paid, so they are not sent again; the reason is told."""
    pump.api.autofinish = False
    job_id = pump.submit(chat_rows(2))
    go(pump, 6)
    pump.api.finish("batch_0001")
    output = pump.api.batches["batch_0001"].output_file_id
    assert output is not None
    pump.api.delete_file(output)
    pump.run_until_idle()
    assert (pump.job(job_id).stage, pump.job(job_id).missing) == (State.FAILED, 2)
    assert pump.api.count("create_batch") == 1


def test_a_file_that_the_provider_forgets_is_uploaded_again(pump: Pump, chat_rows: Rows) -> None:
    """Under a new try, after a few looks."""
    job_id = pump.submit(chat_rows(2))
    go(pump, 2)
    (file_id,) = pump.api.files
    pump.api.delete_file(file_id)
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    assert (pump.shards(job_id)[0].try_, pump.api.count("upload")) == (2, 2)


def test_a_user_is_told_at_least_once_also_if_it_fails_first(tmp_path: Path, chat_rows: Rows) -> None:
    """The end that was fixed stays; only the telling is repeated."""
    failures = iter([TransientError("broker down"), RuntimeError("bug in a signal")])

    def notify(job: JobRecord) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    pump = Pump(tmp_path, max_rows=2, notify=notify)
    job_id = pump.submit(chat_rows(3))
    pump.run_until_idle()
    assert_done(pump, job_id, 3)
    assert [(job.id, job.stage) for job in pump.notified] == [(job_id, State.SUCCEEDED)] * 3
    assert len({job.ended_at for job in pump.notified}) == 1


# -- cancelling ----------------------------------------------------------------------------------------------------


def cancel_and_settle(pump: Pump, job_id: str) -> None:
    """After the cancel no call is made that costs, and everything comes to its end."""
    calls = pump.api.count("create_batch")
    pump.cancel(job_id)
    pump.run_until_idle(max_seconds=7_200)
    assert pump.api.count("create_batch") == calls
    assert pump.job(job_id).closed
    assert all(batch.is_final for batch in pump.api.batches.values())
    assert pump.store.connection.client.zcard(f"{pump.store.connection.prefix}due") == 0


def turns_of(folder: Path, rows: list[dict[str, object]]) -> int:
    pump = Pump(folder, max_rows=2)
    pump.submit(rows)
    return go(pump, 10_000)


def test_a_job_can_be_cancelled_between_any_two_turns(tmp_path: Path, chat_rows: Rows) -> None:
    """It ends cancelled with every planned row accounted for and finished ones kept; an ended job stays as it was."""
    rows = chat_rows(3)
    total = turns_of(tmp_path / "undisturbed", rows)
    for turns in range(total + 1):
        pump = Pump(tmp_path / str(turns), max_rows=2)
        job_id = pump.submit(rows)
        go(pump, turns)
        ended = pump.job(job_id).state.ended
        planned = bool(pump.job(job_id).shards)
        try:
            cancel_and_settle(pump, job_id)
            job = pump.job(job_id)
            assert job.stage == (State.SUCCEEDED if ended else State.CANCELLED)
            outcomes = pump.outcomes(job_id)
            assert len(outcomes) == job.total == (3 if planned else 0)
            assert {name for name, outcome in outcomes.items() if outcome == "ok"} == set(pump.api.billed)
            assert set(pump.api.billed.values()) <= {1}
        except (AssertionError, TimeoutError) as problem:
            pytest.fail(f"cancelled after {turns} of {total} turns: {problem}")


@pytest.mark.parametrize("method", ["upload", "create_batch", "retrieve", "download"])
def test_a_job_can_be_cancelled_in_the_middle_of_a_turn(pump: Pump, chat_rows: Rows, method: str) -> None:
    """The holder learns of it from its next write and publishes the new chain itself."""
    job_id = pump.submit(chat_rows(2))
    pump.api.during[method] = lambda: pump.cancel(job_id)  # type: ignore[attr-defined]
    pump.run_until_idle(max_seconds=3_600, sweeping=False)
    job = pump.job(job_id)
    assert (job.stage, job.closed, len(pump.outcomes(job_id))) == (State.CANCELLED, True, 2)
    assert all(batch.is_final for batch in pump.api.batches.values())


def test_cancelling_twice_is_no_error(pump: Pump, chat_rows: Rows) -> None:
    """Nor does it disturb the winding down."""
    job_id = pump.submit(chat_rows(3))
    go(pump, 8)
    pump.cancel(job_id)
    go(pump, 2)
    cancel_and_settle(pump, job_id)
    assert pump.job(job_id).stage == State.CANCELLED


def test_a_cancel_whose_messages_are_all_lost_is_found_by_the_sweep(pump: Pump, chat_rows: Rows) -> None:
    """The flag is the truth."""
    job_id = pump.submit(chat_rows(3))
    go(pump, 8)
    pump.copies = lambda message: 0
    pump.cancel(job_id)
    pump.waiting.clear()
    pump.copies = lambda message: 1
    cancel_and_settle(pump, job_id)
    assert pump.job(job_id).stage == State.CANCELLED


def test_cancelling_keeps_the_rows_that_have_finished(pump: Pump, chat_rows: Rows) -> None:
    """They are paid for."""
    pump.api.autofinish = False
    job_id = pump.submit(chat_rows(4))
    go(pump, 10)
    pump.api.finish("batch_0001")
    pump.api.autofinish = True
    cancel_and_settle(pump, job_id)
    assert pump.job(job_id).ok == 2
    assert pump.api.billed == once(2)


@pytest.mark.parametrize("processed", [True, False])
def test_a_cancelled_job_looks_for_the_batch_of_an_unanswered_call(
    pump: Pump, chat_rows: Rows, processed: bool
) -> None:
    """And cancels it; it never calls again."""
    pump.api.fail_next("create_batch", AmbiguousResult("dropped"), processed=processed)
    job_id = pump.submit(chat_rows(2))
    while not pump.api.count("create_batch"):
        go(pump, 1)
    cancel_and_settle(pump, job_id)
    assert pump.job(job_id).stage == State.CANCELLED
    assert len(pump.api.batches) == int(processed)


def test_a_cancel_does_not_wait_for_an_account_to_have_money_again(pump: Pump, chat_rows: Rows) -> None:
    """What runs is billed; telling the provider to stop costs nothing. Nor do reading and fetching."""
    pump.api.autofinish = False
    job_id = pump.submit(chat_rows(2))
    while not pump.api.batches or pump.shards(job_id)[0].stage != Stage.CREATED:
        assert go(pump, 1)
    pump.store.accounts.pause("default", 3_000, Problem(code="insufficient_quota", message="no money"))
    pump.cancel(job_id)
    started = pump.at
    while pump.api.batches["batch_0001"].status != "cancelling":
        assert go(pump, 1)
    assert pump.at - started < 20


def test_a_disk_that_stays_full_is_not_tried_in_a_hot_loop(tmp_path: Path, chat_rows: Rows) -> None:
    """Each merge may read and write gigabytes before it fails."""
    failures: list[float] = []

    def notify(job: JobRecord) -> None:
        failures.append(world.at)
        if len(failures) < 20:
            raise TransientError("disk full", code="storage_trouble")

    world = Pump(tmp_path, notify=notify)
    job_id = world.submit(chat_rows(1))
    world.run_until_idle()
    assert world.job(job_id).closed
    assert failures[-1] - failures[0] > 600


def test_a_cancelled_job_on_a_paused_account_ends_without_the_provider(pump: Pump, chat_rows: Rows) -> None:
    """What has no batch needs nobody."""
    pump.api.fail_next("upload", Paused("401", after=80_000))
    job_id = pump.submit(chat_rows(3))
    go(pump, 4)
    cancel_and_settle(pump, job_id)
    assert (pump.job(job_id).stage, len(pump.outcomes(job_id))) == (State.CANCELLED, 3)


def test_results_of_an_earlier_job_in_the_same_output_are_kept(pump: Pump, chat_rows: Rows, tmp_path: Path) -> None:
    """They are paid for: moved aside, still found by their job, and never taken for another's."""
    place = str(tmp_path / "shared")
    old: list[str] = []
    new: list[str] = []
    for found, rows in ((old, 3), (new, 2)):
        job_id = pump.submit(chat_rows(rows), output=place)
        pump.run_until_idle()
        found.append(job_id)
    for job_id, rows in ((old[0], 3), (new[0], 2)):
        folder = results_place(pump.job(job_id))
        assert job_view(pump.job(job_id))["output_file"] == folder.path("output.jsonl")
        with folder.reader("output.jsonl") as file:
            assert len(file.readlines()) == rows
    assert results_place(pump.job(new[0])).url == place
    assert results_place(pump.job(old[0])).url == f"{place}/.batchpipe/{old[0]}"
    Folder(place).remove(f".batchpipe/{old[0]}")
    with pytest.raises(PermanentError, match="no longer in"):
        results_place(pump.job(old[0]))


def test_a_refused_job_leaves_earlier_results_as_they_are(pump: Pump, chat_rows: Rows, tmp_path: Path) -> None:
    """It has none of its own, so nothing has to make room; job.json is about what lies beside it."""
    place = str(tmp_path / "shared")
    job_id = pump.submit(chat_rows(2), output=place)
    pump.run_until_idle()
    refused = pump.submit(b"no json\n", output=place)
    pump.run_until_idle()
    assert results_place(pump.job(job_id)).url == place
    owner = read_owner(Folder(place))
    assert owner is not None
    assert owner.id == job_id
    with pytest.raises(PermanentError, match="no result files"):
        results_place(pump.job(refused))
