"""Several turns in one visit: what is done at once, and how the rest of the chain goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import AmbiguousResult, StoreUnavailable, Unavailable
from batchpipe.model.records import JOB, JobRecord, Problem, Stage, State
from batchpipe.model.retry import REDIS_PAUSE_SECONDS
from batchpipe.pipeline.messages import Continue, Done, Message, Next, Retry
from batchpipe.pipeline.visits import Visits
from batchpipe.store import JobLease
from batchpipe.store.records import encode_changes
from batchpipe.testing import FakeOpenAI, Pump, Vanished

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ROWS = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": BODY} for n in range(3)]
LARGE, SMALL = Continue("said"), Continue("said", small=True)


class Script:
    """Answers each link's turn as it was told, and notes which were taken."""

    def __init__(self, **answers: Next | BaseException) -> None:
        self.answers, self.taken = answers, list[str]()

    def __call__(self, name: str, job: str, index: int, epoch: int) -> Next:
        self.taken.append(name)
        answer = self.answers[name]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def visited(first: Next, script: Script, *, stage: str = "planned", may_go_on: bool = True) -> Next:
    message = Message("job_1", 0, 1, stage, [], "q")
    return Visits(lambda message: None).go_on(message, lambda: first, script, lambda: may_go_on)


def test_a_batch_is_created_in_the_visit_that_uploaded_its_file_and_looked_at_later() -> None:
    """However large the shard is: create needs no slot. The next message is that of the poll, at its time."""
    script = Script(create=Continue("created", after=5.0))
    assert visited(LARGE, script) == Continue(after=5.0, link="poll")
    assert script.taken == ["create"]


def test_only_a_small_shard_is_downloaded_in_the_visit_that_saw_its_end() -> None:
    """A large one waits for a slot, as a message."""
    small, large = Script(download=Done("collected")), Script()
    assert visited(SMALL, small, stage="created") == Done()
    assert visited(LARGE, large, stage="created") == Continue()
    assert (small.taken, large.taken) == (["download"], [])


@pytest.mark.parametrize("answer", [Retry(30.0, "later"), StoreUnavailable("Redis: away")])
def test_where_a_further_turn_has_to_wait_the_chain_goes_on_there(answer: Next | BaseException) -> None:
    """Not at the link whose message this is: its stage is over."""
    after = answer.after if isinstance(answer, Retry) else REDIS_PAUSE_SECONDS
    assert visited(SMALL, Script(create=answer)) == Continue(after=after, link="create")


def test_a_process_that_is_told_to_stop_takes_no_further_turn() -> None:
    script = Script()
    assert visited(SMALL, script, may_go_on=False) == Continue()
    assert script.taken == []


def test_a_turn_that_is_claimed_already_is_taken_all_the_same() -> None:
    """Else nobody could take it before its lease has ended."""
    script, visits = Script(create=Continue("created", after=5.0)), Visits(lambda message: None)

    def first() -> Next:
        visits.ahead.keep(JobLease(renewer=cast(Any, None), job=JobRecord(id="job_1"), token="t", seconds=60.0))
        return LARGE

    message = Message("job_1", 0, 1, "planned", [], "q")
    assert visits.go_on(message, first, script, lambda: False) == Continue(after=5.0, link="poll")
    assert script.taken == ["create"]


def test_a_turn_that_raises_after_its_end_leaves_no_lease_to_the_next_visit() -> None:
    """Whoever the thread works for next would take the turn of another record for claimed."""
    visits = Visits(lambda message: None)

    def first() -> Next:
        visits.ahead.keep(JobLease(renewer=cast(Any, None), job=JobRecord(id="job_1"), token="t", seconds=60.0))
        raise StoreUnavailable("Redis: away")

    with pytest.raises(StoreUnavailable):
        visits.go_on(Message("job_1", 0, 1, "planned", [], "q"), first, Script(), lambda: True)
    assert visits.ahead.is_claimed is False


def test_the_first_turn_decides_for_itself() -> None:
    """Its Retry is that of its own message, its Done drops the chain."""
    for first in (Retry(3.0), Done("void"), Continue(after=2.0)):
        assert visited(first, Script()) == first


