"""A job says how far it is and why rows are not ok, from its first batch to its end: the truth at every moment."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchpipe.model.progress import answered_in
from batchpipe.model.reasons import reasons_view
from batchpipe.model.records import JobRecord, State
from batchpipe.model.views import SHOWN, Moment, Sums, job_view
from batchpipe.pipeline.reason_samples import read_samples
from batchpipe.testing import Pump, Vanished
from batchpipe.testing.things import Answer
from tests.size import scaled
from tests.unit.test_rounds import Script, pump_of

#: The reason of a row that the fake provider refuses with this status.
BAD = "{} invalid_request_error"

Rows = Callable[..., list[dict[str, object]]]


def go_on(pump: Pump, job_id: str, most: int = 2_000) -> Iterator[JobRecord]:
    """The job after each turn, until it is closed."""
    for _ in range(most):
        if not pump.step():
            pump.advance(30)
            pump.sweep()
        job = pump.job(job_id)
        yield job
        if job.closed:
            return
    raise AssertionError("it does not end")


def check_sums(pump: Pump, job_id: str) -> None:
    """What is shown without reading shards is what they add up to."""
    job, shards = pump.job(job_id), pump.shards(job_id)
    assert job.answered == answered_in(shards) == sum(shard.answered or 0 for shard in shards)
    assert 0 <= job.answered <= (job.total or 0)


def test_rows_that_are_sent_again_are_answered_when_they_come_back(tmp_path: Path, chat_rows: Rows) -> None:
    api = Script({"r0": [500, 500], "r1": [500], "r2": [400]})
    pump = pump_of(tmp_path, api)
    job_id = pump.submit(chat_rows(6))
    seen: list[tuple[int, dict[str, int]]] = []
    for job in go_on(pump, job_id):
        if job.state is State.RUNNING:
            check_sums(pump, job_id)
        if not seen or seen[-1][0] != job.answered:
            seen.append((job.answered, job.reasons))
    counted = [count for count, _ in seen]
    assert counted[-1] == 6
    assert 4 in counted  # of four rows, two failed for now
    assert any(reasons == {f"~{BAD.format(500)}": 2, BAD.format(400): 1} for _, reasons in seen)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.failed, job.reasons) == (State.PARTIAL, 5, 1, {BAD.format(400): 1})
    view = job_view(job)
    assert view["progress"] == {"answered": 6, "total": 6, "percent": 100.0, "rows_per_second": None}
    assert view["reasons"] == [{"code": "invalid_request_error", "status": 400, "count": 1, "sample": None}]


def test_the_reasons_at_the_end_are_those_of_the_error_file(tmp_path: Path, chat_rows: Rows) -> None:
    """Each row once, by the answer of its last round; the rows that are missing, too."""
    api = Script({"r0": [500] * 3, "r1": [429] * 3, "r2": ["batch_expired"] * 3, "r3": [None] * 3, "r4": [500, 400]})
    pump = pump_of(tmp_path, api)
    job_id = pump.submit(chat_rows(6), attempts=3)
    pump.run_until_idle()
    job = pump.job(job_id)
    assert sum(job.reasons.values()) == (job.failed or 0) + (job.missing or 0) == 5
    assert job.reasons == {
        BAD.format(500): 1,
        BAD.format(429): 1,
        "- batch_expired": 1,
        "- no_answer": 1,
        BAD.format(400): 1,
    }
    samples = read_samples(job)
    assert set(samples) <= set(job.reasons)
    assert {one["sample"] for one in reasons_view(job.reasons, samples)} == {*samples.values(), None}


def test_a_sample_is_read_from_the_file_and_is_in_no_record(tmp_path: Path, chat_rows: Rows) -> None:
    """A message may quote its row, and Redis must not hold it."""
    secret = "you asked: how do I hide a body of water"
    api = Script()
    api.answer = lambda request: {"error": {"code": "content_policy", "message": secret}}
    pump = pump_of(tmp_path, api)
    job_id = pump.submit(chat_rows(3))
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.reasons, job.answered) == ({"- content_policy": 3}, 3)
    assert read_samples(job) == {"- content_policy": f"HTTP 200, and its body is an error: {secret}"}
    assert secret in (Path(job.output) / "job.json").read_text()
    client = pump.store.connection.client
    for key in client.keys("*"):
        assert secret not in str(client.hgetall(key) if client.type(key) == "hash" else client.dump(key))
    (Path(job.output) / "errors.jsonl").unlink()
    assert read_samples(job) == {}


def test_a_file_of_errors_of_any_size_costs_one_read_of_a_megabyte(tmp_path: Path, chat_rows: Rows) -> None:
    api = Script({"r0": [400], "r1": [403]})
    pump = pump_of(tmp_path, api)
    job = pump.job(pump.submit(chat_rows(2)))
    pump.run_until_idle()
    job = pump.job(job.id)
    path = Path(job.output) / "errors.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b'{"custom_id":"' + b"x" * 2_000_000 + b'"}\n' + whole)
    assert read_samples(job) == {}
    path.write_bytes(b"\xff\xfe\n[]\n{}\n" + whole)
    assert set(read_samples(job)) <= set(job.reasons)


@pytest.mark.scaled
@pytest.mark.parametrize("seed", range(scaled(20)))
def test_the_sums_are_right_under_kills_repeats_and_lost_messages(tmp_path: Path, chat_rows: Rows, seed: int) -> None:
    """Whatever turn dies, and however often one is repeated."""
    chance = random.Random(seed)
    bad: list[Answer] = [500, 400, 429, "batch_expired", None]
    fates = {f"r{at}": [chance.choice(bad) for _ in range(2)] for at in range(6)}
    api = Script(fates)
    pump = pump_of(tmp_path, api)
    pump.copies = lambda message: chance.choice([0, 1, 1, 2])
    job_id = pump.submit(chat_rows(12))
    for job in go_on(pump, job_id):
        if chance.random() < 0.1:
            method = chance.choice(["upload", "create_batch", "retrieve", "download"])
            if hasattr(api, method):
                api.fail_next(method, Vanished(), processed=chance.random() < 0.5)
        if job.state is State.RUNNING:
            check_sums(pump, job_id)
    assert sum(job.reasons.values()) == (job.failed or 0) + (job.missing or 0)
    assert not any(reason.startswith("~") for reason in job.reasons)


def test_what_a_status_adds_up_is_what_a_list_knows(tmp_path: Path, chat_rows: Rows) -> None:
    api = Script()
    pump = pump_of(tmp_path, api)
    job_id = pump.submit(chat_rows(10))
    for job in go_on(pump, job_id):
        sums = Sums()
        for shard in pump.store.shards.of_job(job, fields=SHOWN):
            sums.add(shard)
        listed, summed = job_view(job), job_view(job, pump.store.shards.of_job(job, fields=SHOWN), Moment())
        assert listed["progress"] == summed["progress"]
