"""A batch that somebody cancels at the provider is not sent again unasked; what was given up can be landed later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchpipe.model.records import JobRecord, Stage, State, Status
from batchpipe.pipeline.manifest import results_place
from batchpipe.storage import Folder
from batchpipe.testing import FakeOpenAI, Pump
from batchpipe.testing.things import FakeFile
from tests.unit.test_recoverable_refusals import DAY, HOUR, events, once, run_for

Rows = Callable[..., list[dict[str, object]]]


def make(folder: Path, **settings: Any) -> Pump:
    return Pump(folder, api=FakeOpenAI(), max_rows=2, **settings)


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    return make(tmp_path)


def decide(pump: Pump, job_id: str, decision: Any) -> None:
    """As ``client.resume_job`` and ``client.land``."""
    assert pump.store.jobs.resolve_hold(job_id, decision)[0] == "ok"
    for index in range(-1, pump.job(job_id).shards):
        pump.job_runner.republish(job_id, index, when="waiting")


def land(pump: Pump, job_id: str) -> str:
    """As ``client.land`` of a job that has ended; the sweep finds what is due."""
    job, indexes = pump.job(job_id), [shard.index for shard in pump.shards(job_id) if shard.error is not None]
    return pump.store.jobs.land(job_id, indexes, in_output=results_place(job).url == Folder(job.output).url)


def cancelled_in_the_dashboard(pump: Pump, rows: list[dict[str, object]], *, done: int = 1) -> tuple[str, str]:
    """A job of one batch, of which ``done`` rows had run when a person cancelled it. Answers job and batch."""
    job_id = pump.submit(rows)
    run_for(pump, 60)
    (batch,) = pump.api.batches
    pump.api.finish(batch, Status.CANCELLED, after=done)
    run_for(pump, HOUR)
    return job_id, batch


def test_a_cancel_that_we_did_not_ask_for_holds_the_job_and_says_what_to_type(pump: Pump, chat_rows: Rows) -> None:
    """Days pass without a new batch; what has finished is landed; status, list and the log say it."""
    job_id, batch = cancelled_in_the_dashboard(pump, chat_rows(2))
    run_for(pump, 2 * DAY)
    job = pump.job(job_id)
    assert (job.state, list(pump.api.batches)) == (State.FINALIZING, [batch])
    assert job.hold is not None
    assert (job.hold.code, job.trouble and job.trouble.code) == ("cancelled_elsewhere", "cancelled_elsewhere")
    assert all(word in job.hold.message for word in (batch, f"resume {job_id}", f"land {job_id}", f"cancel {job_id}"))
    assert [shard.ok for shard in pump.shards(job_id)] == [1]
    assert events(pump, job_id, "cancelled_elsewhere") == 1


def test_a_person_may_send_the_rows_again(pump: Pump, chat_rows: Rows) -> None:
    """Those that were not run, once."""
    job_id, _ = cancelled_in_the_dashboard(pump, chat_rows(2))
    pump.api.autofinish = True
    decide(pump, job_id, "resend")
    pump.run_until_idle()
    assert (pump.job(job_id).state, pump.job(job_id).hold, once(pump)) == (State.SUCCEEDED, None, True)
    assert len(pump.api.batches) == 2


def test_a_person_may_take_what_is_there(pump: Pump, chat_rows: Rows) -> None:
    """The job ends; nothing more is sent."""
    job_id, batch = cancelled_in_the_dashboard(pump, chat_rows(2))
    decide(pump, job_id, "land")
    pump.run_until_idle(HOUR)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.failed, list(pump.api.batches)) == (State.PARTIAL, 1, 1, [batch])
    assert job.error is not None
    assert job.error.code == "cancelled_elsewhere"


def test_a_person_may_cancel_the_job(pump: Pump, chat_rows: Rows) -> None:
    """As any."""
    job_id, batch = cancelled_in_the_dashboard(pump, chat_rows(2))
    pump.cancel(job_id)
    pump.run_until_idle(HOUR)
    assert (pump.job(job_id).state, pump.job(job_id).ok, list(pump.api.batches)) == (State.CANCELLED, 1, [batch])


def test_a_hold_ends_by_itself_with_what_is_there(pump: Pump, chat_rows: Rows) -> None:
    """After a week, so that nothing waits for ever."""
    job_id, batch = cancelled_in_the_dashboard(pump, chat_rows(2))
    began = pump.at
    pump.run_until_idle(8 * DAY)
    assert (pump.job(job_id).state, list(pump.api.batches)) == (State.PARTIAL, [batch])
    assert 6.9 * DAY <= pump.at - began <= 7.1 * DAY


@pytest.mark.parametrize(("mode", "batches", "ok"), [("resend", 2, 2), ("land", 1, 1)])
def test_a_setting_decides_beforehand(tmp_path: Path, chat_rows: Rows, mode: str, batches: int, ok: int) -> None:
    """It is said all the same."""
    pump = make(tmp_path, cancelled_elsewhere=mode)
    job_id, _ = cancelled_in_the_dashboard(pump, chat_rows(2))
    for batch in [batch for batch in pump.api.batches.values() if not batch.is_final]:
        pump.api.finish(batch.id)
    pump.run_until_idle(DAY)
    assert (len(pump.api.batches), pump.job(job_id).ok, once(pump)) == (batches, ok, True)
    [said] = [event["message"] for event in pump.store.events.read(job_id) if event["event"] == "cancelled_elsewhere"]
    follows = {"resend": "its rows that were not run are sent again", "land": "nothing more is sent of this job"}
    assert follows[mode] in said
    assert (follows["land"] in said) == (mode == "land")


def test_no_shard_of_a_held_job_gets_a_batch_and_those_that_run_are_collected(pump: Pump, chat_rows: Rows) -> None:
    """Decided by the script that records the intent; seen as soon as the batch is cancelling."""
    job_id = pump.submit(chat_rows(6))
    while len(pump.api.batches) < 2:
        if pump.step() is None:
            pump.advance(1)
    pump.waiting = [one for one in pump.waiting if one.message.index != 2]  # its message is lost for a while
    first, second = pump.api.batches
    pump.api.batches[first].status = "cancelling"
    pump.job_runner.republish(job_id, 0, when="waiting")
    while pump.job(job_id).hold is None:
        if pump.step() is None:
            pump.advance(1)
    pump.api.finish(first, Status.CANCELLED, after=0)
    pump.api.finish(second)
    run_for(pump, 3 * HOUR)
    shards = pump.shards(job_id)
    assert [shard.stage for shard in shards] == [Stage.COLLECTED, Stage.COLLECTED, Stage.UPLOADED]
    assert shards[2].trouble is not None
    assert (shards[2].trouble.code, shards[1].ok, len(pump.api.batches)) == ("cancelled_elsewhere", 2, 2)
    decide(pump, job_id, "land")
    pump.run_until_idle(HOUR)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.failed, job.missing) == (State.PARTIAL, 2, 2, 2)


@pytest.mark.parametrize("why", ["the job is cancelled", "it did not end in time"])
def test_a_cancel_of_our_own_holds_nothing(pump: Pump, chat_rows: Rows, why: str) -> None:
    """Asked for by a person through us, or by the safety net for batches that do not end."""
    job_id = pump.submit(chat_rows(2))
    run_for(pump, 60)
    if why == "the job is cancelled":
        pump.cancel(job_id)
    else:
        run_for(pump, 27 * HOUR)
    pump.api.autofinish = True
    pump.run_until_idle()
    assert pump.job(job_id).hold is None
    assert events(pump, job_id, "cancelled_elsewhere") == 0


# -- landing later -------------------------------------------------------------------------------------------------


def given_up(pump: Pump, rows: list[dict[str, object]], **options: Any) -> tuple[str, str]:
    """A job whose first batch was given up, for the key was another project's for days; the others are ok."""
    job_id = pump.submit(rows, **options)
    run_for(pump, 60)
    first, *others = pump.api.batches
    for batch in others:
        pump.api.finish(batch)
    pump.api.batches[first].project = "elsewhere"
    pump.run_until_idle(4 * DAY)
    assert (pump.job(job_id).state, pump.job(job_id).missing) == (State.PARTIAL if others else State.FAILED, 2)
    return job_id, first


