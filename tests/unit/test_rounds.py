"""Further rounds: what may be sent again is, while the attempts last; every row ends once, in its place."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchpipe.model.answers import read_answer
from batchpipe.model.outcomes import FAILED, FAILED_FOR_NOW, OK, mark_of, names_quota
from batchpipe.model.records import BatchError, JobRecord, State, Status
from batchpipe.storage import Folder
from batchpipe.store import Connection, Store
from batchpipe.testing import FakeOpenAI, Pump, Vanished
from batchpipe.testing.things import Answer, FakeBatch, polite_answer
from tests.redis_server import new_redis
from tests.size import scaled, thinned

Rows = Callable[..., list[dict[str, object]]]


class Script(FakeOpenAI):
    """Answers each row by its fates, one per round: ok, or an ``Answer``; after the last one it is ok."""

    def __init__(self, fates: Mapping[str, list[Answer]] | None = None) -> None:
        super().__init__(autofinish=True)
        self.fates = {name: list(answers) for name, answers in (fates or {}).items()}
        self.sent: Counter[str] = Counter()
        self.answer = self._next
        self.refuse: Callable[[FakeBatch], list[BatchError]] = lambda batch: []

    def _next(self, request: Mapping[str, Any]) -> Answer:
        name = request["custom_id"]
        self.sent[name] += 1
        fates = self.fates.get(name, [])
        return fates[self.sent[name] - 1] if self.sent[name] <= len(fates) else polite_answer(request)

    def _move_on(self, batch: FakeBatch) -> None:
        if batch.status == "validating" and (errors := self.refuse(batch)):
            self.fail(batch.id, errors)
        else:
            super()._move_on(batch)

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch, oldest first."""
        return [len(batch.requests) for batch in self.batches.values()]


def pump_of(folder: Path, api: Script, **settings: Any) -> Pump:
    return Pump(folder, api=api, **{"max_rows": 4, **settings})


def run(folder: Path, api: Script, rows: list[dict[str, object]], **fields: Any) -> tuple[Pump, JobRecord]:
    pump = pump_of(folder, api)
    job_id = pump.submit(rows, **fields)
    pump.run_until_idle()
    return pump, pump.job(job_id)


def lines(pump: Pump, job: JobRecord, name: str) -> list[dict[str, Any]]:
    with Folder(job.output).reader(name) as file:
        return [orjson.loads(line) for line in file]


@pytest.mark.parametrize(
    "answer", [500, 503, 429, 408, 409, 0, "batch_expired", "batch_cancelled", "request_timeout", None]
)
def test_a_row_that_failed_for_a_passing_reason_is_sent_again(tmp_path: Path, chat_rows: Rows, answer: Answer) -> None:
    """Alone, in a batch of its own, and its answer comes at its place in the input."""
    api = Script({"r1": [answer]})
    pump, job = run(tmp_path, api, chat_rows(4))
    assert (job.stage, job.ok, job.round, job.total) == (State.SUCCEEDED, 4, 2, 4)
    assert api.sizes == [4, 1]
    assert [row["custom_id"] for row in lines(pump, job, "output.jsonl")] == ["r0", "r1", "r2", "r3"]
    assert api.billed == Counter(f"r{number}" for number in range(4))
    assert [(shard.index, shard.round) for shard in pump.shards(job.id)] == [(0, 1), (1, 2)]


@pytest.mark.parametrize("answer", [400, 401, 403, 404, 422, "content_policy"])
def test_a_row_that_was_refused_is_not_sent_again(tmp_path: Path, chat_rows: Rows, answer: Answer) -> None:
    """It would be refused again."""
    api = Script({"r1": [answer]})
    _, job = run(tmp_path, api, chat_rows(3))
    assert (job.stage, job.ok, job.failed, job.round) == (State.PARTIAL, 2, 1, 1)
    assert api.sizes == [3]


def test_the_attempts_bound_the_rounds_and_the_last_answer_is_told(tmp_path: Path, chat_rows: Rows) -> None:
    """With the number of attempts that were made."""
    api = Script({"r0": [500, 503, 429, 500], "r2": ["batch_expired", 400]})
    pump, job = run(tmp_path, api, chat_rows(4), attempts=3)
    assert (job.stage, job.ok, job.failed, job.missing, job.round) == (State.PARTIAL, 2, 2, 0, 3)
    errors = lines(pump, job, "errors.jsonl")
    found = [(row["custom_id"], row["attempts"], row["response"]["status_code"]) for row in errors]
    assert found == [("r0", 3, 429), ("r2", 2, 400)]
    assert api.sizes == [4, 2, 1]


