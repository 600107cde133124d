"""The way of one look through the list: which page is read next, what is read singly, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from batchpipe.errors import Refused, Unavailable
from batchpipe.model.provider import Batch, BatchPage
from batchpipe.pipeline.ranks import Ranks

#: A list of more pages is taken to be endless.
MOST_PAGES = 10_000
#: Reaches back behind everything.
BEGINNING = 0.0
#: Batches of a page.
_PAGE = 100


class Reader(Protocol):
    """What a walk reads with; each call is one call of the provider, and is told to whoever wants to know."""

    def page(self, after: str | None) -> tuple[BatchPage, set[str]]:
        """A page, and the shards in flight whose batches it has (members)."""

    def single(self, member: str) -> Batch | None:
        """The batch of a shard in flight; None if the provider does not show it, or the shard has none any more."""


@dataclass
class Way:
    """Where a walk is."""

    in_flight: Iterator[tuple[str, float]]  #: (member, when its batch was made), newest first
    ranks: Ranks
    now: float
    met: set[str] = field(default_factory=set)
    jumped: bool = False
    calls: int = 0
    after: str | None = None  #: the list was read down to this batch,
    at: float | None = None  #: which was made then; None: unknown
    ordered: bool = True  #: newest first
    useless: bool = False  #: the page before met none of ours
    read_to: tuple[str | None, float | None] = (None, None)  #: the same as ``after`` and ``at``, by pages alone
    jumps: bool = True  #: the list can be entered at a batch that was read singly
    _next: tuple[str, float] | None = None

    def sought(self) -> tuple[str, float] | None:
        """The next shard in flight further down, that the walk has not met; None: there is none."""
        while True:
            if self._next is None:
                self._next = next(self.in_flight, None)
            if self._next is None:
                return None
            member, made = self._next
            if member not in self.met and (self.at is None or not self.ordered or made <= self.at):
                return self._next
            self.met.discard(member)
            self._next = None

    def is_far(self, made: float) -> bool:
        """Whether pages would be read in vain before that time."""
        if not self.jumps or not self.ordered or (self.at is None and self.after is not None):
            return False
        if self.at is None:
            return self.useless or self.ranks.others_above(made, self.now) >= _PAGE
        return self.useless or self.ranks.others_between(self.at, made) >= _PAGE


def walk(way: Way, reader: Reader, since: float | None, *, watch: bool) -> float:
    """Walk back to ``since`` without a gap (None: no need), then, to ``watch``, to the oldest in flight.

    Returns back to when none was left out. Raises Unavailable if the list goes in circles; and what the reader raises.
    """
    whole, seen = since is not None, set[str]()
    reached, contiguous = way.now, True
    while True:
        sought = way.sought() if watch else None
        if not whole and sought is None:
            return reached if way.ordered else way.now  # one that is not newest first must be read to its end
        if not whole and sought is not None and way.is_far(sought[1]):
            contiguous = False
            _jump(way, reader, *sought)
            continue
        page = _read_on(way, reader, seen)
        if contiguous:
            reached = _last_time(page) or reached
        if not page.more:
            return BEGINNING if contiguous else reached
        if since is not None and whole and is_past(page.batches, since):
            whole = way.useless = False


def _jump(way: Way, reader: Reader, member: str, made: float) -> None:
    """Read one singly, and go on behind it."""
    way.jumped, way.useless = True, False
    way.calls += 1
    batch = reader.single(member)
    way.met.add(member)
    if batch is not None:
        way.after, way.at = batch.id, batch.created_at if batch.created_at is not None else made


def _page(way: Way, reader: Reader) -> tuple[BatchPage, set[str]]:
    """The next page. A list that refuses to be entered at a batch is read on from the page before."""
    way.calls += 1
    try:
        return reader.page(way.after)
    except Refused:
        if way.after == way.read_to[0]:
            raise
    (way.after, way.at), way.jumps = way.read_to, False
    way.calls += 1
    return reader.page(way.after)


def _read_on(way: Way, reader: Reader, seen: set[str]) -> BatchPage:
    page, met = _page(way, reader)
    way.met |= met
    way.useless = not met
    if not page.batches:
        return page
    first, last = page.batches[0], page.batches[-1]
    if last.id in seen or len(seen) >= MOST_PAGES:
        raise Unavailable("the provider's list of batches goes in circles, or does not end", code="nonsense")
    seen.add(last.id)
    if first.created_at is not None and last.created_at is not None:
        way.ordered = way.ordered and first.created_at >= last.created_at
        if way.after is None:
            way.ranks.read_at = way.now
        newest = first.created_at if way.at is None else way.at
        way.ranks.add(newest, last.created_at, len(page.batches) - len(met), len(met))
    way.after, way.at = way.read_to = last.id, last.created_at
    return page


def _last_time(page: BatchPage) -> float | None:
    return page.batches[-1].created_at if page.batches else None


def is_past(page: Sequence[Batch], since: float) -> bool:
    """Whether a list, newest first, has reached older entries; one that is oldest first is read to its end."""
    first, last = page[0].created_at, page[-1].created_at
    return first is not None and last is not None and last < since and first >= last
