"""Creating: the paid call goes out once, and whatever it made is found again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import pytest

from batchpipe.errors import AmbiguousResult, Gone, LeaseLost, Paused, Refused, Unavailable
from batchpipe.model.records import JobRecord, Move, ShardRecord, Stage
from batchpipe.model.retry import FILE_UNFOUND
from batchpipe.pipeline.create_actions import CANCELLED, GiveUp, Over, Settled
from batchpipe.pipeline.create_search import MOST_CALLS, UNREAD_SECONDS
from batchpipe.pipeline.looks import Walk
from batchpipe.pipeline.noted_walks import NotedWalk, telling_walk
from batchpipe.pipeline.steps.create import MAX_UPLOADS, create
from batchpipe.pipeline.unanswered import Search
from batchpipe.pipeline.walks import BEGINNING, is_past
from batchpipe.testing import FakeOpenAI

JOB = JobRecord(id="job_x", metadata={"team": "a"}, extra={"output_expires_after": {"seconds": 1}})
NOW, DAY = 1_000_000.0, 86_400.0


class FakeTurn:
    """A record under a lease, as far as create may touch it."""

    grace_seconds = 30.0
    lease_seconds = 60.0
    unseen_seconds, refusal_seconds = DAY, 6 * 3_600.0
    lists_batches, echoes_metadata, resend_unanswered = True, True, False

    def __init__(self) -> None:
        self.at = NOW
        self.api: FakeOpenAI
        self.shard: ShardRecord  #: whose turn it is
        self.walks: list[NotedWalk] = []
        self.elsewhere = False  #: somebody else walks just now
        self.settled: str | None = None
        self.cancelled = self.late = self.lost = False
        self.done: list[str] = []
        self.verdicts: dict[str, str] = {}
        self.recorded: str | None = None
        self.others: dict[str, ShardRecord] = {}  #: batches that records of other shards name

    def set(self, **declared: bool) -> None:
        """What the account's settings say of its provider."""
        vars(self).update(declared)

    def now(self) -> float:
        return self.at

    def ahead(self) -> float:
        return 0.0

    def leapt(self, since: float) -> bool:
        return False

    # -- the list, as for the visitor of looks

    @property
    def own(self) -> tuple[str, int]:
        return (self.shard.job, self.shard.index)

    def walk(self, after: float, since: float) -> NotedWalk | Settled | None:
        if (known := self.told(after, since)) is not None:
            return known
        if self.elsewhere:
            return None
        search = Search(self, self.api, reads=True)
        begun, name, reached = self.at, None, BEGINNING
        while True:
            page = self.api.batch_page(name)
            search.visit(page.batches, frozenset())
            if not page.more:
                break
            name = page.batches[-1].id
            if is_past(page.batches, since):
                reached = page.batches[-1].created_at or BEGINNING
                break
        search.walked(Walk("default", begun, self.at, reached, whole=True, jumped=False))
        return Settled(here=self.settled == "ok") if self.settled else self.told(after, since)

    def told(self, after: float, since: float) -> NotedWalk | None:
        return telling_walk(self.walks, after=after, since=since, seen_as=self.api.identity)

    def patience(self) -> float:
        return 60.0

    def spread(self) -> float:
        return 0.0

    def oldest(self) -> float | None:
        return (self.shard.intent_at or 0.0) - 300.0

    def unanswered(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], ShardRecord]:
        return {place: self.shard for place in places if place == self.own}

    def of_files(self, file_ids: Sequence[str]) -> list[tuple[str, int] | None]:
        files = (self.shard.file_id, *self.shard.unused_files)
        return [self.own if file_id in files else None for file_id in file_ids]

    def adopt(self, shard: ShardRecord, batch: Any, *, sure: bool) -> str:
        verdict = self.settle(batch, sure=sure)
        self.settled = self.settled or verdict
        return verdict

    def note_walk(self, walk: NotedWalk) -> None:
        self.walks.append(walk)

    # -- the call

    def intend(self, identity: str) -> bool:
        if self.lost:
            raise LeaseLost
        self.done.append("intend")
        return self.cancelled

    def withdraw(self) -> None:
        self.done.append("withdraw")

    def too_late_to_call(self) -> bool:
        return self.late

    def record_named(self, batch_ids: Mapping[str, bool]) -> None:
        self.done.append(f"name {' '.join(batch_ids)}")

    def known(self, batch_ids: Sequence[str]) -> dict[str, ShardRecord]:
        return {name: self.others[name] for name in batch_ids if name in self.others}

    def settle(self, batch: Any, *, sure: bool = False) -> str:
        """The store's rule: the recorded id wins."""
        self.done.append(f"settle {batch.id}")
        if batch.id in self.others and not sure:
            return "other"
        if batch.id in self.verdicts:
            return self.verdicts[batch.id]
        if self.recorded is None:
            self.recorded = batch.id
            return "ok"
        return "known" if self.recorded == batch.id else "cancel"