@pytest.mark.parametrize("count", [2, 5])
def test_what_was_given_up_is_landed_when_its_batch_is_seen_again(pump: Pump, chat_rows: Rows, count: int) -> None:
    """Its rows take their places among the others; nothing is sent again; the end is told again."""
    job_id, batch = given_up(pump, chat_rows(count))
    made, told = len(pump.api.batches), len(pump.notified)
    pump.api.batches[batch].project = ""
    pump.api.finish(batch)
    assert land(pump, job_id) == "ok"
    assert pump.job(job_id).state is State.RUNNING
    pump.run_until_idle(HOUR)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.missing, job.error) == (State.SUCCEEDED, count, 0, None)
    assert pump.outcomes(job_id) == {f"r{number}": "ok" for number in range(count)}
    assert (len(pump.api.batches), once(pump), len(pump.notified)) == (made, True, told + 1)
    assert pump.store.connection.client.zcard(f"{pump.store.connection.prefix}due") == 0


def test_a_batch_that_is_still_not_seen_changes_nothing(pump: Pump, chat_rows: Rows) -> None:
    """The job ends as before, at once."""
    job_id, _ = given_up(pump, chat_rows(5))
    before = pump.outcomes(job_id)
    assert land(pump, job_id) == "ok"
    pump.run_until_idle(HOUR)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.missing, pump.outcomes(job_id)) == (State.PARTIAL, 3, 2, before)
    assert [shard.error and shard.error.code for shard in pump.shards(job_id)] == ["batch_gone", None, None]


