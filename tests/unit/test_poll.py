"""Polling: one look at a batch, at a bearable pace."""

from __future__ import annotations

import io
from typing import Any

import pytest

from batchpipe.config.account import Account
from batchpipe.errors import Gone, Unavailable
from batchpipe.model.pace import History, bin_of
from batchpipe.model.records import (
    BatchError,
    Counts,
    JobRecord,
    Move,
    Problem,
    ShardRecord,
    Stage,
    Status,
    window_seconds,
)
from batchpipe.pipeline.steps.poll import MAX_GONE, Pace, Slot, poll
from batchpipe.testing import FakeOpenAI

JOB = JobRecord(id="job_x")
NOW, DAY = 1_000_000.0, 86_400.0
PACE = Pace(5.0, 600.0)
NOW_SLOT = Slot()


class World:
    """A provider with one batch, and its shard."""

    def __init__(self) -> None:
        self.api = FakeOpenAI(lambda: NOW)
        rows = b'{"custom_id":"r0"}\n{"custom_id":"r1"}\n'
        file_id = self.api.upload(io.BytesIO(rows), "f", lambda: None)
        self.batch_id = self.api.create_batch(
            endpoint="/v1/x", completion_window="24h", input_file_id=file_id, metadata={}, extra={}
        ).id
        self.api.calls.clear()
        self.asked: list[tuple[str, bool]] = []  #: of the budget

    def shard(self, **fields: Any) -> ShardRecord:
        base = {"job": "job_x", "index": 0, "stage": Stage.CREATED.value, "batch_id": self.batch_id}
        return ShardRecord(**{**base, "created_at": NOW - 100, **fields})

    def poll(self, job: JobRecord = JOB, slot: Slot = NOW_SLOT, **fields: Any) -> Any:
        """``slot``: what the account's budget answers."""

        def take_slot(what: str, may_park: bool) -> Slot:
            self.asked.append((what, may_park))
            if slot.parked and not may_park:
                return NOW_SLOT
            return NOW_SLOT if what in ("news", "booked") and not slot.parked else slot

        return poll(job, self.shard(**fields), self.api, now=NOW, pace=PACE, take_slot=take_slot, patience=7_200.0)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(("age", "low", "high"), [(0, 5, 5.5), (100, 10, 11), (3_000, 300, 330), (86_400, 600, 600)])
def test_the_pause_grows_with_the_age_within_bounds(age: float, low: float, high: float) -> None:
    """Short at first, never above ten minutes, with jitter so that shards do not march in step."""
    pauses = {PACE.after(age) for _ in range(200)}
    assert low <= min(pauses)
    assert max(pauses) <= high
    assert len(pauses) > 1 or low == high


def test_a_look_records_status_and_counts(world: World) -> None:
    """And comes back later."""
    world.api.batches[world.batch_id].status = "in_progress"
    world.api.batches[world.batch_id].counts = Counts(total=2, completed=1, failed=0)
    move = world.poll()
    assert (move.stage, move.changes["status"], move.changes["snapshot_at"]) == (Stage.CREATED, "in_progress", NOW)
    assert move.changes["counts"].completed == 1
    assert 10 <= move.after <= 11
    assert move.events == [("status", {"batch_id": world.batch_id, "status": "in_progress"})]


def test_an_unchanged_status_is_no_event(world: World) -> None:
    """The job's log is for people."""
    assert world.poll(status="validating").events == []


def test_a_fresh_snapshot_is_not_asked_again(world: World) -> None:
    """Create has just read it, or sweep."""
    move = world.poll(snapshot_at=NOW - 1, status="validating")
    assert (move.stage, move.changes, world.api.calls) == (Stage.CREATED, {}, [])


@pytest.mark.parametrize("fields", [{"snapshot_at": NOW - 60, "status": "validating"}, {}])
def test_an_old_snapshot_is(world: World, fields: dict[str, Any]) -> None:
    """It asks."""
    world.poll(**fields)
    assert world.api.count("retrieve") == 1


def test_a_snapshot_that_says_final_is_not_waited_for(world: World) -> None:
    """A sweep saw the end and published us again: the files' ids must be read."""
    world.api.finish(world.batch_id)
    assert world.poll(snapshot_at=NOW - 1, status="completed").stage == Stage.ENDED


