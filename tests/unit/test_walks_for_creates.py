"""What walks tell of unanswered creates, and how one walk serves all shards of an account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchpipe.errors import AmbiguousResult, Unavailable
from batchpipe.model.provider import BatchPage
from batchpipe.model.records import ShardRecord, Stage
from batchpipe.pipeline.noted_walks import NotedWalk, asked_at, decode_walk, encode_walk, is_seen_by, telling_walk
from batchpipe.pipeline.sweep import sweep
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]
SHARDS = 20


def walk(begun: float, ended: float, **fields: Any) -> NotedWalk:
    return NotedWalk(begun=begun, ended=ended, **{"reached": 0.0, "seen_as": "me", **fields})


def told(*walks: NotedWalk, after: float = 100.0, since: float = 50.0) -> NotedWalk | None:
    return telling_walk(walks, after=after, since=since, seen_as="me")


def test_a_walk_tells_only_of_calls_that_were_over_when_it_began() -> None:
    """And only if it left nothing out back to the first one, with the same key."""
    good = walk(100.0, 110.0)
    assert told(good) is good
    assert told(walk(99.9, 110.0)) is None
    assert told(walk(100.0, 110.0, reached=50.1)) is None
    assert told(walk(100.0, 110.0, seen_as="another")) is None


def test_the_walk_that_ended_first_is_taken_and_one_in_doubt_only_if_all_are() -> None:
    """A doubt is a batch without a sign that may have been made since the call; unread ones prove nothing at all."""
    first, second = walk(100.0, 110.0), walk(105.0, 120.0)
    doubt = walk(101.0, 105.0, signs=False, unsigned=[("batch_x", 60.0)])
    older = walk(101.0, 105.0, signs=False, unsigned=[("batch_x", 40.0)])
    unread = walk(101.0, 105.0, signs=False, unsigned=[("batch_x", None)], read=False)
    assert told(second, first) is first
    assert told(second, doubt) is second
    assert told(doubt) is doubt
    assert told(second, older) is older
    assert told(unread) is None


def test_a_note_of_a_walk_comes_back_as_it_was_and_one_of_a_newer_version_proves_nothing() -> None:
    """Workers of two versions run side by side."""
    noted = walk(1.5, 2.5, unsigned=[("batch_x", None)])
    assert decode_walk(encode_walk(noted).decode()) == noted
    assert decode_walk('{"begun": "in another form"}') is None


def test_a_call_of_an_older_worker_counts_as_over_only_now() -> None:
    """What is noted is about another call."""
    shard = ShardRecord(job="j", index=0, calls=["a"], latest_call="a", call_over_at=5.0, called_as="me")
    assert (asked_at(shard, 9.0), is_seen_by(shard, "me"), is_seen_by(shard, "you")) == (5.0, True, False)
    later = shard.evolve(calls=["a", "by an older worker"])
    assert (asked_at(later, 9.0), is_seen_by(later, "me")) == (9.0, False)


# -- many shards ---------------------------------------------------------------------------------------------------


class Outage(FakeOpenAI):
    """Answers no create and shows no list while it is down; every second create has its effect."""

    down = True
    creates = 0

    def create_batch(self, **arguments: Any) -> Any:
        if not self.down:
            return super().create_batch(**arguments)
        self.creates += 1
        if self.creates % 2:
            super().create_batch(**arguments)
        raise AmbiguousResult("the answer is lost")

    def batch_page(self, after: str | None = None) -> BatchPage:
        if self.down:
            raise Unavailable("down")
        return super().batch_page(after)


@pytest.fixture
def outage(tmp_path: Path, chat_rows: Rows) -> Pump:
    """Five minutes in which none of many creates was answered."""
    pump = Pump(tmp_path, api=Outage(autofinish=True), max_rows=1)
    pump.submit(chat_rows(SHARDS), id="job_outage")
    pump.run_for(300.0)
    pump.api.calls.clear()
    pump.api.down = False  # type: ignore[attr-defined]
    return pump


@pytest.mark.parametrize("metadata", [True, False])
def test_an_outage_with_many_unanswered_creates_costs_two_walks_and_no_row_twice(outage: Pump, metadata: bool) -> None:
    """Not two for each. Files are not read one by one either: the key that calls is the one that looks."""
    outage.api.list_metadata = outage.api.echo_metadata = metadata
    outage.run_for(150.0)
    assert outage.api.count("file_status") == 0
    assert outage.api.count("create_batch") == SHARDS // 2
    assert outage.api.count("batch_page") <= 2 + 150 / 30 + 2  # two walks of one page, and the looks of the sweep
    outage.run_until_idle()
    assert set(outage.outcomes("job_outage").values()) == {"ok"}
    assert set(outage.api.billed.values()) == {1}
    assert len(outage.outcomes("job_outage")) == SHARDS


def test_a_walk_settles_at_once_what_it_meets_for_all_shards(outage: Pump) -> None:
    """Though they wait for their time; they go on under new messages."""
    published = len(outage.published)
    sweep(outage.job_runner, listing=True)
    stages = Counter(shard.stage for shard in outage.shards("job_outage"))
    assert stages == {Stage.CREATED: SHARDS // 2, Stage.UPLOADED: SHARDS // 2}
    going_on = Counter(message.stage for message in outage.published[published:])
    assert going_on[Stage.CREATED] == SHARDS // 2


def test_what_a_walk_settles_is_ours_for_the_next_look(outage: Pump) -> None:
    """Taken for batches of others, they would be left out of its pages, and read one by one."""
    sweep(outage.job_runner, listing=True)
    parts = outage.store.looks.state("default").ranks
    assert (sum(others for *_, others, _ in parts), sum(ours for *_, ours in parts)) == (0, SHARDS // 2)


def test_after_an_outage_no_batch_is_read_by_itself(tmp_path: Path, chat_rows: Rows) -> None:
    """Where there are more than polls watch: the pages show what becomes of them."""
    pump = Pump(tmp_path, api=Outage(), max_rows=1, polls_in_flight=4)
    job_id = pump.submit(chat_rows(SHARDS))
    pump.run_for(300.0)
    pump.api.calls.clear()
    pump.api.down = False  # type: ignore[attr-defined]
    pump.run_for(150.0)
    assert pump.api.count("retrieve") == 0
    assert all(shard.parked for shard in pump.shards(job_id))
    for batch_id in pump.api.batches:
        pump.api.finish(batch_id)
    pump.run_for(30.0)
    assert pump.job(job_id).stage == "succeeded"
    assert pump.api.count("retrieve") == 0


def test_a_cancel_reaches_at_once_what_a_walk_has_found_among_many(tmp_path: Path, chat_rows: Rows) -> None:
    """Their polls come later, but for those that have something to do: as fast as the budget of reads lets them."""
    pump = Pump(tmp_path, api=Outage(), max_rows=1, polls_in_flight=4)
    job_id = pump.submit(chat_rows(SHARDS))
    pump.run_for(30.0)
    pump.store.jobs.cancel(job_id)
    pump.api.down = False  # type: ignore[attr-defined]
    pump.api.calls.clear()
    sweep(pump.job_runner, listing=True)
    pump.run_due()
    assert pump.api.count("cancel_batch") == 9  # ten at once, and one was for the page
    pump.run_for(10.0)
    assert pump.api.count("cancel_batch") == SHARDS // 2


def test_a_walk_that_failed_half_way_is_none(tmp_path: Path, chat_rows: Rows) -> None:
    """Its second page fails: nothing is noted, nobody calls again."""

    class Halves(Outage):
        broken = True

        def batch_page(self, after: str | None = None) -> BatchPage:
            if after is not None and self.broken:
                raise Unavailable("half way")
            page = super().batch_page(after)
            return BatchPage(batches=page.batches[:1], more=page.more or len(page.batches) > 1)

    pump = Pump(tmp_path, api=Halves(autofinish=True), max_rows=1)
    pump.submit(chat_rows(4), id="job_outage")
    pump.run_for(30.0)
    pump.api.down = False  # type: ignore[attr-defined]
    pump.api.calls.clear()
    pump.run_for(600.0)
    assert pump.store.unanswered.walks("default") == []
    assert pump.api.count("create_batch") == 0
    pump.api.broken = False  # type: ignore[attr-defined]
    pump.run_until_idle()
    assert set(pump.api.billed.values()) == {1}


def test_what_another_key_has_seen_proves_nothing(outage: Pump) -> None:
    """A host with the key of another project walks: its list is empty, and nobody calls because of that."""
    made = len(outage.api.batches)
    outage.api.project = "another"
    outage.run_for(600.0)
    assert outage.api.count("create_batch") == 0
    outage.api.project = ""
    outage.run_until_idle()
    assert len(outage.api.batches) == made + SHARDS // 2
    assert set(outage.api.billed.values()) == {1}