class Workers(Pump):
    """A Pump whose workers make visits, as Celery's do."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.sent: list[Message] = []
        self.visits = Visits(self.send)
        super().__init__(folder, **settings)
        for runner in (self.job_runner, self.shard_runner):
            runner._publish, runner.ahead = self.visits.publish, self.visits.ahead

    def note_scripts(self) -> list[str]:
        """Returns the names of the scripts that are run from now on."""
        names, run = list[str](), self.store.connection.run

        def noted(name: str, keys: Sequence[str], *given: Any) -> list[Any]:
            names.append(name)
            return run(name, keys, *given)

        self.store.connection.run = noted  # type: ignore[method-assign]
        return names

    def send(self, message: Message) -> None:
        self.sent.append(message)
        self._publish(message)

    def one(self, name: str, job: str, index: int, epoch: int) -> Next:
        return (self.job_runner if index == JOB else self.shard_runner).run(name, job, index, epoch)

    def _turn(self, delivery: Any) -> Next:
        message = delivery.message
        rest = Message(message.job, message.index, message.epoch, _stage_of(delivery), [], "")
        turn = (delivery.link, message.job, message.index, message.epoch)
        return self.visits.go_on(rest, lambda: self.one(*turn), self.one)


def _stage_of(delivery: Any) -> str:
    stages = {"prepare": State.PENDING, "merge": State.FINALIZING, "upload": Stage.PLANNED, "create": Stage.UPLOADED}
    return {**stages, "poll": Stage.CREATED, "download": Stage.ENDED}[delivery.link].value


def test_a_small_job_takes_two_messages(tmp_path: Path) -> None:
    """Prepare, upload and create in one visit; the look that sees the end, download and merge in another."""
    pump = Workers(tmp_path)
    job = pump.submit(ROWS)
    pump.run_until_idle()
    assert pump.job(job).state is State.SUCCEEDED
    assert pump.job(job).closed
    assert set(pump.outcomes(job).values()) == {"ok"}
    # nothing was published by a sweep, either
    assert [(message.index, message.stage) for message in pump.sent] == [(JOB, "pending"), (0, "created")]


def test_what_a_visit_does_is_told_to_redis_in_few_scripts(tmp_path: Path) -> None:
    """Room comes with the plan, a file's upload is recorded with the intent, the end of a batch with its rows."""
    api = FakeOpenAI(autofinish=True)
    pump = Workers(tmp_path, api=api)
    names = pump.note_scripts()
    job = pump.submit(ROWS)
    pump.run_until_idle(sweeping=False)
    assert names.count("admit") == 0
    assert names.count("intent") == 1
    assert names.count("record_job_end") == 1
    assert names.count("advance") == api.count("retrieve")  # the looks; the last of them has collected the rows, too
    shard = pump.shards(job)[0]
    assert (shard.uploads, shard.answered, shard.status) == (1, 3, "completed")
    assert shard.created_at is not None
    assert shard.created_at < (shard.ended_at or 0.0) <= (shard.collected_at or 0.0)
    assert pump.job(job).answered == 3
    assert [room.held for room in pump.store.admission.rooms("default") if room.kind == "batches"] == [0]


def test_a_shard_without_room_waits_for_it_though_its_turn_was_claimed(tmp_path: Path) -> None:
    """It asks in its turn, as ever, and then stands in the line."""
    account = Account(api_key=SecretStr("test"), batches_in_flight=1)
    pump = Workers(tmp_path, accounts={"default": account}, api=FakeOpenAI(autofinish=False))
    first, second = pump.submit(ROWS), pump.submit(ROWS)
    names = pump.note_scripts()
    while pump.step() is not None:
        pass
    assert names.count("admit") == 1
    assert [pump.shards(job)[0].stage for job in (first, second)] == [Stage.CREATED, Stage.PLANNED]


@pytest.mark.parametrize("error", [Unavailable("the provider answers 500", status=500), OSError("no space left")])
def test_rows_that_cannot_be_fetched_when_the_end_is_seen_are_fetched_later(tmp_path: Path, error: Exception) -> None:
    """Then the end is recorded, and the turn of download says what stands in the way."""
    api = FakeOpenAI(autofinish=True)
    pump = Workers(tmp_path, api=api)
    api.fail_next("download", error, times=3)
    names = pump.note_scripts()
    job = pump.submit(ROWS)
    pump.run_until_idle()
    assert names.count("advance") > 2
    assert set(pump.outcomes(job).values()) == {"ok"}
    assert max(api.billed.values()) == 1


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("the provider answers 503", status=503),
        AmbiguousResult("no answer", code="timeout"),
        RuntimeError("unforeseen"),
    ],
)
@pytest.mark.parametrize("processed", [True, False])
def test_a_create_that_fails_in_the_visit_of_the_upload_is_tried_again_as_a_create(
    tmp_path: Path, error: Exception, processed: bool
) -> None:
    """The file is uploaded once, the message that follows is that of create, and each row is paid for once."""
    api = FakeOpenAI(autofinish=True)
    pump = Workers(tmp_path, api=api)
    # a clear no has made no batch
    api.fail_next("create_batch", error, processed=processed and not isinstance(error, Unavailable))
    job = pump.submit(ROWS)
    pump.run_until_idle(sweeping=False)
    assert pump.job(job).state is State.SUCCEEDED
    assert (api.count("upload"), max(api.billed.values())) == (1, 1)
    assert (pump.shards(job)[0].uploaded_at or 0.0) > 0.0
    events = [event["event"] for event in pump.store.events.read(job)]
    assert (events.count("uploaded"), events.count("created")) == (1, 1)