@pytest.mark.parametrize(("age", "left"), [(100, 8.0), (3_000, 298.0)])
def test_a_snapshot_fresher_than_the_pace_of_its_batch_asks_nobody(world: World, age: float, left: float) -> None:
    """A look has read it, or the create step; its next poll comes a pause after that."""
    move = world.poll(created_at=NOW - age, snapshot_at=NOW - 2, status="in_progress")
    assert (move.stage, world.asked, world.api.calls) == (Stage.CREATED, [("booked", True)], [])
    assert left <= move.after <= left * 1.15


def test_a_snapshot_is_old_soon_where_the_end_is_likely(world: World) -> None:
    """By the same pace as the pauses, or each look would put off the next one to a tenth of the batch's age."""
    usual = Pace(5.0, 600.0, History([{bin_of(1_000.0): 100}]))
    assert usual.after(1_000.0, "in_progress") < 15
    shard = world.shard(created_at=NOW - 1_000, snapshot_at=NOW - 15, status="in_progress")
    move = poll(JOB, shard, world.api, now=NOW, pace=usual, take_slot=lambda what, may_park: NOW_SLOT)
    assert isinstance(move, Move)
    assert world.api.count("retrieve") == 1


def test_without_budget_nobody_is_asked_and_the_slot_is_booked(world: World) -> None:
    """The turn ends like any other, comes back at its slot, and then needs not ask for one again."""
    move = world.poll(slot=Slot(7.0))
    assert (move.stage, move.after, move.changes, world.api.calls) == (Stage.CREATED, 7.0, {"slot_at": NOW + 7}, [])
    assert world.poll(slot=Slot(7.0), slot_at=NOW - 1).changes["slot_at"] is None
    assert (world.asked[-1][0], world.api.count("retrieve")) == ("booked", 1)


def test_a_turn_before_its_slot_waits_for_it(world: World) -> None:
    """It was published again, for no reason that needs a look."""
    move = world.poll(slot=Slot(7.0), slot_at=NOW + 30)
    assert (move.after, move.changes, world.api.calls) == (30.0, {"slot_at": NOW + 30}, [])


def test_a_slot_of_long_ago_counts_no_more(world: World) -> None:
    """Workers were away: all that was booked meanwhile would be read at once."""
    world.poll(slot_at=NOW - 3_600)
    assert world.asked == [("poll", False)]


def test_a_full_budget_books_nothing(world: World) -> None:
    """It asks again then."""
    move = world.poll(slot=Slot(600.0, booked=False))
    assert (move.after, move.changes) == (600.0, {"slot_at": None})


SEEN: dict[str, Any] = {"snapshot_at": NOW - 60, "status": "in_progress"}


def test_a_poll_is_parked_where_looks_watch(world: World) -> None:
    """Its due time is the safety net, and no look moves that beyond the end of its window and patience."""
    move = world.poll(slot=Slot(parked=True), **SEEN)
    assert (move.stage, world.api.calls) == (Stage.CREATED, [])
    assert 480 <= move.after <= 600
    assert move.changes == {"parked": True, "park_until": NOW - 100 + DAY + 7_200, "slot_at": None}


@pytest.mark.parametrize(
    ("job", "fields"),
    [
        (JobRecord(id="job_x", cancel=True), {}),
        (JOB, {"overdue_at": NOW - 10}),
        (JOB, {"status": "cancelling"}),
        (JOB, {"status": "completed"}),
        (JOB, {"unfound": 1}),
        (JOB, {"landing": True}),
        (JOB, {"news": True}),
        (JOB, {"snapshot_at": None}),
        (JOB, {"created_at": NOW - DAY - 7_201, "snapshot_at": NOW - 1}),
    ],
)
def test_what_only_a_poll_can_do_is_not_parked(world: World, job: JobRecord, fields: dict[str, Any]) -> None:
    """To cancel it, to say that others cancel it, to judge that it is gone or overdue."""
    move = world.poll(job, slot=Slot(parked=True), **{**SEEN, **fields})
    assert "parked" not in move.changes
    assert world.api.calls


def test_a_batch_that_was_cancelled_on_our_behalf_may_be_parked(world: World) -> None:
    """A look sees its end, too."""
    job = JobRecord(id="job_x", cancel=True)
    assert world.poll(job, slot=Slot(parked=True), cancel_sent=True, **SEEN).changes["parked"]


def test_news_need_no_slot(world: World) -> None:
    """A webhook has told of its end, or an older worker has seen it in the list."""
    world.api.finish(world.batch_id)
    told: list[dict[str, Any]] = [{"news": True}, {"status": "completed", "snapshot_at": NOW - 1}]
    for fields in told:
        assert world.poll(slot=Slot(60.0), **fields).stage == Stage.ENDED
    assert world.asked == [("news", False)] * 2