def test_rows_that_did_not_run_are_not_sent_again_by_landing(pump: Pump, chat_rows: Rows) -> None:
    """Attempts are left, but whoever lands wants what is there."""
    job_id, batch = given_up(pump, chat_rows(2))
    pump.api.batches[batch].project = ""
    pump.api.expire(batch, after=1)
    land(pump, job_id)
    pump.run_until_idle(DAY)
    job = pump.job(job_id)
    assert (job.state, job.ok, job.failed, len(pump.api.batches)) == (State.PARTIAL, 1, 1, 1)


def test_landing_twice_is_landing_once(pump: Pump, chat_rows: Rows) -> None:
    """While it runs it is refused; afterwards there is nothing to land."""
    job_id, batch = given_up(pump, chat_rows(2))
    pump.api.batches[batch].project = ""
    assert [land(pump, job_id), land(pump, job_id)] == ["ok", "running"]
    pump.api.finish(batch)
    pump.run_until_idle(HOUR)
    assert all(shard.error is None for shard in pump.shards(job_id))


def test_a_file_that_was_gone_is_landed_beside_rows_that_were_sent_again(pump: Pump, chat_rows: Rows) -> None:
    """Rows of the error file went into a further round meanwhile; their places there stay."""
    job_id = pump.submit(chat_rows(2))
    run_for(pump, 60)
    (batch,) = pump.api.batches
    pump.api.finish(batch, rows={"r1": 500})
    output = pump.api.batches[batch].output_file_id or ""
    file = pump.api.files.pop(output)
    run_for(pump, 2 * HOUR)
    for late in [late for late in pump.api.batches.values() if not late.is_final]:
        pump.api.finish(late.id)
    pump.run_until_idle(DAY)
    assert (pump.job(job_id).ok, pump.job(job_id).missing) == (1, 1)
    pump.api.files[output] = file
    land(pump, job_id)
    pump.run_until_idle(HOUR)
    job: JobRecord = pump.job(job_id)
    assert (job.state, job.ok) == (State.SUCCEEDED, 2)
    assert pump.outcomes(job_id) == {"r0": "ok", "r1": "ok"}