class World:
    """A provider with one uploaded file, a turn, and a shard about it."""

    def __init__(self) -> None:
        self.api = FakeOpenAI(lambda: self.turn.at)
        self.turn = FakeTurn()
        self.turn.api = self.api
        self.file_id = self.api.upload(io.BytesIO(b'{"custom_id":"r0"}\n'), "f", lambda: None)
        self.api.calls.clear()

    def shard(self, **fields: Any) -> ShardRecord:
        return ShardRecord(
            **{"job": "job_x", "index": 3, "stage": Stage.UPLOADED.value, "file_id": self.file_id, **fields}
        )

    def unanswered(self, **fields: Any) -> ShardRecord:
        """A shard with a call of which nobody knows what became."""
        return self.shard(
            **{"intent_at": NOW - 10, "calls": ["older"], "latest_call": "older", "call_over_at": NOW - 8, **fields}
        )

    def create(self, shard: ShardRecord, job: JobRecord = JOB) -> Any:
        self.turn.shard, self.turn.settled = shard, None
        return create(job, shard, self.api, self.turn)

    def add_batch(self, key: str | None = "job_x:3:1", file_id: str | None = None) -> str:
        metadata = {"batchpipe_key": key} if key else {}
        return self.api.create_batch(
            endpoint="/v1/x",
            completion_window="24h",
            input_file_id=file_id or self.file_id,
            metadata=metadata,
            extra={},
        ).id


@pytest.fixture
def world() -> World:
    return World()


def status(world: World, batch_id: str) -> str:
    return world.api.batches[batch_id].status


# -- the call ------------------------------------------------------------------------------------------------------


def test_the_intent_is_recorded_before_the_call_and_the_id_after_it(world: World) -> None:
    """With our metadata beside the user's, and the user's further arguments."""
    assert world.create(world.shard(try_=2)) == Over(settled=True)
    (batch,) = world.api.batches.values()
    assert world.turn.done == ["intend", f"settle {batch.id}"]
    assert batch.metadata == {
        "team": "a",
        "batchpipe_job": "job_x",
        "batchpipe_shard": "3",
        "batchpipe_key": "job_x:3:2",
    }
    assert batch.arguments["output_expires_after"] == {"seconds": 1}
    assert (batch.arguments["endpoint"], batch.arguments["completion_window"]) == (JOB.endpoint, "24h")


def test_without_an_intent_nobody_looks(world: World) -> None:
    """The list is asked only when a call may be unanswered."""
    world.create(world.shard())
    assert world.api.count("batch_page") == 0


def test_a_lost_lease_stops_it_before_the_call(world: World) -> None:
    """Somebody else may be at it."""
    world.turn.lost = True
    with pytest.raises(LeaseLost):
        world.create(world.shard())
    assert world.api.count("create_batch") == 0


def test_too_late_to_call_gives_the_turn_up(world: World) -> None:
    """A worker that was frozen between claim and call must not call. The intent is taken back."""
    world.turn.late = True
    ending = world.create(world.shard())
    assert (ending.stage, world.turn.done) == (Stage.UPLOADED, ["intend", "withdraw"])
    assert world.api.count("create_batch") == 0


@pytest.mark.parametrize("verdict", ["late", "known"])
def test_an_id_that_somebody_else_goes_on_with_ends_the_turn(world: World, verdict: str) -> None:
    """The batch is recorded; it lives."""
    world.turn.verdicts["batch_0001"] = verdict
    assert world.create(world.shard()) == Over(settled=False)
    assert status(world, "batch_0001") == "validating"


def test_a_batch_that_must_not_live_is_cancelled(world: World) -> None:
    """The shard has another, or has ended."""
    world.turn.verdicts["batch_0001"] = "cancel"
    assert world.create(world.shard()) == Over(settled=False)
    assert status(world, "batch_0001") == "cancelling"


