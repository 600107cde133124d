"""Tidying: an ended job leaves no file at the provider that nobody needs, and telling does not wait for it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchpipe.errors import Gone, Paused, Refused, Unavailable
from batchpipe.model.records import JobRecord, ShardRecord, State
from batchpipe.pipeline.closing import MAX_CLEANUP_ATTEMPTS
from batchpipe.pipeline.steps.cleanup import TRIES_AT_ONCE, delete_files
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]


def pump_of(folder: Path, **settings: Any) -> Pump:
    return Pump(folder, api=FakeOpenAI(autofinish=True), max_rows=2, **settings)


def ended(pump: Pump, rows: list[dict[str, object]], **fields: Any) -> str:
    job_id = pump.submit(rows, **fields)
    pump.run_until_idle()
    assert pump.job(job_id).closed
    return job_id


def names(pump: Pump) -> list[str]:
    return sorted(file.name for file in pump.api.files.values())


def events(pump: Pump, job_id: str) -> list[str]:
    return [event["event"] for event in pump.store.events.read(job_id)]


def test_a_job_without_strays_asks_for_no_list_and_deletes_nothing(tmp_path: Path, chat_rows: Rows) -> None:
    """The usual case costs no call."""
    pump = pump_of(tmp_path)
    ended(pump, chat_rows(4))
    assert pump.api.count("delete_file") == pump.api.count("iter_files") == 0
    assert len(pump.api.files) == 4


def test_an_upload_whose_answer_was_lost_is_deleted(tmp_path: Path, chat_rows: Rows) -> None:
    """It is found by its name; files of other jobs and the inputs of batches stay."""
    pump = pump_of(tmp_path)
    other = ended(pump, chat_rows(1))
    pump.api.fail_next("upload", Unavailable("dropped"), processed=True)
    job_id = ended(pump, chat_rows(4))
    inputs = [f"batchpipe-{other}-0-1.jsonl", f"batchpipe-{job_id}-0-1.jsonl", f"batchpipe-{job_id}-1-1.jsonl"]
    assert [name for name in names(pump) if name.startswith("batchpipe-")] == sorted(inputs)
    assert "files_deleted" in events(pump, job_id)


def test_a_file_that_was_uploaded_again_is_deleted(tmp_path: Path, chat_rows: Rows) -> None:
    """The provider could not find it when a batch was to be made of it."""
    pump = pump_of(tmp_path)
    lost = Unavailable("Cannot find file", code="file_not_found", status=400)
    pump.api.fail_next("create_batch", lost, times=7)
    pump.api.fail_next("file_status", Gone("no such file", status=404), times=7)
    job_id = ended(pump, chat_rows(1))
    assert [name for name in names(pump) if name.startswith("batchpipe-")] == [f"batchpipe-{job_id}-0-2.jsonl"]


def test_uploads_of_a_cancelled_job_are_deleted(tmp_path: Path, chat_rows: Rows) -> None:
    """No batch was made of them."""
    pump = pump_of(tmp_path)
    job_id = pump.submit(chat_rows(2))
    while not pump.api.files:
        assert pump.step() is not None
    pump.cancel(job_id)
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.CANCELLED
    assert names(pump) == []


@pytest.mark.parametrize(("which", "left"), [("none", 3), ("strays", 2), ("inputs", 1), ("all", 0)])
def test_the_setting_says_what_is_deleted(tmp_path: Path, chat_rows: Rows, which: str, left: int) -> None:
    """A stray, the input, the output."""
    pump = pump_of(tmp_path, delete_files=which)
    pump.api.fail_next("upload", Unavailable("dropped"), processed=True)
    ended(pump, chat_rows(1))
    assert len(pump.api.files) == left


def test_a_provider_that_is_down_holds_up_neither_telling_nor_the_end(tmp_path: Path, chat_rows: Rows) -> None:
    """The user is told once; the files are left to their expiry, and the log says so."""
    pump = pump_of(tmp_path, delete_files="inputs")
    pump.api.fail_next("delete_file", Unavailable("down"), times=1_000)
    job_id = ended(pump, chat_rows(1))
    assert len(pump.notified) == 1
    assert pump.api.count("delete_file") == (MAX_CLEANUP_ATTEMPTS + 1) * TRIES_AT_ONCE
    assert "files_left" in events(pump, job_id)
    assert pump.job(job_id).trouble is None


def test_a_blip_is_bridged(tmp_path: Path, chat_rows: Rows) -> None:
    """Within the turn, and by coming back."""
    pump = pump_of(tmp_path, delete_files="inputs")
    pump.api.fail_next("delete_file", Unavailable("down"), times=TRIES_AT_ONCE + 1)
    ended(pump, chat_rows(1))
    assert not [name for name in names(pump) if name.startswith("batchpipe-")]
    assert len(pump.notified) == 1


def test_one_file_that_fails_does_not_keep_the_others(tmp_path: Path, chat_rows: Rows) -> None:
    """Each turn deletes what it can."""
    pump = pump_of(tmp_path, delete_files="inputs")
    job_id = pump.submit(chat_rows(8))
    pump.api.fail_next("delete_file", Unavailable("down"), times=TRIES_AT_ONCE)
    while not pump.job(job_id).notified:
        if pump.step() is None:
            pump.advance(1)
    assert len([name for name in names(pump) if name.startswith("batchpipe-")]) == 1


@pytest.mark.parametrize("error", [Refused("not allowed", status=403), Paused("401")])
def test_a_provider_that_will_not_is_left_in_peace(tmp_path: Path, chat_rows: Rows, error: Exception) -> None:
    """The job ends all the same."""
    pump = pump_of(tmp_path, delete_files="inputs")
    pump.api.fail_next("delete_file", error, times=1_000)
    job_id = ended(pump, chat_rows(1))
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert len(pump.notified) == 1


def test_a_provider_that_cannot_list_files_loses_only_unknown_strays(tmp_path: Path, chat_rows: Rows) -> None:
    """They expire there by themselves."""
    pump = pump_of(tmp_path)
    pump.api.fail_next("upload", Unavailable("dropped"), processed=True)
    pump.api.fail_next("iter_files", Refused("no such route", status=404))
    job_id = ended(pump, chat_rows(1))
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert len(pump.api.files) == 3


def test_each_deletion_says_that_the_work_gets_on() -> None:
    """Thousands of calls take longer than a lease may stand still."""
    provider, checks = FakeOpenAI(), list[int]()
    ids = [provider.upload(io.BytesIO(b"{}"), f"batchpipe-job_x-{number}-1.jsonl", lambda: None) for number in range(3)]
    shards = [ShardRecord(job="job_x", index=n, file_id=file_id, uploads=1) for n, file_id in enumerate(ids)]
    assert delete_files(JobRecord(id="job_x"), shards, provider, "strays", check=lambda: checks.append(1)) == 3
    assert len(checks) == 3
