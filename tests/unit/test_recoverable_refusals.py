"""What a person or a minute can undo is no verdict: keys of other projects, quotas, files that are not ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchpipe.errors import AmbiguousResult, Refused
from batchpipe.model.records import Stage, State
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]
HOUR, DAY = 3_600.0, 86_400.0


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """Two rows a shard; batches end when a test says so."""
    return Pump(tmp_path, api=FakeOpenAI(), max_rows=2)


def run_for(pump: Pump, seconds: float) -> None:
    """Deliver and sweep for so long. Where nothing is delivered, a sweep every ten minutes is enough."""
    ends = pump.at + seconds
    while pump.at < ends:
        if pump.step() is not None:
            continue
        pump.sweep()
        moments = [delivery.at for delivery in pump.waiting] + [ends]
        pump.advance(min(max(min(moments) - pump.at, 0.0) + 0.001, 600.0))


def events(pump: Pump, job_id: str, name: str) -> int:
    return sum(event["event"] == name for event in pump.store.events.read(job_id))


def trouble(pump: Pump, job_id: str) -> str:
    problem = pump.shards(job_id)[0].trouble
    return problem.code if problem is not None else ""


def once(pump: Pump) -> bool:
    return set(pump.api.billed.values()) <= {1}


# -- the key of another project ------------------------------------------------------------------------------------


def test_a_key_of_another_project_pauses_the_batch_and_the_right_one_goes_on(pump: Pump, chat_rows: Rows) -> None:
    """A day with the wrong key: said at the first look, nothing is given up, nothing is created again."""
    job_id = pump.submit(chat_rows(3))
    run_for(pump, 60)
    batches = list(pump.api.batches)
    pump.api.project = "another"
    run_for(pump, 20 * HOUR)
    assert [(shard.stage, shard.trouble and shard.trouble.code) for shard in pump.shards(job_id)] == [
        (Stage.CREATED, "batch_unseen")
    ] * 2
    assert events(pump, job_id, "batch_unseen") == 2
    pump.api.project = ""
    for batch in batches:
        pump.api.finish(batch)
    pump.run_until_idle()
    assert (pump.job(job_id).state, pump.job(job_id).ok) == (State.SUCCEEDED, 3)
    assert (list(pump.api.batches), once(pump)) == (batches, True)


def test_a_key_of_another_project_while_results_are_fetched_costs_time_only(pump: Pump, chat_rows: Rows) -> None:
    """It sees the files no more than the batch."""
    job_id = pump.submit(chat_rows(2))
    run_for(pump, 60)
    (batch,) = pump.api.batches
    pump.api.finish(batch)
    while pump.shards(job_id)[0].stage == Stage.CREATED:
        if pump.step() is None:
            pump.advance(1)
    pump.api.project = "another"
    run_for(pump, 12 * HOUR)
    assert pump.shards(job_id)[0].stage == Stage.ENDED
    pump.api.project = ""
    pump.run_until_idle()
    assert (pump.job(job_id).state, once(pump)) == (State.SUCCEEDED, True)


def test_an_unanswered_create_is_not_repeated_by_a_key_of_another_project(pump: Pump, chat_rows: Rows) -> None:
    """Its list is empty, and says nothing: the batch that the call made is adopted when the right key is back."""
    pump.api.fail_next("create_batch", AmbiguousResult("lost"), processed=True)
    job_id = pump.submit(chat_rows(2))
    while not pump.api.batches:
        assert pump.step() is not None
    pump.api.project = "another"
    run_for(pump, 5 * HOUR)
    assert pump.api.count("create_batch") == 1
    assert trouble(pump, job_id) == "batch_unseen"
    pump.api.project, pump.api.autofinish = "", True
    pump.run_until_idle()
    assert (pump.job(job_id).state, len(pump.api.batches), once(pump)) == (State.SUCCEEDED, 1, True)


def test_a_list_that_shows_nothing_of_ours_does_not_hide_orphans_for_good(pump: Pump, chat_rows: Rows) -> None:
    """The sweep reads as far back again when the right key is there."""
    job_id = pump.submit(chat_rows(2))
    run_for(pump, 60)
    shard = pump.shards(job_id)[0]
    metadata = {"batchpipe_job": job_id, "batchpipe_shard": "0", "batchpipe_key": shard.key}
    orphan = pump.api.create_batch(
        endpoint="/v1/x", completion_window="24h", input_file_id=shard.file_id or "", metadata=metadata, extra={}
    ).id
    pump.api.project = "another"
    run_for(pump, 3 * HOUR)
    pump.api.project = ""
    run_for(pump, 120)
    assert pump.api.batches[orphan].status in ("cancelling", "cancelled")


def test_a_cancel_with_a_key_of_another_project_ends_the_job_within_hours(pump: Pump, chat_rows: Rows) -> None:
    """Its rows are missing, and the reason says that the batch may run on."""
    job_id = pump.submit(chat_rows(2))
    run_for(pump, 60)
    pump.api.project = "another"
    pump.cancel(job_id)
    pump.run_until_idle(2 * HOUR)
    job = pump.job(job_id)
    assert (job.state, job.missing) == (State.CANCELLED, 2)
    assert [shard.error and shard.error.code for shard in pump.shards(job_id)] == ["batch_gone"]


# -- quotas, and files that are not ready --------------------------------------------------------------------------


def test_a_file_quota_is_waited_out_until_room_is_made(pump: Pump, chat_rows: Rows) -> None:
    """Nothing fails meanwhile; the job's trouble says what could be deleted."""
    full = Refused("The limit of 500 files is reached", code="quotaExceeded", status=400)
    pump.api.fail_next("upload", full, times=8)
    pump.api.autofinish = True
    job_id = pump.submit(chat_rows(2))
    run_for(pump, 60)
    shard = pump.shards(job_id)[0]
    assert (shard.stage, shard.trouble and shard.trouble.code) == (Stage.PLANNED, "file_quota")
    pump.run_until_idle()
    assert (pump.job(job_id).state, once(pump)) == (State.SUCCEEDED, True)
    assert events(pump, job_id, "refused_for_now") == 1
    assert pump.shards(job_id)[0].refused_at is None


def test_a_quota_that_is_never_mended_ends_after_hours_with_what_to_do(pump: Pump, chat_rows: Rows) -> None:
    """The shards that were sent before are not touched by it."""
    pump.api.autofinish = True
    job_id = pump.submit(chat_rows(4))
    while pump.api.count("upload") < 1:
        assert pump.step() is not None
    pump.api.fail_next("upload", Refused("full", code="quotaExceeded", status=400), times=10_000)
    began = pump.at
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.state, job.ok, job.failed) == (State.PARTIAL, 2, 2)
    assert 6 * HOUR <= pump.at - began <= 7 * HOUR
    assert job.error is not None
    assert (job.error.code, f"batchpipe retry {job_id}" in job.error.message) == ("file_quota", True)


def test_a_file_that_needs_a_minute_before_a_batch_may_use_it_fails_no_row(pump: Pump, chat_rows: Rows) -> None:
    """One upload, one batch."""
    pump.api.autofinish = True
    job_id = pump.submit(chat_rows(2))
    while not pump.api.files:
        assert pump.step() is not None
    (file,) = pump.api.files.values()
    file.status = "pending"
    run_for(pump, 90)
    assert (pump.shards(job_id)[0].stage, len(pump.api.batches)) == (Stage.UPLOADED, 0)
    file.status = "processed"
    pump.run_until_idle()
    assert (pump.job(job_id).state, pump.api.count("upload"), len(pump.api.batches)) == (State.SUCCEEDED, 1, 1)
