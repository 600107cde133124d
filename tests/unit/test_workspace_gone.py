"""The workspace is deleted under a running job, or a file of it, or it is away for a while."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from batchpipe.errors import StorageTrouble
from batchpipe.model.records import JobRecord, Stage, State
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """Two rows a shard; a batch ends when the provider is told so."""
    return Pump(tmp_path, api=FakeOpenAI(), max_rows=2)


def pass_time(pump: Pump, seconds: float) -> None:
    """Messages and sweeps, every 20 seconds; of an hour and more, every minute or so."""
    ends, stride = pump.at + seconds, max(20.0, seconds / 60)
    while pump.at < ends:
        while pump.step() is not None:
            pass
        pump.sweep()
        pump.advance(stride)


def running(pump: Pump, rows: list[dict[str, object]], stage: Stage = Stage.CREATED) -> str:
    """A job all of whose shards are in this stage."""
    job_id = pump.submit(rows)
    for _ in range(100):
        if {shard.stage for shard in pump.shards(job_id)} == {stage}:
            return job_id
        if pump.step() is None:
            pump.advance(1.0)
    raise AssertionError(pump.shards(job_id))


def finish(pump: Pump) -> None:
    for batch in list(pump.api.batches):
        pump.api.finish(batch)


def lines(job: JobRecord, name: str) -> list[str]:
    return [orjson.loads(line)["custom_id"] for line in (Path(job.output) / name).read_bytes().splitlines()]


def adds_up(job: JobRecord) -> bool:
    return job.total == (job.ok or 0) + (job.failed or 0) + (job.missing or 0)


def test_what_was_paid_for_is_landed_though_the_workspace_is_gone(pump: Pump, chat_rows: Rows) -> None:
    """After an hour, said from its beginning; only the order of the input is lost, and the job says so."""
    job_id = running(pump, chat_rows(4))
    shutil.rmtree(pump.job(job_id).workspace)
    finish(pump)
    pass_time(pump, 600.0)
    trouble = pump.shards(job_id)[0].trouble
    assert trouble is not None
    assert trouble.code == "workspace_gone"
    assert "no such file" in trouble.message
    assert "waited for since" in trouble.message
    assert pump.job(job_id).state is State.RUNNING
    pass_time(pump, 3_600.0)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.missing, job.closed) == (State.SUCCEEDED, 4, 0, True)
    assert sorted(lines(job, "output.jsonl")) == ["r0", "r1", "r2", "r3"]
    assert job.error is not None
    assert "another order" in job.error.message
    assert pump.api.billed == Counter(["r0", "r1", "r2", "r3"])


def test_a_cancel_ends_a_job_whose_whole_output_is_gone(pump: Pump, chat_rows: Rows) -> None:
    """Within minutes; its batches are cancelled, and rows without an answer are counted."""
    job_id = running(pump, chat_rows(4))
    shutil.rmtree(pump.job(job_id).output)
    pump.cancel(job_id)
    pass_time(pump, 60.0)
    finish_cancel = [batch for batch in pump.api.batches.values() if batch.status == "cancelling"]
    for batch in finish_cancel:
        pump.api.finish(batch.id, "cancelled", after=1)
    pass_time(pump, 600.0)
    job = pump.job(job_id)
    assert (job.state, job.total, job.ok, job.closed) == (State.CANCELLED, 4, 2, True)
    assert adds_up(job)
    assert job.error is not None
    assert job.error.code == "workspace_gone"
    again = pump.submit(chat_rows(1), output=job.output)  # it is nobody's now
    assert pump.job(again).state is State.PENDING


@pytest.mark.parametrize("stage", [Stage.PLANNED, Stage.UPLOADED])
def test_nothing_is_paid_for_rows_whose_requests_are_gone(pump: Pump, chat_rows: Rows, stage: Stage) -> None:
    job_id = running(pump, chat_rows(4), stage)
    shutil.rmtree(pump.job(job_id).workspace)
    pass_time(pump, 4_000.0)
    job = pump.job(job_id)
    assert (job.state, job.total, job.missing, job.closed) == (State.FAILED, 4, 4, True)
    assert pump.api.batches == {}


def test_a_mount_that_comes_back_after_a_minute_costs_nothing(pump: Pump, chat_rows: Rows, tmp_path: Path) -> None:
    """Nor does a cancel meanwhile."""
    job_id = running(pump, chat_rows(4))
    workspace = pump.job(job_id).workspace
    shutil.move(workspace, tmp_path / "away")
    finish(pump)
    pass_time(pump, 60.0)
    assert not Path(workspace).exists()
    shutil.move(tmp_path / "away", workspace)
    pass_time(pump, 120.0)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.error) == (State.SUCCEEDED, 4, None)
    assert lines(job, "output.jsonl") == ["r0", "r1", "r2", "r3"]
    assert all(shard.gone_at is None for shard in pump.shards(job_id))


def test_one_file_that_is_gone_loses_no_paid_row_of_any_shard(pump: Pump, chat_rows: Rows) -> None:
    job_id = running(pump, chat_rows(6))
    job, shard = pump.job(job_id), pump.shards(job_id)[1]
    (Path(job.workspace) / shard.file).unlink()
    finish(pump)
    pass_time(pump, 4_000.0)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.closed) == (State.SUCCEEDED, 6, True)
    assert sorted(lines(job, "output.jsonl")) == [f"r{number}" for number in range(6)]


def test_collected_rows_that_are_gone_are_fetched_again(pump: Pump, chat_rows: Rows) -> None:
    """Merge ends, with what the provider still has."""
    job_id = running(pump, chat_rows(4))
    first, second = pump.api.batches
    pump.api.finish(first, rows={"r0": 400})
    pass_time(pump, 60.0)
    assert pump.shards(job_id)[0].stage == Stage.COLLECTED
    shutil.rmtree(Path(pump.job(job_id).workspace) / "collected")
    pump.api.finish(second)
    pass_time(pump, 4_000.0)
    job = pump.job(job_id)
    assert (job.state, job.total, job.ok, job.failed, job.missing) == (State.PARTIAL, 4, 3, 1, 0)
    assert lines(job, "errors.jsonl") == ["r0"]


def test_rows_that_the_provider_has_deleted_too_are_counted_as_missing(pump: Pump, chat_rows: Rows) -> None:
    job_id = running(pump, chat_rows(4))
    shutil.rmtree(pump.job(job_id).workspace)
    finish(pump)
    first = next(iter(pump.api.batches.values()))
    pass_time(pump, 60.0)
    assert first.output_file_id is not None
    del pump.api.files[first.output_file_id]
    pass_time(pump, 8_000.0)
    job = pump.job(job_id)
    assert (job.state, job.total, job.ok, job.missing) == (State.PARTIAL, 4, 2, 2)


def test_a_storage_that_is_down_is_waited_for_as_long_as_it_takes(
    pump: Pump, chat_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not gone: nothing is given up."""
    job_id = running(pump, chat_rows(2))
    finish(pump)
    with monkeypatch.context() as down:

        def fails(*_: object, **__: object) -> None:
            raise StorageTrouble("s3://bucket: 503 slow down")

        down.setattr("batchpipe.storage.folder.Folder.reader", fails)
        pass_time(pump, 10_000.0)
        assert pump.job(job_id).state is State.RUNNING
    pass_time(pump, 200.0)
    assert pump.job(job_id).state is State.SUCCEEDED


def test_a_salvaged_row_says_why_it_failed(pump: Pump, chat_rows: Rows) -> None:
    """Also where its answer came with HTTP 200, as in any other job."""
    job_id = running(pump, chat_rows(2))
    shutil.rmtree(pump.job(job_id).workspace)
    body = {"object": "response", "status": "failed", "error": {"code": "invalid_prompt", "message": "no"}}
    pump.api.finish(next(iter(pump.api.batches)), rows={"r0": body})
    pass_time(pump, 4_200.0)
    (line,) = (Path(pump.job(job_id).output) / "errors.jsonl").read_bytes().splitlines()
    assert orjson.loads(line)["error"]["code"] == "invalid_prompt"