def test_trouble_with_cancelling_a_surplus_batch_does_not_cost_the_turn(world: World) -> None:
    """It is logged; the sweep cancels it later."""
    world.turn.verdicts["batch_0001"] = "cancel"
    world.api.fail_next("cancel_batch", Unavailable("busy"))
    assert world.create(world.shard()) == Over(settled=False)


# -- no clear answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processed", [True, False])
def test_an_unanswered_call_is_looked_for_soon_and_not_repeated(world: World, processed: bool) -> None:
    """The intent stays: nobody knows whether a batch was made."""
    world.api.fail_next("create_batch", AmbiguousResult("dropped"), processed=processed)
    ending = world.create(world.shard())
    assert (ending.stage, ending.changes["trouble"].code) == (Stage.UPLOADED, "unanswered")
    assert 0 < ending.after <= 5
    assert world.turn.done == ["intend"]
    assert world.api.count("create_batch") == 1


def test_the_batch_of_an_unanswered_call_is_adopted_by_its_key(world: World) -> None:
    """Among those of other shards and tries."""
    ours = world.add_batch()
    for other in ("job_x:4:1", "job_x:3:2", "job_y:3:1"):
        world.add_batch(other)
    assert world.create(world.unanswered()) == Over(settled=True)
    assert world.turn.recorded == ours
    assert world.api.count("create_batch") == 4


def test_without_metadata_in_the_list_our_unique_file_tells(world: World) -> None:
    """Some servers do not echo it."""
    ours = world.add_batch()
    other = world.api.upload(io.BytesIO(b"{}"), "f", lambda: None)
    world.add_batch(None, other)
    world.api.echo_metadata = False
    assert world.create(world.unanswered()) == Over(settled=True)
    assert world.turn.recorded == ours


def test_a_batch_of_our_file_under_another_key_is_not_ours(world: World) -> None:
    """The same file serves several tries; the key is the truth where it is told."""
    world.add_batch("job_x:3:1")
    ending = world.create(world.unanswered(try_=2))
    assert (ending.stage, world.turn.recorded) == (Stage.UPLOADED, None)


def test_spent_ids_are_never_adopted(world: World) -> None:
    """They were given up on purpose."""
    spent = world.add_batch()
    ending = world.create(world.unanswered(spent=[spent]))
    assert (ending.stage, world.turn.recorded) == (Stage.UPLOADED, None)


def test_an_ended_batch_is_adopted_too(world: World) -> None:
    """Its rows are paid for."""
    ours = world.add_batch()
    world.api.finish(ours)
    assert world.create(world.unanswered()) == Over(settled=True)


def test_of_several_the_oldest_live_one_is_kept(world: World) -> None:
    """A failed one is worth less than a younger that lives; the others are cancelled."""
    dead, kept, surplus = (world.add_batch() for _ in range(3))
    for number, batch_id in enumerate((dead, kept, surplus)):
        world.api.batches[batch_id].created_at = NOW + number
    world.api.fail(dead, [])
    assert world.create(world.unanswered()) == Over(settled=True)
    assert world.turn.recorded == kept
    assert [status(world, batch_id) for batch_id in (dead, kept, surplus)] == ["failed", "validating", "cancelling"]


def test_of_several_the_recorded_one_is_never_cancelled(world: World) -> None:
    """A thawed worker may have settled the younger one after we read the record."""
    older, younger = world.add_batch(), world.add_batch()
    world.turn.recorded = younger
    assert world.create(world.unanswered()) == Over(settled=False)
    assert [status(world, batch_id) for batch_id in (older, younger)] == ["cancelling", "validating"]


def test_only_batches_since_the_first_intent_are_looked_through(world: World) -> None:
    """Less five minutes, for clocks differ."""
    for number in range(450):
        world.turn.at = NOW + number
        world.add_batch("job_old:0:1")
    world.create(world.unanswered(intent_at=NOW + 449.0))
    (walk,) = world.turn.walks
    assert world.api.count("batch_page") == 4
    assert NOW + 49 < walk.reached < NOW + 149


def test_after_an_empty_look_the_grace_period_begins(world: World) -> None:
    """A list may lag behind the call."""
    assert world.create(world.unanswered()) == Move(stage=Stage.UPLOADED, after=30.0, changes={"empty_at": NOW})
    assert world.api.count("create_batch") == 0