def test_a_create_that_is_refused_for_want_of_room_in_the_visit_of_the_upload_teaches_the_limit(tmp_path: Path) -> None:
    """What the shard was given before its upload is known in the same turn; else it would only try again later."""
    api = FakeOpenAI(autofinish=True)
    pump = Workers(tmp_path, api=api, max_rows=1)
    words = "Rate limit reached for batch creations. Limit: 12 per hour."
    api.fail_next("create_batch", Unavailable(words, code="rate_limit_exceeded", status=429))
    job = pump.submit(ROWS)
    pump.run_until_idle(sweeping=False)
    assert [room.limit for room in pump.store.admission.rooms("default") if room.kind == "creations"] == [12]
    assert max(shard.uploads for shard in pump.shards(job)) == 1


def test_a_job_that_is_held_while_its_file_is_uploaded_creates_no_batch(tmp_path: Path) -> None:
    """The upload is recorded all the same, and the turn of create says what it waits for."""
    pump = Workers(tmp_path)
    api, real = pump.api, pump.api.upload
    held = {"hold": Problem(code="cancelled_elsewhere", message="somebody cancelled a batch"), "hold_at": pump.at}

    def upload(*given: Any) -> str:
        cast(Any, pump.store.connection.client).hset(
            pump.store.connection.job_key(job), mapping=pairs(encode_changes(held))
        )
        return real(*given)

    api.upload = upload  # type: ignore[method-assign, assignment]
    job = pump.submit(ROWS)
    while (delivered := pump.step()) is not None and delivered.link != "create":
        pass
    shard = pump.shards(job)[0]
    assert (shard.stage, shard.intent_at, api.count("create_batch")) == (Stage.UPLOADED, None, 0)
    assert shard.trouble is not None
    assert shard.trouble.code == "cancelled_elsewhere"


def pairs(flat: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def test_of_several_shards_each_has_its_own_chain(tmp_path: Path) -> None:
    """They are work for several workers."""
    pump = Workers(tmp_path)
    job = pump.submit(ROWS, max_rows=1)
    pump.run_until_idle()
    assert pump.job(job).state is State.SUCCEEDED
    assert [message.index for message in pump.sent if message.stage == "planned"] == [0, 1, 2]


@pytest.mark.parametrize("call", ["upload", "create_batch", "retrieve", "download"])
def test_a_worker_that_dies_within_a_visit_loses_nothing(tmp_path: Path, call: str) -> None:
    """What it kept to do itself is due, and a sweep publishes it; each row is paid for once."""
    api = FakeOpenAI(autofinish=True)
    pump = Workers(tmp_path, api=api)
    api.fail_next(call, Vanished(), processed=call != "create_batch")
    job = pump.submit(ROWS)
    pump.run_until_idle()
    assert pump.vanished == 1
    assert pump.job(job).state is State.SUCCEEDED
    assert max(api.billed.values()) == 1


def test_a_cancel_within_a_visit_ends_the_job(tmp_path: Path) -> None:
    """The step that comes next in the visit sees it."""
    pump = Workers(tmp_path)
    api, real = pump.api, pump.api.upload

    def upload(*given: Any) -> str:
        pump.cancel(job)
        return real(*given)

    api.upload = upload  # type: ignore[method-assign, assignment]
    job = pump.submit(ROWS)
    pump.run_until_idle()
    assert pump.job(job).state is State.CANCELLED
    assert api.count("create_batch") == 0


@pytest.mark.parametrize("step", ["prepare", "poll"])
def test_a_turn_whose_lease_ends_before_it_begins_comes_as_a_message_of_its_own(tmp_path: Path, step: str) -> None:
    """The process was held up between the two turns: no sweep is needed, and nothing is done twice."""
    api = FakeOpenAI(autofinish=True)
    pump = Workers(tmp_path, api=api)
    held_up = [step]

    def one(name: str, job: str, index: int, epoch: int) -> Next:
        answer = (pump.job_runner if index == JOB else pump.shard_runner).run(name, job, index, epoch)
        if pump.visits.ahead.is_claimed and name in held_up:
            held_up.remove(name)
            lease = pump.visits.ahead._lease
            assert lease is not None
            pump.advance(lease.seconds + 1)
            lease.confirmed -= lease.seconds + 1
        return answer

    pump.one = one  # type: ignore[method-assign]
    job = pump.submit(ROWS)
    pump.run_until_idle(sweeping=False)
    assert held_up == []
    assert pump.job(job).state is State.SUCCEEDED
    assert (max(api.billed.values()), api.count("create_batch")) == (1, 1)