def test_a_row_whose_answer_nobody_could_read_is_landed_when_it_can_be_read(pump: Pump, chat_rows: Rows) -> None:
    """A gateway had spoiled it on its way; it is paid."""
    job_id = pump.submit(chat_rows(2))
    run_for(pump, 60)
    (batch,) = pump.api.batches
    pump.api.finish(batch)
    output = pump.api.batches[batch].output_file_id or ""
    file = pump.api.files[output]
    pump.api.files[output] = FakeFile(
        file.name, file.data.replace(b'"response"', b'"respons\xff"', 1), file.purpose, file.created_at
    )
    pump.run_until_idle(DAY)
    assert (pump.job(job_id).ok, pump.job(job_id).missing) == (1, 1)
    pump.api.files[output] = file
    assert land(pump, job_id) == "ok"
    pump.run_until_idle(HOUR)
    assert pump.outcomes(job_id) == {"r0": "ok", "r1": "ok"}
    assert (pump.job(job_id).state, list(pump.api.batches)) == (State.SUCCEEDED, [batch])


@pytest.mark.parametrize("later_has_ended", [False, True])
def test_a_row_is_landed_though_a_later_job_has_the_output(
    pump: Pump, chat_rows: Rows, *, later_has_ended: bool
) -> None:
    """Its job's results lie elsewhere since then, and that is where they stay; the later job's are not touched."""
    first, batch = given_up(pump, chat_rows(5))
    output = pump.job(first).output
    later = pump.submit(chat_rows(2, start=5), output=output)
    run_for(pump, 60)
    its_batch = list(pump.api.batches)[-1]
    if later_has_ended:
        pump.api.finish(its_batch)
        run_for(pump, HOUR)
    pump.api.batches[batch].project = ""
    pump.api.finish(batch)
    assert land(pump, first) == "ok"
    run_for(pump, HOUR)
    if not later_has_ended:
        pump.api.finish(its_batch)
    pump.run_until_idle(DAY)

    assert pump.outcomes(first) == {f"r{number}": "ok" for number in range(5)}
    assert pump.outcomes(later) == {"r5": "ok", "r6": "ok"}
    assert pump.job(first).state is pump.job(later).state is State.SUCCEEDED
    assert results_place(pump.job(later)).url == Folder(output).url


def test_an_output_that_an_unfinished_job_writes_to_is_not_landed_into(pump: Pump, chat_rows: Rows) -> None:
    """Decided where the output is claimed."""
    job_id, _ = given_up(pump, chat_rows(2))
    output = pump.job(job_id).output
    pump.submit(chat_rows(2, start=5), output=output)
    assert land(pump, job_id) == "output"
    assert pump.job(job_id).state is State.FAILED


def test_an_output_that_an_unfinished_job_has_by_another_name_is_not_landed_into(
    pump: Pump, chat_rows: Rows, tmp_path: Path
) -> None:
    """Whose an output is, is decided by all of its names, here as in a submit."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    job_id, _ = given_up(pump, chat_rows(2), output=str(tmp_path / "link"))
    pump.submit(chat_rows(2, start=5), output=str(tmp_path / "real"))
    assert land(pump, job_id) == "output"


def test_what_is_landed_later_takes_the_place_of_the_earlier_results(pump: Pump, chat_rows: Rows) -> None:
    """They are the job's own, though longer than those that it had written at its first end."""
    job_id, batch = given_up(pump, chat_rows(5))
    pump.api.batches[batch].project = ""
    pump.api.finish(batch)
    land(pump, job_id)
    pump.run_until_idle(HOUR)
    job = pump.job(job_id)
    assert (job.results, job.ok) == (job.output, 5)