def test_within_the_grace_period_it_looks_but_does_not_call(world: World) -> None:
    """A sweep or a webhook may publish it again before the time."""
    ending = world.create(world.unanswered(empty_at=NOW - 10))
    assert ending == Move(stage=Stage.UPLOADED, after=20.0)
    assert world.api.count("create_batch") == 0


def test_after_the_second_empty_look_it_calls_again(world: World) -> None:
    """Under the same key, so that both could be found."""
    assert world.create(world.unanswered(empty_at=NOW - 30)) == Over(settled=True)
    assert [call.method for call in world.api.calls] == ["batch_page", "file_status", "create_batch"]


def test_what_turns_up_at_the_second_look_is_adopted(world: World) -> None:
    """That is what the grace period is for."""
    ours = world.add_batch()
    world.create(world.unanswered(empty_at=NOW - 30))
    assert world.turn.recorded == ours
    assert world.api.count("create_batch") == 1


def test_a_list_that_failed_is_no_empty_look(world: World) -> None:
    """Nothing is known, so nothing is called."""
    world.api.fail_next("batch_page", Unavailable("busy"))
    with pytest.raises(Unavailable):
        world.create(world.unanswered(empty_at=NOW - 100))
    assert world.api.count("create_batch") == 0


def test_where_the_provider_cannot_list_nobody_calls_again(world: World) -> None:
    """A second call might pay twice; the shard says why it waits, and only a cancelled job goes on, without it."""
    shard = world.unanswered(empty_at=NOW - 100)
    world.api.fail_next("batch_page", Refused("no list here", status=405), times=2)
    waiting = world.create(shard)
    assert isinstance(waiting, Move)
    assert (waiting.stage, waiting.changes["trouble"].code) == (Stage.UPLOADED, "create_unknown")
    assert "empty_at" not in waiting.changes
    ending = world.create(shard, JOB.evolve(cancel=True))
    assert isinstance(ending, GiveUp)
    assert ending.problem.code == "create_unknown"
    assert world.api.count("create_batch") == 0


# -- a clear no ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unavailable("slow down", status=429), Unavailable("x", code="not_sent"), Paused()])
def test_a_no_that_may_pass_withdraws_the_call(world: World, error: Exception) -> None:
    """Nothing was made; the pipeline puts the shard off."""
    world.api.fail_next("create_batch", error)
    with pytest.raises(type(error)):
        world.create(world.shard())
    assert world.turn.done == ["intend", "withdraw"]


@pytest.mark.parametrize(
    "error",
    [
        Refused("bad endpoint", code="invalid_value", status=400, param="endpoint"),
        Refused("bad endpoint", code="invalid_value", status=400),
        Refused("metadata.file says: it is not ready", status=400, param="metadata.file"),
    ],
)
def test_a_final_no_gives_the_shard_up(world: World, error: Refused) -> None:
    """In the provider's own words."""
    world.api.fail_next("create_batch", error)
    ending = world.create(world.shard())
    assert isinstance(ending, GiveUp)
    assert (ending.problem.code, ending.problem.message) == (error.code, error.message)
    assert world.turn.done == ["intend", "withdraw"]


def test_a_final_no_waits_for_an_older_unanswered_call(world: World) -> None:
    """Its batch may yet turn up; giving up now would lose paid rows."""
    world.api.fail_next("create_batch", Refused("no", code="invalid_value", status=400))
    ending = world.create(world.unanswered(empty_at=NOW - 30))
    assert isinstance(ending, Move)
    assert (ending.stage, ending.changes["refusal"].code) == (Stage.UPLOADED, "invalid_value")


def test_the_older_call_is_looked_for_once_more_then_the_no_counts(world: World) -> None:
    """And no further call goes out."""
    world.api.fail_next("create_batch", Refused("no", code="invalid_value", status=400))
    refusal = world.create(world.unanswered(empty_at=NOW - 30)).changes["refusal"]
    waiting = world.create(world.unanswered(refusal=refusal))
    assert waiting.changes == {"empty_at": NOW}
    assert world.create(world.unanswered(refusal=refusal, empty_at=NOW - 30)) == GiveUp(refusal, refused=True)
    assert world.api.count("create_batch") == 1