def test_an_end_that_a_look_has_seen_is_not_read_again(world: World) -> None:
    """Its files and errors are recorded with it; the job's log says how it ended."""
    seen: dict[str, Any] = {"status": "completed", "end_seen": True, "output_file_id": "file-7", "snapshot_at": NOW - 1}
    move = world.poll(**seen, counts=Counts(total=1, completed=1, failed=0))
    assert (move.stage, move.changes["output_file_id"], move.changes["error_file_id"]) == (Stage.ENDED, "file-7", None)
    assert (world.api.calls, world.asked) == ([], [])
    assert move.events == [("status", {"batch_id": world.batch_id, "status": "completed"})]


def test_an_end_whose_files_a_look_has_not_seen_is_read_until_they_are_there(world: World) -> None:
    """The list may lag, as the batch itself does."""
    seen: dict[str, Any] = {
        "status": "completed",
        "end_seen": True,
        "snapshot_at": NOW - 1,
        "counts": Counts(completed=1),
    }
    move = world.poll(**seen)
    assert (move.stage, move.changes["late_at"], world.api.calls) == (Stage.CREATED, NOW, [])
    world.api.finish(world.batch_id)
    assert world.poll(**seen, late_at=NOW - 10).stage == Stage.ENDED
    assert world.api.count("retrieve") == 1


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling", "queued_on_mars", None])
def test_every_other_status_means_it_still_runs(world: World, status: Any) -> None:
    """Statuses are an open set."""
    world.api.batches[world.batch_id].status = status
    assert world.poll().stage == Stage.CREATED


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.EXPIRED, Status.CANCELLED, Status.CANCELED])
def test_a_final_batch_is_downloaded(world: World, status: str) -> None:
    """Expired and cancelled ones too: they have finished, paid rows. Azure spells it with one l."""
    world.api.finish(world.batch_id, status, after=1)
    move = world.poll()
    batch = world.api.batches[world.batch_id]
    assert (move.stage, move.changes["status"]) == (Stage.ENDED, status)
    assert (move.changes["output_file_id"], move.changes["error_file_id"]) == (
        batch.output_file_id,
        batch.error_file_id,
    )


def test_a_refused_batch_has_its_errors_written_down(world: World) -> None:
    """Download accounts for its rows by them."""
    world.api.fail(world.batch_id, [{"code": "invalid_url", "message": "no", "line": 2}])
    move = world.poll()
    assert (move.stage, move.changes["errors"][0].line) == (Stage.ENDED, 2)


def test_a_full_queue_means_a_new_batch_later_under_a_new_key(world: World) -> None:
    """Back to `uploaded`: the file is still there; the old id is spent."""
    world.api.fail(world.batch_id, [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}])
    move = world.poll(try_=2, spent=["batch_old"], intent_at=NOW - 50, calls=["a"], empty_at=NOW)
    assert move.stage == Stage.UPLOADED
    assert (move.changes["try_"], move.changes["spent"]) == (3, ["batch_old", world.batch_id])
    for name in ("batch_id", "intent_at", "calls", "empty_at", "status"):
        assert move.changes[name] is None, name
    assert move.changes["trouble"].code == "token_limit_exceeded"
    assert move.after > 0


def test_a_full_queue_of_a_cancelled_job_is_its_end(world: World) -> None:
    """No new batch for somebody who wants none."""
    world.api.fail(world.batch_id, [{"code": "token_limit_exceeded"}])
    assert world.poll(JOB.evolve(cancel=True)).stage == Stage.ENDED


def test_a_batch_that_the_key_does_not_see_accuses_the_key_until_its_window_has_ended(world: World) -> None:
    """Said at the first look; looked for with growing pauses, ten minutes at most; the shard is not given up."""
    first = world.poll(batch_id="batch_unknown")
    assert (first.stage, first.changes["unseen_at"], first.changes["unfound"]) == (Stage.CREATED, NOW, 1)
    assert first.changes["trouble"].code == "batch_unseen"
    assert "was the key, the project or the base_url changed?" in first.changes["trouble"].message
    assert [event for event, _ in first.events] == ["batch_unseen"]
    again = [world.poll(batch_id="batch_unknown", unseen_at=NOW - 60, unfound=n) for n in range(1, 20)]
    assert [move.events for move in again] == [[]] * 19
    assert [move.after for move in again] == sorted(move.after for move in again)
    assert again[-1].after == 600
    almost = world.poll(batch_id="batch_unknown", unseen_at=NOW - 2 * DAY, unfound=99, created_at=NOW - DAY + 1)
    assert isinstance(almost, Move)