def test_one_attempt_means_no_further_round(tmp_path: Path, chat_rows: Rows) -> None:
    """As told by ``--attempts 1``."""
    api = Script({"r0": [500]})
    _, job = run(tmp_path, api, chat_rows(2), attempts=1)
    assert (job.stage, job.ok, job.failed, api.sizes) == (State.PARTIAL, 1, 1, [2])


def test_rows_of_a_batch_that_was_refused_for_others_are_sent_again_once(tmp_path: Path, chat_rows: Rows) -> None:
    """The named row fails with the provider's words; if the rest is refused again, that is final."""
    api = Script()
    api.refuse = lambda batch: [BatchError(code="bad", message="no such model", line=1)]
    pump, job = run(tmp_path, api, chat_rows(4), attempts=9)
    assert (job.stage, job.failed, job.round, api.sizes) == (State.FAILED, 4, 2, [4, 3])
    errors = [(row["custom_id"], row["error"]["code"], row["attempts"]) for row in lines(pump, job, "errors.jsonl")]
    assert errors == [("r0", "bad", 1), ("r1", "bad", 2), ("r2", "batch_refused", 2), ("r3", "batch_refused", 2)]


def test_a_job_whose_refused_rows_were_ok_the_second_time_has_only_the_named_one_failed(
    tmp_path: Path, chat_rows: Rows
) -> None:
    """And the job's error is what the provider said of it."""
    api = Script()
    api.refuse = lambda batch: (
        [BatchError(code="bad", message="no such model", line=2)] if len(api.batches) == 1 else []
    )
    pump, job = run(tmp_path, api, chat_rows(4))
    assert (job.stage, job.ok, job.failed) == (State.PARTIAL, 3, 1)
    assert job.error is not None
    assert job.error.code == "bad"
    assert pump.outcomes(job.id)["r1"] == "failed"


def test_rows_refused_with_others_stay_apart_from_rows_that_were_not(tmp_path: Path, chat_rows: Rows) -> None:
    """So that each is refused with others at most once, whatever else is sent again with it."""
    api = Script({"r5": [500]})
    api.refuse = lambda batch: (
        [BatchError(code="bad", message="no", line=1)] if batch.requests[0]["custom_id"] == "r0" else []
    )
    pump, job = run(tmp_path, api, chat_rows(8))
    assert (job.stage, job.ok, job.failed) == (State.PARTIAL, 7, 1)
    assert api.sizes == [4, 4, 3, 1]
    assert [shard.refused_once for shard in pump.shards(job.id)] == [False, False, True, False]


def test_what_is_sent_again_is_split_by_model_and_by_the_limits(tmp_path: Path, chat_rows: Rows) -> None:
    """As the first round is."""
    rows = [*chat_rows(6), *chat_rows(3, model="other", start=6)]
    api = Script({f"r{number}": [500] for number in range(9)})
    pump, job = run(tmp_path, api, rows)
    assert (job.stage, job.ok) == (State.SUCCEEDED, 9)
    assert sorted(api.sizes) == [2, 2, 3, 3, 4, 4]
    assert [row["custom_id"] for row in lines(pump, job, "output.jsonl")] == [f"r{n}" for n in range(9)]