def test_a_fresh_file_that_is_not_found_is_tried_again_with_growing_pauses(world: World) -> None:
    """A provider may know a file only after a moment; when it stays unknown, it is uploaded again. Uploads that were
    refused, hundreds while the account was full, are none of those that nobody found.
    """
    shard, pauses = world.shard(file_id="file-lost", uploads=200), []
    while (ending := world.create(shard)).stage == Stage.UPLOADED:
        pauses.append(ending.after)
        world.turn.at += ending.after
        shard = shard.evolve(backoff=ending.changes["backoff"], refused_at=ending.changes["refused_at"])
    assert pauses == sorted(set(pauses))
    assert FILE_UNFOUND.first <= sum(pauses) < FILE_UNFOUND.pause(1)
    assert ending.stage == Stage.PLANNED
    assert (ending.changes["file_id"], ending.changes["try_"], ending.changes["refused_at"]) == (None, 2, None)


def test_creates_answered_for_ever_with_anothers_batch_come_less_often_and_end(world: World) -> None:
    """A cache before the provider that repeats an answer: each call is looked for twice, the pauses between calls grow
    to ten minutes, and after hours the rows end with a reason that names what to look at.
    """
    other = world.add_batch(key="job_y:0:1", file_id=world.api.upload(io.BytesIO(b"{}\n"), "other", lambda: None))
    world.turn.others[other] = ShardRecord(job="job_y", index=0, batch_id=other)
    answered = world.api.batches[other]
    calls, shard = list[float](), world.shard()

    def cached(**_: Any) -> Any:
        calls.append(world.turn.at)
        return answered

    cast(Any, world.api).create_batch = cached
    while isinstance(ending := world.create(shard), Move):
        assert 0 < ending.after <= 600
        assert len(calls) < 100
        changes = {"trouble": None, **ending.changes}  # as the turn does it
        assert changes["trouble"].code == "answered_with_other_batch"
        called = world.turn.at in calls
        shard = shard.evolve(**changes, **({"intent_at": NOW, "calls": ["c"], "empty_at": None} if called else {}))
        world.turn.at += ending.after
    pauses = [after - before for before, after in pairwise(calls)]
    assert pauses[:-1] == sorted(pauses[:-1])
    assert (pauses[0] < 60, 600 <= pauses[-2] < 700, len(calls) < 50) == (True, True, True)
    assert 6 * 3_600 <= calls[-1] - calls[0] < 7 * 3_600
    assert isinstance(ending, GiveUp)
    assert (ending.refused, ending.problem.code) == (True, "answered_with_other_batch")
    assert all(word in ending.problem.message for word in (other, "gateway", "batchpipe retry job_x"))


def test_a_file_that_is_never_found_is_not_uploaded_for_ever(world: World) -> None:
    """Its rows end with what was said."""
    lost = [f"file-{number}" for number in range(1, MAX_UPLOADS)]
    ending = world.create(world.shard(file_id="file-lost", unused_files=lost, refused_at=NOW - 7 * 3_600))
    assert isinstance(ending, GiveUp)
    assert (ending.refused, ending.problem.code) == (True, "file_not_found")


def test_a_file_that_was_uploaded_a_thousand_times_can_be_not_found(world: World) -> None:
    """The pause that doubles with them has an end."""
    ending = world.create(world.shard(file_id="file-lost", uploads=2_000, unused_files=["file-x"] * 2_000))
    assert (ending.stage, ending.changes["trouble"].code) == (Stage.UPLOADED, "file_not_found")


@pytest.mark.parametrize(
    "error",
    [
        Refused("File file-1 is not in the state processed", code="http_400", status=400),
        Refused("Please wait", code="fileNotReady", status=400),
        Refused("no", code="invalid_value", status=400, param="input_file_id"),
        Gone("{'detail': 'Not Found'}", status=404),
        Unavailable("Cannot find file", code="file_not_found", status=400),
    ],
)
def test_a_no_that_concerns_the_state_of_the_input_file_is_waited_out_for_hours(world: World, error: Exception) -> None:
    """Said at the first; then its rows end with that reason and what to do."""
    world.api.fail_next("create_batch", error, times=99)
    shard, events = world.shard(), list[str]()
    while isinstance(ending := world.create(shard), Move):
        assert (ending.stage, ending.changes["trouble"].code) == (Stage.UPLOADED, "file_not_ready")
        assert 0 < ending.after <= 600
        events += [event for event, _ in ending.events]
        world.turn.at += ending.after
        shard = shard.evolve(backoff=ending.changes["backoff"], refused_at=ending.changes["refused_at"])
    assert (isinstance(ending, GiveUp), events) == (True, ["refused_for_now"])
    assert world.turn.at - NOW == pytest.approx(world.turn.refusal_seconds)
    assert "batchpipe retry job_x" in ending.problem.message