def test_after_its_window_and_a_day_of_looks_an_unknown_batch_is_gone(world: World) -> None:
    """Also one whose window ended while nobody looked: a person needs time to mend the key."""
    old: dict[str, Any] = {"batch_id": "batch_unknown", "created_at": NOW - 9 * DAY}
    assert isinstance(world.poll(**old), Move)
    assert isinstance(world.poll(**old, unseen_at=NOW - DAY + 1, unfound=99), Move)
    problem = world.poll(**old, unseen_at=NOW - DAY, unfound=MAX_GONE - 1)
    assert isinstance(problem, Problem)
    assert problem.code == "batch_gone"
    assert "batchpipe land job_x" in problem.message


def test_a_job_that_is_cancelled_waits_an_hour_for_a_key_that_sees_its_batch(world: World) -> None:
    """Somebody who wants its end gets it, and may still mend the key."""
    job = JOB.evolve(cancel=True)
    unknown: dict[str, Any] = {"batch_id": "batch_unknown", "unfound": 99}
    assert isinstance(world.poll(job, **unknown, unseen_at=NOW - 3_599), Move)
    assert isinstance(world.poll(job, **unknown, unseen_at=NOW - 3_600), Problem)


def test_a_turn_that_may_not_look_leaves_the_trouble_as_it_is(world: World) -> None:
    """Else the day would start over each time."""
    trouble = Problem(code="batch_unseen", message="?")
    move = world.poll(slot=Slot(3.0), unseen_at=NOW - 60, trouble=trouble)
    assert move.changes == {"unseen_at": NOW - 60, "trouble": trouble, "slot_at": NOW + 3}


def test_a_batch_that_is_found_again_was_never_gone(world: World) -> None:
    """Only looks in a row count."""
    assert world.poll(unfound=2).changes["unfound"] == 0


def test_a_provider_that_is_down_says_nothing_about_the_batch(world: World) -> None:
    """The pipeline puts the look off."""
    world.api.fail_next("retrieve", Unavailable("down"))
    with pytest.raises(Unavailable):
        world.poll()


# -- cancelling ----------------------------------------------------------------------------------------------------

CANCELLING = JOB.evolve(cancel=True)


def test_a_cancelled_job_cancels_its_batch_once(world: World) -> None:
    """Then it waits for the end like any other."""
    move = world.poll(CANCELLING)
    assert (move.stage, move.changes["status"], move.changes["cancel_sent"]) == (Stage.CREATED, "cancelling", True)
    move = world.poll(CANCELLING, cancel_sent=True, status="cancelling")
    assert [call.method for call in world.api.calls] == ["cancel_batch", "retrieve"]
    assert move.changes["cancel_sent"]


def test_a_fresh_snapshot_does_not_hold_a_cancel_up(world: World) -> None:
    """Each second of it costs rows."""
    world.poll(CANCELLING, snapshot_at=NOW - 1, status="validating")
    assert world.api.count("cancel_batch") == 1


def test_a_batch_that_has_ended_before_its_cancel_is_read(world: World) -> None:
    """The refusal to cancel is no trouble: its rows are kept."""
    world.api.finish(world.batch_id)
    move = world.poll(CANCELLING)
    assert (move.stage, move.changes["status"]) == (Stage.ENDED, Status.COMPLETED)


def test_a_cancel_without_an_answer_is_sent_again(world: World) -> None:
    """It is not marked as sent while the batch goes on; meanwhile the batch is read."""
    world.api.fail_next("cancel_batch", Unavailable("dropped"))
    assert not world.poll(CANCELLING).changes["cancel_sent"]
    assert world.poll(CANCELLING).changes["cancel_sent"]


def test_only_reading_a_batch_says_that_it_is_gone(world: World) -> None:
    """A server that knows no cancel answers 404 to it; the rows of the batch are paid for all the same."""
    world.api.fail_next("cancel_batch", Gone("no such route", status=404), times=5)
    for _ in range(5):
        move = world.poll(CANCELLING)
        assert isinstance(move, Move)
        assert (move.stage, move.changes["unfound"]) == (Stage.CREATED, 0)


def test_a_file_that_is_named_late_is_waited_for(world: World) -> None:
    """Rows are counted, but no file is told yet: not an end without rows."""
    world.api.finish(world.batch_id)
    world.api.batches[world.batch_id].output_file_id = None
    move = world.poll()
    assert isinstance(move, Move)
    assert move.stage == Stage.CREATED


