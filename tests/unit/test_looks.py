"""Looks: the list is read once for all shards, ends are noticed at once, and polls are parked meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import Paused, Refused, Unavailable
from batchpipe.model.provider import Batch
from batchpipe.model.records import Counts, Stage, State
from batchpipe.pipeline.look_turn import LookTurn
from batchpipe.pipeline.looks import Walk, _Reader, look, seconds_between
from batchpipe.pipeline.sweep import sweep
from batchpipe.testing import FakeOpenAI, Pump, Vanished

Rows = Callable[..., list[dict[str, object]]]
SHARDS = 12


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """A row a shard, and polls are parked with more than four of them in flight; batches stay as they are."""
    account = Account(api_key=SecretStr("k"), looks_per_second=100.0)
    return Pump(tmp_path, api=FakeOpenAI(), max_rows=1, polls_in_flight=4, accounts={"default": account})


def watched(pump: Pump, rows: list[dict[str, object]]) -> str:
    """A job whose shards are all parked."""
    job_id = pump.submit(rows)
    pump.run_for(60.0)
    assert all(shard.parked for shard in pump.shards(job_id))
    assert pump.waiting == []
    pump.api.calls.clear()
    pump.published.clear()
    return job_id


def finish(pump: Pump, *numbers: int) -> None:
    """These batches, or all that live."""
    for number, batch in enumerate(pump.api.batches.values()):
        if not batch.is_final and (not numbers or number in numbers):
            pump.api.finish(batch.id)


def test_in_the_steady_state_only_pages_are_read_and_no_message_is_sent(pump: Pump, chat_rows: Rows) -> None:
    """However long it takes; nothing comes due."""
    watched(pump, chat_rows(SHARDS))
    pump.run_for(3_600.0)
    assert {call.method for call in pump.api.calls} == {"batch_page"}
    assert 200 <= pump.api.count("batch_page") <= 245
    assert pump.published == []
    assert pump.store.due.overdue() == []


def test_each_end_is_noticed_by_the_next_look_and_its_batch_is_not_read_again(pump: Pump, chat_rows: Rows) -> None:
    """The page has shown its files; the other shards stay where they are."""
    job_id = watched(pump, chat_rows(SHARDS))
    finish(pump, 3, 7)
    pump.run_for(25.0)
    assert Counter(shard.stage for shard in pump.shards(job_id)) == {Stage.CREATED: SHARDS - 2, Stage.COLLECTED: 2}
    assert pump.api.count("retrieve") == 0
    assert len(pump.published) == 2
    finish(pump)
    pump.run_for(25.0)
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert pump.api.billed == Counter(f"r{number}" for number in range(SHARDS))


def test_what_a_look_has_recorded_is_published_by_the_next_one_if_its_process_dies(pump: Pump, chat_rows: Rows) -> None:
    """Between the record and the message."""
    job_id = watched(pump, chat_rows(SHARDS))
    finish(pump)
    publish = pump.job_runner._publish

    def die(message: Any) -> None:
        raise Vanished

    pump.job_runner._publish = die
    pump.run_for(60.0)
    assert pump.vanished
    assert pump.job(job_id).stage == State.RUNNING
    pump.job_runner._publish = publish
    pump.run_for(200.0)  # the lease of that look ends, too
    assert pump.job(job_id).stage == State.SUCCEEDED


def test_polls_come_back_if_looks_stop_spread_over_their_safety_net(pump: Pump, chat_rows: Rows) -> None:
    """Nobody can list any more; each is then read by itself, at its own time."""
    job_id = watched(pump, chat_rows(SHARDS))
    pump.api.fail_next("batch_page", Refused("no list here any more", status=405), times=10_000)
    finish(pump)
    pump.run_for(420.0)
    assert pump.api.count("retrieve") == 0
    pump.run_for(400.0)
    assert pump.api.count("retrieve") == SHARDS
    assert pump.job(job_id).stage == State.SUCCEEDED
    times = {round(message.countdown) for message in pump.published}
    assert times == {0}


def test_a_shard_that_looks_do_not_meet_is_read_by_itself(pump: Pump, chat_rows: Rows) -> None:
    """The list hides its batch; the others cost nothing."""
    job_id = watched(pump, chat_rows(SHARDS))
    pump.api.hide_from_list(list(pump.api.batches)[5])
    pump.run_for(1_500.0)
    assert 1 <= pump.api.count("retrieve") <= 8
    assert {call.argument for call in pump.api.calls if call.method == "retrieve"} == {list(pump.api.batches)[5]}
    finish(pump, 5)
    pump.run_for(700.0)
    assert [shard.index for shard in pump.shards(job_id) if shard.stage == Stage.COLLECTED] != []


def test_batches_that_cannot_be_read_singly_end_no_look_until_they_are_many(pump: Pump, chat_rows: Rows) -> None:
    """Older ones are behind them; but a provider that is in trouble must not be asked for each."""
    watched(pump, chat_rows(SHARDS))
    turn = LookTurn(pump.store.looks, "default", lease=60.0, patience=60.0)
    assert turn.begin(every=0.0) is not None
    reader = _Reader(pump.job_runner, "default", pump.api, [], turn)
    members = [member for member, _ in pump.store.looks.in_flight("default")]
    refused = Refused("no such batch", status=400)
    pump.api.fail_next("retrieve", refused, times=5)
    assert [reader.single(member) for member in members[:5]] == [None] * 5
    pump.api.fail_next("retrieve", Unavailable("odd", status=500), times=4)
    assert [reader.single(member) for member in members[:3]] == [None] * 3
    with pytest.raises(Unavailable):
        reader.single(members[3])


def test_a_cancel_reaches_parked_shards(pump: Pump, chat_rows: Rows) -> None:
    """Each cancels its batch, and is parked again until that has ended."""
    job_id = watched(pump, chat_rows(SHARDS))
    pump.cancel(job_id)
    pump.run_for(10.0)
    assert pump.api.count("cancel_batch") == SHARDS
    for batch in pump.api.batches:
        pump.api.finish(batch, "cancelled", after=0)
    pump.run_for(60.0)
    assert pump.job(job_id).stage == State.CANCELLED


def test_a_batch_that_somebody_else_cancels_holds_its_job(pump: Pump, chat_rows: Rows) -> None:
    """The shard that was parked says so, while the batch is still being cancelled; it is said once."""
    job_id = watched(pump, chat_rows(SHARDS))
    batch = list(pump.api.batches)[2]
    pump.api.cancel_batch(batch)
    pump.run_for(60.0)
    assert pump.job(job_id).hold is not None
    assert [
        event["batch_id"] for event in pump.store.events.read(job_id) if event["event"] == "cancelled_elsewhere"
    ] == [batch]
    assert pump.api.count("retrieve") == 1
    assert all(shard.parked for shard in pump.shards(job_id))


def test_a_parked_batch_that_does_not_end_is_found_to_be_overdue(pump: Pump, chat_rows: Rows) -> None:
    """Looks do not move its due time beyond the end of its window and the patience; then it is cancelled."""
    job_id = watched(pump, chat_rows(SHARDS))
    pump.advance(85_500.0)
    pump.run_for(7_000.0, pace=30.0)
    assert pump.api.count("cancel_batch") == 0
    pump.run_for(1_500.0, pace=30.0)
    assert pump.api.count("cancel_batch") == SHARDS
    assert all(shard.overdue_at is not None for shard in pump.shards(job_id))


def test_counts_are_seen_by_who_watches(pump: Pump, chat_rows: Rows) -> None:
    """Else they are a minute old at most."""
    job_id = watched(pump, chat_rows(SHARDS))
    batch = next(iter(pump.api.batches.values()))
    for done in range(1, 20):
        batch.counts = Counts(total=100, completed=done, failed=0)
        if done > 10:
            pump.store.looks.note_watched("default")
        pump.run_for(20.0)
        lag = done - (pump.shards(job_id)[0].counts.completed or 0)
        assert lag <= (1 if done > 10 else 4)


def test_few_in_flight_are_polled_as_ever(pump: Pump, chat_rows: Rows) -> None:
    """Seen in Flower, by countdown."""
    job_id = pump.submit(chat_rows(4))
    pump.run_for(60.0)
    assert not any(shard.parked for shard in pump.shards(job_id))
    assert len(pump.waiting) == 4


@pytest.mark.parametrize("error", [Unavailable("down"), Paused("no money", code="x"), RuntimeError("bug")])
def test_a_walk_that_fails_half_way_is_no_walk(pump: Pump, chat_rows: Rows, error: Exception) -> None:
    """Its visitors are not told that it has ended; the next look may begin."""
    watched(pump, chat_rows(SHARDS))
    told: list[Walk] = []

    class Visitor:
        def visit(self, batches: Sequence[Batch], recorded: frozenset[str]) -> tuple[()]:
            assert recorded == set(pump.api.batches)
            pump.advance(1)
            return ()

        def walked(self, walk: Walk) -> None:
            told.append(walk)

    pump.api.fail_next("batch_page", error)
    with pytest.raises(type(error)):
        look(pump.job_runner, "default", pump.api, [Visitor()])
    before = pump.store.looks.state("default").looked
    assert told == []
    walk = look(pump.job_runner, "default", pump.api, [Visitor()])
    assert walk is not None
    assert told == [walk]
    assert (walk.whole, walk.jumped, walk.reached, walk.calls) == (True, False, 0.0, 1)
    assert walk.ended - walk.begun == pytest.approx(1, abs=0.5)
    assert pump.store.looks.state("default").looked == walk.begun > before
    assert look(pump.job_runner, "default", pump.api, [Visitor()], every=15.0) is None


def test_a_look_that_lost_its_turn_ends_without_a_word(pump: Pump, chat_rows: Rows) -> None:
    """It took so long that another one has begun."""
    watched(pump, chat_rows(SHARDS))

    class Slow:
        def visit(self, batches: Sequence[Batch], recorded: frozenset[str]) -> tuple[()]:
            pump.advance(1_000)
            assert pump.store.looks.take("default", "another", lease=120.0, every=0.0) is not None
            return ()

        def walked(self, walk: Walk) -> None:
            raise AssertionError("it was none")

    assert look(pump.job_runner, "default", pump.api, [Slow()]) is None
    assert look(pump.job_runner, "default", pump.api, []) is None


def test_pages_keep_to_the_budget_of_the_account(pump: Pump, chat_rows: Rows) -> None:
    """A look sleeps until its slot."""
    slow = Account(api_key=SecretStr("k"), looks_per_second=2.0)
    pump.job_runner.settings = pump.settings.model_copy(update={"accounts": {"default": slow}})
    job_id = pump.submit(chat_rows(1))
    pump.run_for(15.0)
    shard = pump.shards(job_id)[0]
    for _ in range(1_000):
        pump.api.create_batch(
            endpoint="/", completion_window="24h", input_file_id=shard.file_id or "", metadata={}, extra={}
        )
    pump.advance(60)
    began = pump.at
    sweep(pump.job_runner, listing=True)
    assert pump.at - began == pytest.approx(7 / 2, abs=0.6)  # eleven pages; four are there at once


@pytest.mark.parametrize("in_flight", [51, 100, 1_000, 2_000, 10_000])
def test_a_status_is_half_a_minute_old_at_most(in_flight: int) -> None:
    """With the default budget of reads: from one look to the next, and five seconds until a sweep comes by."""
    every = seconds_between(in_flight, 5.0)
    assert every + 5.0 <= 30.0
    assert in_flight / 100 / 5.0 <= every
    assert seconds_between(in_flight, 0.5) >= in_flight / 100 / 0.5
    assert seconds_between(in_flight, 5.0, news=True) >= 300


def test_a_sweep_of_beat_leaves_looks_to_the_threads_of_workers(pump: Pump, chat_rows: Rows) -> None:
    """Else a worker with one process would do little else; but if nobody comes, it looks."""
    watched(pump, chat_rows(SHARDS))
    sweep(pump.job_runner, listing=True)
    pump.api.calls.clear()
    pump.advance(15)
    sweep(pump.job_runner, late=7.0)
    assert pump.api.calls == []
    pump.advance(7)
    sweep(pump.job_runner, late=7.0)
    assert pump.api.count("batch_page") == 1