def test_a_cancel_ends_the_rounds(tmp_path: Path, chat_rows: Rows) -> None:
    """What the first round has brought stays."""
    api = Script({"r0": [500], "r1": [500]})
    pump = pump_of(tmp_path, api)
    job_id = pump.submit(chat_rows(4))
    while len(api.batches) < 2:
        if pump.step() is None:
            pump.advance(1)
            pump.sweep()
    pump.cancel(job_id)
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.stage, job.ok, job.failed, job.round) == (State.CANCELLED, 2, 2, 2)
    assert [row["attempts"] for row in lines(pump, job, "errors.jsonl")] == [2, 2]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cancel_while_a_round_is_planned_leads_to_the_end(tmp_path: Path, chat_rows: Rows, when: str) -> None:
    """The script that plans reads the flag: no shard of a further round is recorded."""

    class Cancelling(Connection):
        plans = 0
        act: Callable[[], None] = staticmethod(lambda: None)

        def run(self, name: str, keys: Any, *args: Any) -> list[Any]:
            self.plans += name == "plan"
            if name == "plan" and self.plans == 2 and when == "before":
                self.act()
            answer = super().run(name, keys, *args)
            if name == "plan" and self.plans == 2 and when == "after":
                self.act()
            return answer

    connection, api = Cancelling(new_redis()), Script({"r0": [500]})
    pump = pump_of(tmp_path, api, store=Store(connection))
    job_id = pump.submit(chat_rows(3))
    connection.act = lambda: pump.cancel(job_id)
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.stage, job.ok, job.closed) == (State.CANCELLED, 2, True)
    assert pump.outcomes(job_id)["r0"] == ("failed" if when == "before" else "missing")
    assert len(api.batches) == 1
    assert job.round == len(job.order_files) == (1 if when == "before" else 2)


def test_a_quota_that_is_used_up_pauses_the_account_before_the_next_round(tmp_path: Path, chat_rows: Rows) -> None:
    """Rows are refused with 429 inside a batch that completes: sending them again at once only burns attempts."""
    api = Script()
    quota = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
    line = {"custom_id": "r0", "response": {"status_code": 429, "body": quota}, "error": None}
    answer = read_answer(orjson.dumps(line))
    assert (mark_of(answer), names_quota(answer)) == (FAILED_FOR_NOW, True)

    class Poor(Script):
        def finish(self, batch_id: str, status: str = Status.COMPLETED, **how: Any) -> None:
            super().finish(batch_id, status, **how)
            if len(self.batches) == 1:
                self.files[self.batches[batch_id].error_file_id or ""].data = orjson.dumps(line)

    api = Poor({"r0": [429]})
    pump = pump_of(tmp_path, api, account_pause_seconds=500)
    job_id = pump.submit(chat_rows(2))
    started = pump.at
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert api.batches["batch_0002"].created_at - started > 500
    assert "account_paused" in [event["event"] for event in pump.store.events.read(job_id)]


@pytest.mark.scaled
@pytest.mark.parametrize("seed", range(scaled(20)))
def test_any_mixture_of_fates_over_rounds_adds_up(tmp_path: Path, chat_rows: Rows, seed: int) -> None:
    """Each row ends once with the outcome of its last round, ok rows and others in the order of the input."""
    dice = random.Random(seed)
    fates: list[Answer] = [500, 429, 400, None, "batch_expired", "batch_cancelled", {"ok": True}, "weird"]
    names = [f"r{number}" for number in range(30)]
    api = Script({name: dice.choices(fates, k=dice.randrange(5)) for name in names})
    pump = pump_of(tmp_path, api, max_rows=dice.randrange(1, 12))
    job_id = pump.submit(chat_rows(30), attempts=3)
    pump.run_until_idle()
    job = pump.job(job_id)
    assert job.closed
    expected = {name: _end(api.fates[name]) for name in names}
    assert pump.outcomes(job_id) == {name: outcome for name, (outcome, _) in expected.items()}
    errors = {row["custom_id"]: row["attempts"] for row in lines(pump, job, "errors.jsonl")}
    assert errors == {name: attempts for name, (outcome, attempts) in expected.items() if outcome != "ok"}
    for name in ("output.jsonl", "errors.jsonl"):
        found = [int(row["custom_id"][1:]) for row in lines(pump, job, name)]
        assert found == sorted(found)
    assert max(api.billed.values()) == 1
    assert job.total == (job.ok or 0) + (job.failed or 0) + (job.missing or 0) == 30


def _end(fates: list[Answer], attempts: int = 3) -> tuple[str, int]:
    """What becomes of a row with these fates, and in which round."""
    for attempt in range(1, attempts + 1):
        fate = fates[attempt - 1] if attempt <= len(fates) else {}
        if isinstance(fate, dict):
            return "ok", attempt
        if fate in (400, "weird"):
            return "failed", attempt
        if attempt == attempts:
            return ("missing" if fate is None else "failed"), attempt
    raise AssertionError