# -- batches that do not end ---------------------------------------------------------------------------------------

DAY = 86_400.0


def overdue(world: World, age: float, patience: float | None = 7_200.0, **fields: Any) -> Any:
    job, now = fields.pop("job", JOB), NOW + 60
    shard = world.shard(**{"created_at": now - age, **fields})
    return poll(job, shard, world.api, now=now, pace=PACE, take_slot=lambda what, may_park: NOW_SLOT, patience=patience)


def test_a_batch_is_waited_for_beyond_its_window_for_a_while(world: World) -> None:
    """Providers end them late."""
    assert "overdue_at" not in overdue(world, DAY + 7_100).changes
    assert overdue(world, DAY + 7_300).changes["overdue_at"] == NOW + 60


def test_the_providers_own_word_for_the_window_counts(world: World) -> None:
    """Some take longer than was asked for."""
    world.api.batches[world.batch_id].expires_at = NOW + 4 * DAY
    assert "overdue_at" not in overdue(world, 3 * DAY).changes
    world.api.batches[world.batch_id].expires_at = NOW - 7_300
    assert "overdue_at" in overdue(world, 8_000).changes


def test_a_parked_poll_is_due_when_the_window_that_the_provider_named_has_ended(world: World) -> None:
    """What a look has read of it is in the record."""
    seen: dict[str, Any] = {"status": "in_progress", "snapshot_at": NOW - 1}
    until = world.poll(slot=Slot(parked=True), expires_at=NOW + 4 * DAY, **seen).changes["park_until"]
    assert until == NOW + 4 * DAY + 7_200
    assert world.poll(slot=Slot(parked=True), expires_at=5.0, **seen).changes["park_until"] == NOW - 100 + DAY + 7_200


def test_the_end_of_the_window_is_recorded_where_the_provider_shows_it(world: World) -> None:
    assert "expires_at" not in world.poll().changes
    world.api.batches[world.batch_id].expires_at = NOW + DAY
    assert world.poll().changes["expires_at"] == NOW + DAY


@pytest.mark.parametrize("word", [86_400.0, 0.0, NOW * 1_000])
def test_a_word_for_the_window_that_cannot_be_is_not_believed(world: World, word: float) -> None:
    """Seconds from now, or milliseconds: healthy batches would be cancelled at once, or stuck ones never."""
    world.api.batches[world.batch_id].expires_at = word
    assert "overdue_at" not in overdue(world, 100).changes
    assert "overdue_at" in overdue(world, DAY + 7_300).changes


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_a_batch_refused_for_want_of_money_pauses_the_account(world: World, code: str) -> None:
    """No row ran: it is created again from the same file when the account goes on."""
    world.api.fail(world.batch_id, [BatchError(code=code, message="no money")])
    move = world.poll()
    assert (move.stage, move.changes["spent"], move.pause) == (
        Stage.UPLOADED,
        [world.batch_id],
        Problem(code="insufficient_quota", message="no money"),
    )


def test_an_output_file_that_is_named_late_is_waited_for_beside_its_error_file(world: World) -> None:
    """The answers that were counted are paid for; without that file they would look like missing rows."""
    world.api.finish(world.batch_id, rows={"r0": 400})
    batch = world.api.batches[world.batch_id]
    batch.output_file_id, named = None, batch.output_file_id
    for late_at in (None, NOW - 21_599):
        move = world.poll(late_at=late_at)
        assert (move.stage, move.changes["trouble"].code) == (Stage.CREATED, "files_late")
        assert move.after > 0
    assert world.poll(late_at=NOW - 21_600).stage == Stage.ENDED
    assert world.poll(CANCELLING, late_at=NOW - 600).stage == Stage.ENDED
    batch.output_file_id = named
    assert world.poll(late_at=NOW - 1).stage == Stage.ENDED


def test_parked_polls_do_not_march_in_step(world: World) -> None:
    """If looks stop, all would come back in the same second."""
    pauses = {round(world.poll(slot=Slot(parked=True), **SEEN).after) for _ in range(200)}
    assert len(pauses) > 50


def test_nothing_is_overdue_where_that_is_switched_off(world: World) -> None:
    """Azure goes on after the window, and says so."""
    assert "overdue_at" not in overdue(world, 90 * DAY, patience=None).changes
    assert Account(kind="azure").patience_seconds is None
    assert Account(overdue_seconds=0).patience_seconds is None
    assert Account(kind="azure", overdue_seconds=5).patience_seconds == 5
    assert Account().patience_seconds == 7_200