def test_a_file_that_the_provider_still_works_on_is_waited_for_whatever_the_refusal_says(world: World) -> None:
    """Its status says it."""
    world.api.files[world.file_id].status = "pending"
    world.api.fail_next("create_batch", Refused("no", code="invalid_request", status=400))
    assert world.create(world.shard()).changes["trouble"].code == "file_not_ready"
    world.api.files[world.file_id].status = "processed"
    assert world.create(world.shard()) == Over(settled=True)


def test_an_account_that_is_full_is_waited_for(world: World) -> None:
    """Room is made by batches that end, or by a person."""
    world.api.fail_next("create_batch", Refused("too many batches", code="quotaExceeded", status=400))
    move = world.create(world.shard())
    assert (move.stage, move.changes["trouble"].code) == (Stage.UPLOADED, "account_full")


# -- the key of another project ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"empty_at": NOW - 30}, {"empty_at": NOW - 30, "unfound": 9}])
def test_an_empty_list_says_nothing_to_a_key_that_does_not_see_the_input_file(
    world: World, fields: dict[str, Any]
) -> None:
    """It is of another project: what the unanswered call made is not there, and a second call would be paid twice."""
    made = world.add_batch()
    world.api.calls.clear()
    world.api.project = "another"
    move = world.create(world.unanswered(**fields))
    assert (move.stage, move.changes["trouble"].code, move.changes["unseen_at"]) == (
        Stage.UPLOADED,
        "batch_unseen",
        NOW,
    )
    assert "empty_at" not in move.changes
    world.api.project = ""
    assert world.create(world.unanswered(unseen_at=NOW, **fields)) == Over(settled=True)
    assert (world.turn.recorded, world.api.count("create_batch")) == (made, 0)


def test_who_never_sees_the_input_file_again_ends_without_a_second_call(world: World) -> None:
    """After the window of the call and a day: its rows may be paid, and they say so."""
    world.api.project = "another"
    shard = world.unanswered(empty_at=NOW - 30, unseen_at=NOW, unfound=9)
    world.turn.at = NOW + DAY - 11
    assert isinstance(world.create(shard), Move)
    world.turn.at = NOW + DAY
    ending = world.create(shard)
    assert isinstance(ending, GiveUp)
    assert (ending.problem.code, ending.refused, world.api.count("create_batch")) == ("create_unknown", False, 0)
    world.turn.at = NOW + 60
    assert world.create(shard, CANCELLING).problem.code == "create_unknown"


def test_a_file_that_is_not_found_while_a_call_is_unanswered_is_not_uploaded_again(world: World) -> None:
    """A new file would be seen by a key that sees nothing else."""
    world.api.fail_next("create_batch", Refused("no such file", status=404))
    world.api.fail_next("file_status", Gone("not found", status=404), times=2)
    shard = world.unanswered(empty_at=NOW - 30, refused_at=NOW - 3_600)
    assert world.create(shard).stage == Stage.UPLOADED
    assert world.create(shard).stage == Stage.UPLOADED


# -- cancelling ----------------------------------------------------------------------------------------------------

CANCELLING = JOB.evolve(cancel=True)


def test_a_cancelled_job_never_calls(world: World) -> None:
    """No intent: nothing to look for."""
    assert world.create(world.shard(), CANCELLING) == GiveUp(CANCELLED)
    assert world.api.calls == []


def test_a_cancel_that_comes_between_claim_and_call_is_seen_by_the_intent(world: World) -> None:
    """The last moment at which it costs nothing."""
    world.turn.cancelled = True
    assert world.create(world.shard()) == GiveUp(CANCELLED)
    assert world.turn.done == ["intend", "withdraw"]
    assert world.api.calls == []