class Mortal(Connection):
    """A worker dies before or after its n-th script since the first round was collected."""

    left = 0
    collected = False

    def run(self, name: str, keys: Any, *args: Any) -> list[Any]:
        self._tick()
        answer = super().run(name, keys, *args)
        self.collected = self.collected or (name == "advance" and len(answer) > 3 and int(answer[3]) > 0)
        self._tick()
        return answer

    def _tick(self) -> None:
        if not self.collected:
            return
        self.left -= 1
        if self.left == 0:
            raise Vanished


def _outlived(folder: Path, rows: list[dict[str, object]], fatal: int) -> int:
    """A job whose worker dies once, unless ``fatal`` is 0, ends well. Answers how many moments there were."""
    connection = Mortal(new_redis())
    api = Script({"r0": [500], "r2": ["batch_expired"]})
    pump = pump_of(folder / str(fatal), api, store=Store(connection), max_rows=2)
    job_id = pump.submit(rows)
    connection.left = fatal
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.stage, job.ok, job.closed, job.round) == (State.SUCCEEDED, 3, True, 2), fatal
    assert api.billed == Counter(["r0", "r1", "r2"])
    assert [row["custom_id"] for row in lines(pump, job, "output.jsonl")] == ["r0", "r1", "r2"]
    return fatal - connection.left


@pytest.mark.scaled
def test_a_worker_may_die_at_any_script_of_a_further_round(tmp_path: Path, chat_rows: Rows) -> None:
    """The job ends as if nothing had happened, and no row is paid for twice."""
    moments = _outlived(tmp_path, chat_rows(3), 0)
    assert moments > 20
    for fatal in thinned(range(1, moments + 1), 9):
        assert _outlived(tmp_path, chat_rows(3), fatal) >= fatal, "nobody died"


def test_the_rows_of_a_batch_that_does_not_end_are_sent_again(tmp_path: Path, chat_rows: Rows) -> None:
    """A day and two hours later it is cancelled; the rows that had finished are kept and not paid for twice."""

    class Stuck(Script):
        def _move_on(self, batch: FakeBatch) -> None:
            if batch.id != "batch_0001":
                super()._move_on(batch)
            elif batch.status == "cancelling":
                self.finish(batch.id, Status.CANCELLED, after=1)

    api = Stuck()
    pump = pump_of(tmp_path, api)
    job_id = pump.submit(chat_rows(3))
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.stage, job.ok, job.round, api.sizes) == (State.SUCCEEDED, 3, 2, [3, 2])
    assert api.billed == Counter(["r0", "r1", "r2"])
    assert 93_600 < api.batches["batch_0002"].created_at - job.created_at < 96_000


def test_a_batch_that_never_ends_does_not_keep_its_job_for_ever(tmp_path: Path, chat_rows: Rows) -> None:
    """Its rows may be paid: they are missing, with that reason, and not sent again."""

    class Dead(Script):
        def _move_on(self, batch: FakeBatch) -> None:
            pass

    pump = pump_of(tmp_path, Dead())
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle(300_000)
    job = pump.job(job_id)
    assert (job.stage, job.missing, job.round) == (State.FAILED, 2, 1)
    assert [row["error"]["code"] for row in lines(pump, job, "errors.jsonl")] == ["batch_stuck"] * 2


def test_marks_tell_what_may_be_sent_again() -> None:
    """Odd lines are final unless they say that the row was not run."""

    def mark(**line: Any) -> bytes:
        return mark_of(read_answer(orjson.dumps({"custom_id": "a", **line})))

    assert mark(response={"status_code": 200, "body": {}}, error=None) == OK
    assert mark(response=None, error=None) == FAILED_FOR_NOW
    assert mark() == FAILED_FOR_NOW
    assert mark(response={"status_code": "500"}, error=None) == FAILED_FOR_NOW
    assert mark(response={}, error=None) == FAILED
    assert mark(response=None, error="text") == FAILED
    assert mark(response=None, error={"code": 5}) == FAILED
    assert mark(response={"status_code": 502}, error={"code": "server_error"}) == FAILED_FOR_NOW
    assert mark(response={"status_code": 200}, error={"code": "batch_expired"}) == FAILED_FOR_NOW