def test_an_overdue_batch_is_cancelled_and_what_it_has_is_landed(world: World) -> None:
    """At the very next look; its rows that did not run are sent again, as the job is not being cancelled."""
    found = overdue(world, 2 * DAY)
    assert (found.stage, found.after, found.changes["trouble"].code) == (Stage.CREATED, 0.0, "batch_overdue")
    move = overdue(world, 2 * DAY, overdue_at=NOW, snapshot_at=NOW + 59, status="in_progress")
    assert world.api.batches[world.batch_id].status == "cancelling"
    assert move.changes["cancel_sent"]
    world.api.finish(world.batch_id, Status.CANCELLED, after=1)
    move = overdue(world, 2 * DAY, overdue_at=NOW, cancel_sent=True)
    assert (move.stage, move.changes["status"]) == (Stage.ENDED, Status.CANCELLED)


def test_a_batch_that_does_not_end_even_when_cancelled_is_given_up_a_day_later(world: World) -> None:
    """Nobody can know what became of its rows: they are missing for good, for they may be paid."""
    seen: dict[str, Any] = {"cancel_sent": True, "status": "cancelling"}
    assert isinstance(overdue(world, 3 * DAY, overdue_at=NOW + 60 - DAY, snapshot_at=NOW + 59, **seen), Move)
    problem = overdue(world, 3 * DAY, overdue_at=NOW - DAY, snapshot_at=NOW + 1, **seen)
    assert isinstance(problem, Problem)
    assert problem.code == "batch_stuck"


def test_workers_that_were_away_for_days_look_before_they_give_a_batch_up(world: World) -> None:
    """It may have ended meanwhile; and if nobody was there to cancel it, its time begins with the cancel."""
    world.api.batches[world.batch_id].status = "in_progress"
    move = overdue(world, 5 * DAY, overdue_at=NOW - 2 * DAY, snapshot_at=NOW - 2 * DAY, status="in_progress")
    assert isinstance(move, Move)
    assert (move.changes["cancel_sent"], move.changes["overdue_at"] > NOW - 60) == (True, True)
    world.api.finish(world.batch_id, Status.CANCELLED, after=1)
    move = overdue(world, 5 * DAY, overdue_at=NOW - 2 * DAY, cancel_sent=True)
    assert isinstance(move, Move)
    assert move.stage == Stage.ENDED


def test_a_batch_that_names_answers_is_not_made_again_for_a_full_queue(world: World) -> None:
    """Some providers count nothing: what it names was run."""
    batch = world.api.batches[world.batch_id]
    world.api.finish(world.batch_id, Status.FAILED)
    batch.counts, batch.output_file_id = Counts(), "file_out"
    batch.errors = [BatchError(code="token_limit_exceeded", message="x")]
    assert world.poll().stage == Stage.ENDED
    batch.output_file_id = None
    assert world.poll().stage == Stage.UPLOADED


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", DAY), ("7d", 7 * DAY), ("48H", 2 * DAY), ("30m", 1_800), ("soon", DAY), ("", DAY)]
)
def test_completion_windows_are_read_leniently(window: str, seconds: float) -> None:
    """They are passed on as they are; a day is meant by what says nothing."""
    assert window_seconds(window) == seconds


def test_a_full_queue_after_rows_were_answered_is_no_reason_to_send_them_again(world: World) -> None:
    """They are paid: what there is is landed."""
    world.api.fail(world.batch_id, [BatchError(code="token_limit_exceeded", message="full")])
    world.api.batches[world.batch_id].counts = Counts(total=2, completed=1, failed=0)
    world.api.batches[world.batch_id].output_file_id = "file-1"
    assert world.poll().stage == Stage.ENDED


# -- webhooks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "pause"), [(0.1, 1.0), (8.0, 8.0), (300.0, 10.0), (601.0, 10.0)])
def test_a_read_that_lags_behind_the_webhook_is_repeated_soon(world: World, age: float, pause: float) -> None:
    """After a second, then at longer and longer intervals, never longer than the usual one; for ten minutes."""
    move = world.poll(slot=Slot(60.0), news=True, news_at=NOW - age, **SEEN)
    assert (move.stage, world.api.count("retrieve")) == (Stage.CREATED, 1)
    assert pause <= move.after <= pause * 1.1
    assert ("news" in move.changes) == (age > 600)