def test_a_cancel_before_a_second_call_leaves_the_first_to_be_looked_for(world: World) -> None:
    """The older call's batch may yet turn up."""
    world.turn.cancelled = True
    ending = world.create(world.unanswered(empty_at=NOW - 30))
    assert (ending.stage, world.turn.done) == (Stage.UPLOADED, ["intend", "withdraw"])
    assert world.api.count("create_batch") == 0


def test_a_cancelled_job_adopts_what_it_may_have_paid_for(world: World) -> None:
    """Its finished rows are kept."""
    ours = world.add_batch()
    assert world.create(world.unanswered(), CANCELLING) == Over(settled=True)
    assert world.turn.recorded == ours


def test_a_cancelled_job_gives_up_after_the_second_empty_look(world: World) -> None:
    """It waits for the grace period like any other, and then does not call."""
    assert world.create(world.unanswered(), CANCELLING).changes == {"empty_at": NOW}
    assert world.create(world.unanswered(empty_at=NOW - 30), CANCELLING) == GiveUp(CANCELLED)
    assert world.api.count("create_batch") == 0


# -- what is declared of the provider ------------------------------------------------------------------------------


def test_a_provider_declared_without_a_list_is_not_asked_for_it(world: World) -> None:
    """An unanswered call waits for a person: a second one might be paid twice."""
    world.turn.set(lists_batches=False)
    waiting = world.create(world.unanswered())
    assert (waiting.stage, waiting.changes["trouble"].code) == (Stage.UPLOADED, "create_unknown")
    assert world.api.calls == []


def test_people_are_told_once_that_nobody_can_tell_what_a_call_made(world: World) -> None:
    """When the shard begins to wait for a person, not with each of its turns, which come once a minute."""
    world.turn.set(lists_batches=False)
    waiting = world.create(world.unanswered())
    [(event, fields)] = waiting.events
    assert (event, fields["message"]) == ("create_unknown", waiting.changes["trouble"].message)
    assert world.create(world.unanswered(trouble=waiting.changes["trouble"])).events == []


@pytest.mark.parametrize("declared", [True, False])
def test_a_call_is_repeated_without_a_list_only_where_that_is_asked_for(world: World, declared: bool) -> None:
    """After the grace period, as after two empty looks; docs/guarantees.md says what that may cost."""
    world.turn.set(lists_batches=not declared, resend_unanswered=True)
    if not declared:
        world.api.fail_next("batch_page", Refused("unknown route", status=404), times=9)
    first = world.create(world.unanswered())
    assert (first.stage, first.after, first.changes) == (Stage.UPLOADED, 30.0, {"empty_at": NOW})
    world.turn.at += 31
    assert world.create(world.unanswered(empty_at=NOW)) == Over(settled=True)
    assert world.api.count("create_batch") == 1


def test_where_the_list_shows_no_metadata_the_input_file_alone_tells(world: World) -> None:
    """Even if it shows something else there."""
    world.turn.set(echoes_metadata=False)
    made = world.add_batch(key="nonsense of a gateway")
    assert world.create(world.unanswered()) == Over(settled=True)
    assert world.turn.recorded == made


# -- ids that answers name -----------------------------------------------------------------------------------------


def unclear(**named: bool) -> AmbiguousResult:
    error = AmbiguousResult("what was that")
    error.named = named
    return error


def test_an_id_that_an_unclear_answer_named_is_recorded_before_anything_else(world: World) -> None:
    """A crash must not forget it."""
    world.api.fail_next("create_batch", unclear(batch_0001=True))
    ending = world.create(world.shard())
    assert (ending.stage, world.turn.done) == (Stage.UPLOADED, ["intend", "name batch_0001"])
    assert world.api.count("retrieve") == 0


def test_the_batch_that_an_answer_was_about_is_read_and_adopted_whatever_it_shows(world: World) -> None:
    """A gateway rewrites input files and shows no metadata; the list is not even asked."""
    made = world.add_batch()
    world.api.rewrites_files, world.api.echo_metadata = True, False
    assert world.create(world.unanswered(named={made: True})) == Over(settled=True)
    assert (world.turn.recorded, world.api.count("batch_page")) == (made, 0)


@pytest.mark.parametrize("about", [True, False])
def test_nobody_calls_while_a_named_batch_cannot_be_read(world: World, about: bool) -> None:
    """The provider is down: that says nothing."""
    world.api.fail_next("retrieve", Unavailable("down"), times=3)
    for _ in range(3):
        with pytest.raises(Unavailable):
            world.create(world.unanswered(named={"batch_x1": about}, empty_at=NOW - 9_000))
    assert world.api.count("create_batch") == 0


