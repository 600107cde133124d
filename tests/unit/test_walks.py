"""The way of a look through the list: what it costs, what it meets, and how far it is without a gap."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpipe.errors import Refused, Unavailable
from batchpipe.model.provider import Batch, BatchPage
from batchpipe.pipeline.ranks import MOST_STRETCHES, Ranks
from batchpipe.pipeline.walks import BEGINNING, Way, walk

NOW = 1_000_000.0


@dataclass
class Listing:
    """An account's list, newest first: (time, ours and in flight)."""

    entries: list[tuple[float, bool]]
    calls: int = 0
    singles: int = 0
    met: set[str] = field(default_factory=set)

    def ours(self) -> list[tuple[str, float]]:
        return [(f"job/{at}", made) for at, (made, mine) in enumerate(self.entries) if mine]

    def page(self, after: str | None) -> tuple[BatchPage, set[str]]:
        self.calls += 1
        first = 0 if after is None else int(after.removeprefix("batch_")) + 1
        shown = [*enumerate(self.entries)][first : first + 100]
        met = {f"job/{at}" for at, (_, mine) in shown if mine}
        self.met |= met
        batches = [Batch(id=f"batch_{at}", created_at=made) for at, (made, _) in shown]
        return BatchPage(batches=batches, more=first + 100 < len(self.entries)), met

    def single(self, member: str) -> Batch | None:
        self.calls, self.singles = self.calls + 1, self.singles + 1
        self.met.add(member)
        at = int(member.removeprefix("job/"))
        return Batch(id=f"batch_{at}", created_at=self.entries[at][0])

    def look(self, ranks: Ranks, since: float | None = None, *, watch: bool = True) -> tuple[Way, float]:
        self.calls = self.singles = 0
        self.met.clear()
        way = Way(iter(self.ours()), ranks, NOW)
        return way, walk(way, self, since, watch=watch)

    def cheapest(self) -> int:
        """Pages back to the oldest in flight, or the number in flight."""
        oldest = max((at for at, (_, mine) in enumerate(self.entries) if mine), default=-1)
        return min(oldest // 100 + 1, len(self.ours()))


@dataclass
class NoEntry(Listing):
    """A server that knows only ``after`` of its own pages, or not even that."""

    pages: bool = True

    def page(self, after: str | None) -> tuple[BatchPage, set[str]]:
        if after is not None and not (self.pages and int(after.removeprefix("batch_")) % 100 == 99):
            self.calls += 1
            raise Refused("after: no such batch", status=400)
        return super().page(after)


def listing(*runs: tuple[int, bool], pace: float = 1.0) -> Listing:
    """Runs of so many batches, ours or of others, one each ``pace`` seconds."""
    mine = [whose for count, whose in runs for _ in range(count)]
    return Listing([(NOW - 10.0 - pace * at, whose) for at, whose in enumerate(mine)])


@pytest.mark.parametrize("count", [1, 99, 100, 101, 1_000, 2_345])
@pytest.mark.parametrize("pace", [0.001, 1.0, 60.0])
def test_where_ours_are_the_newest_a_look_costs_their_pages_and_no_single_read(count: int, pace: float) -> None:
    """From the first look on, however many were made in a second."""
    found = listing((count, True), (500, False), pace=pace)
    ranks = Ranks()
    for _ in range(3):
        way, reached = found.look(ranks)
        assert (found.calls, found.singles, found.met) == (-(-count // 100), 0, {name for name, _ in found.ours()})
        assert (way.jumped, way.calls) == (False, found.calls)
        assert reached <= found.ours()[-1][1]


def test_a_gap_of_ten_thousand_others_is_jumped_over() -> None:
    """Once a walk has seen how wide it is."""
    found = listing((1, True), (10_000, False), (250, True), (40, False))
    ranks = Ranks()
    found.look(ranks, BEGINNING)
    assert found.calls == 103
    way, reached = found.look(ranks)
    assert (found.calls, found.singles, way.jumped) == (5, 1, True)
    assert found.met == {name for name, _ in found.ours()}
    assert reached == found.entries[99][0]


def test_a_list_that_cannot_be_entered_at_a_batch_is_read_page_by_page() -> None:
    """Some servers take no ``after`` but their own; what stands behind it is met all the same."""
    found = NoEntry([*listing((1, True), (1_000, False), (5, True), (1_000, False), (1, True)).entries])
    ranks = Ranks()
    found.look(ranks, BEGINNING)
    way, _ = found.look(ranks)
    assert found.met == {name for name, _ in found.ours()}
    assert (way.jumps, found.singles) == (False, 1)


def test_a_list_that_refuses_its_own_pages_is_none() -> None:
    found = NoEntry(listing((250, True)).entries, pages=False)
    with pytest.raises(Refused):
        found.look(Ranks(), BEGINNING)


def test_what_stands_alone_is_read_by_itself() -> None:
    """And nothing of the list, as far as it is known to have none of ours."""
    found = listing(*[(1_000, False), (1, True)] * 7)
    ranks = Ranks()
    found.look(ranks, BEGINNING)
    found.look(ranks)
    assert (found.calls, found.singles) == (7, 7)


def test_an_unknown_list_is_not_read_page_by_page_in_vain() -> None:
    """A page that shows none of ours is the last one before the next of ours is read by itself."""
    found = listing((5_000, False), (1, True), (5_000, False), (1, True))
    found.look(Ranks())
    assert found.calls <= 4
    assert len(found.met) == 2


def test_a_look_that_leaves_nothing_out_is_no_dearer_for_what_is_further_down() -> None:
    """Back to a time without a gap, for orphans; from there on it may jump."""
    found = listing((300, False), (50, True), (5_000, False), (1, True))
    ranks = Ranks()
    found.look(ranks, BEGINNING)
    way, reached = found.look(ranks, NOW - 10 - 250)
    assert (found.calls, found.singles, way.jumped) == (5, 1, True)
    assert reached == found.entries[399][0]
    way, reached = found.look(ranks, NOW - 10 - 250, watch=False)
    assert (found.calls, way.jumped, reached) == (3, False, found.entries[299][0])


def test_the_end_of_the_list_is_reached_without_a_gap() -> None:
    found = listing((130, False))
    assert found.look(Ranks(), BEGINNING)[1] == BEGINNING


def test_a_list_that_is_oldest_first_is_read_to_its_end() -> None:
    """Nothing can be told from its times."""
    found = listing((350, True))
    found.entries.reverse()
    ours = sorted(found.ours(), key=lambda each: -each[1])
    way = Way(iter(ours), Ranks(), NOW)
    walk(way, found, None, watch=True)
    assert (found.calls, len(found.met)) == (4, 350)


def test_a_list_without_times_is_read_to_its_end() -> None:
    class Timeless(Listing):
        def page(self, after: str | None) -> tuple[BatchPage, set[str]]:
            page, met = super().page(after)
            return BatchPage(batches=[Batch(id=batch.id) for batch in page.batches], more=page.more), met

    found = Timeless(listing((250, True)).entries)
    found.look(Ranks())
    assert (found.calls, len(found.met)) == (3, 250)


def test_a_list_that_goes_in_circles_is_no_walk() -> None:
    class Circle(Listing):
        def page(self, after: str | None) -> tuple[BatchPage, set[str]]:
            return super().page(None)

    with pytest.raises(Unavailable, match="circles"):
        Circle(listing((300, False)).entries).look(Ranks(), BEGINNING)


_runs = st.lists(st.tuples(st.one_of(st.integers(1, 20), st.integers(1, 900)), st.booleans()), min_size=1, max_size=12)
_paces = st.sampled_from([0.01, 0.4, 1.0, 7.3, 120.0])


@settings(deadline=None)  # the machine may be busy
@given(_runs, _paces)
def test_a_look_costs_no_more_than_the_cheaper_of_both_ways(runs: list[tuple[int, bool]], pace: float) -> None:
    """Pages back to the oldest in flight, or each by itself, once the list is known; and it meets all of them."""
    found = listing(*runs, pace=pace)
    ranks = Ranks()
    found.look(ranks, BEGINNING)
    ranks = Ranks(ranks.dump(), NOW)
    for _ in range(2):
        found.look(ranks)
        assert found.met == {name for name, _ in found.ours()}
        slack = 0 if pace >= 1.0 else 2 + found.cheapest() // 5  # times are whole seconds, and tell less
        assert found.calls <= found.cheapest() + slack


@settings(deadline=None)  # the machine may be busy
@given(_runs, st.integers(0, 10_000))
def test_whatever_is_remembered_a_look_meets_all(runs: list[tuple[int, bool]], seed: int) -> None:
    """Wrong guesses cost calls, at most two for each of ours, and leave nobody out."""
    maker = random.Random(seed)
    times = sorted((NOW - maker.random() * 5_000 for _ in range(8)), reverse=True)
    guesses = [(a, b, maker.randrange(2_000), maker.randrange(100)) for a, b in pairwise(times)]
    found = listing(*runs)
    found.look(Ranks(guesses, NOW - maker.random() * 1_000))
    assert found.met == {name for name, _ in found.ours()}
    assert found.calls <= 2 * len(found.ours())


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 100), st.integers(0, 100)), max_size=400))
def test_what_is_remembered_is_bounded_and_does_not_overlap(pages: list[tuple[float, float, int]]) -> None:
    ranks = Ranks()
    for newest, length, others in pages:
        ranks.add(newest, newest - length, others, 100 - others)
    found = ranks.dump()
    assert len(found) <= MOST_STRETCHES
    assert all(later[0] <= earlier[1] for earlier, later in pairwise(found))
    assert all(newest >= oldest for newest, oldest, _, _ in found)
    assert ranks.others_between(1e5, -1e5) >= 0