def test_a_named_batch_that_the_provider_does_not_know_is_asked_for_longer_than_the_list(world: World) -> None:
    """A read may lag behind a create."""
    shard = world.unanswered(named={"batch_x1": True}, empty_at=NOW)
    world.turn.at = NOW + UNREAD_SECONDS - 1
    assert isinstance(world.create(shard), Move)
    world.turn.at = NOW + UNREAD_SECONDS
    assert world.create(shard) == Over(settled=True)


def test_an_answer_with_another_shards_batch_is_no_answer(world: World) -> None:
    """Neither adopted nor cancelled; ours is looked for in the list."""
    other = world.add_batch("job_x:2:1")
    world.turn.others[other] = ShardRecord(job="job_x", index=2, batch_id=other)
    ours = world.add_batch()
    assert world.create(world.unanswered(named={other: True})) == Over(settled=True)
    assert (world.turn.recorded, status(world, other)) == (ours, "validating")


def test_a_refusal_that_names_our_batch_is_no_refusal(world: World) -> None:
    """A gateway has repeated the call, and was told that the batch exists."""
    error = Refused("batch_0001 exists", status=400)
    error.named = {"batch_0001": False}
    world.api.fail_next("create_batch", error, processed=True)
    assert world.create(world.shard()) == Over(settled=True)
    assert "withdraw" not in world.turn.done


def test_a_refusal_that_names_the_batch_of_others_is_one(world: World) -> None:
    """By no word of its own is it ours."""
    other = world.add_batch(None, world.api.upload(io.BytesIO(b"{}"), "f", lambda: None))
    error = Refused(f"{other} is in the way", status=400)
    error.named = {other: False}
    world.api.fail_next("create_batch", error)
    assert isinstance(world.create(world.shard()), GiveUp)


def blind(world: World) -> str:
    """A list without metadata and with other file ids, by a batch of ours in it that we know; and one we do not."""
    known, world.api.list_metadata = world.add_batch("job_x:2:1"), False
    world.turn.others[known] = ShardRecord(job="job_x", index=2, file_id=world.file_id, batch_id=known)
    return world.add_batch()


def test_what_a_list_does_not_show_is_read_one_by_one(world: World) -> None:
    """The list keeps metadata back, the batch itself does not."""
    ours = blind(world)
    world.api.rewrites_files = True
    assert world.create(world.unanswered(empty_at=NOW - 999)) == Over(settled=True)
    assert world.turn.recorded == ours


def test_a_list_that_shows_of_no_batch_whose_it_is_counts_as_none(world: World) -> None:
    """Nobody calls again, for as long as it takes; a cancel ends it with rows that say why."""
    blind(world)
    world.api.rewrites_files, world.api.echo_metadata = True, False
    for _ in range(5):
        move = world.create(world.unanswered(empty_at=NOW - 999))
        assert (move.stage, move.changes["trouble"].code) == (Stage.UPLOADED, "create_unknown")
    given_up = world.create(world.unanswered(empty_at=NOW - 999), JOB.evolve(cancel=True))
    assert (given_up.problem.code, given_up.refused) == ("create_unknown", False)
    assert world.api.count("create_batch") == 2


def test_a_list_without_any_batch_that_could_be_ours_is_an_empty_look(world: World) -> None:
    """However little it shows of those that it has."""
    known = world.add_batch("job_x:2:1")
    world.turn.others[known] = ShardRecord(job="job_x", index=2, file_id=world.file_id, batch_id=known)
    world.api.rewrites_files, world.api.echo_metadata = True, False
    assert world.create(world.unanswered(empty_at=NOW - 999)) == Over(settled=True)


def test_calls_are_repeated_a_few_times_at_most_where_nobody_can_look(world: World) -> None:
    """RESEND_UNANSWERED allows rows to be paid twice, not without end."""
    world.turn.set(lists_batches=False, resend_unanswered=True)
    few, many = ["x"] * (MOST_CALLS - 1), ["x"] * MOST_CALLS
    assert world.create(world.unanswered(calls=many, empty_at=NOW - 999)).changes["trouble"].code == "create_unknown"
    assert world.create(world.unanswered(calls=few, empty_at=NOW - 999)) == Over(settled=True)
