"""Looks: one process at a time reads the list of an account's batches, for all shards, page by page, newest first.

Whoever wants to know something of the list is a visitor: it is given each page, and told when the walk has ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from batchpipe.errors import LeaseLost, Unavailable
from batchpipe.model.provider import Batch, ProviderReads
from batchpipe.pipeline.runner import Runner

#: A list of more pages is taken to be endless.
MOST_PAGES = 10_000
#: Reaches back behind everything.
BEGINNING = 0.0


@dataclass(frozen=True)
class Walk:
    """A walk through an account's list that came to its end. Times are ours, but for ``reached``."""

    account: str
    begun: float
    ended: float
    reached: (
        float  #: from the newest batch to those made then, by the provider's clock, none was left out; 0: to the last
    )
    whole: bool  #: it left none out on its way
    jumped: bool  #: behind ``reached`` it read some, and left others out


class Visitor(Protocol):
    """Sees what a walk sees."""

    def visit(self, batches: Sequence[Batch]) -> None:
        """One page, or what was read singly. What it raises ends the walk: it is then none, and has no ``walked``."""

    def walked(self, walk: Walk) -> None:
        """The walk has ended, and the next one may begin."""


def look(
    runner: Runner,
    account: str,
    api: ProviderReads,
    visitors: Sequence[Visitor],
    *,
    every: float = 0.0,
    since: float = BEGINNING,
) -> Walk | None:
    """Walk back to the batches made at ``since``, by the provider's clock.

    Returns None if another look is under way, or began less than ``every`` seconds ago. Raises Unavailable, Paused,
    Refused (the provider cannot list), StoreUnavailable, and what visitors raise: then it was no walk.
    """
    turn = _Turn(runner, account)
    begun = runner.store.looks.take(account, turn.token, every=every)
    if begun is None:
        return None
    try:
        reached = _walk(turn, api, visitors, since)
        ended = runner.store.looks.end(account, turn.token)
    except LeaseLost:
        return None  # it took too long, and another one has begun
    except BaseException:
        with suppress(LeaseLost, Unavailable):
            runner.store.looks.end(account, turn.token)
        raise
    walk = Walk(account, begun, ended, reached, whole=True, jumped=False)
    for visitor in visitors:
        visitor.walked(walk)
    return walk


class _Turn:
    """The lease of a look."""

    def __init__(self, runner: Runner, account: str) -> None:
        self.runner, self.account, self.token = runner, account, uuid.uuid4().hex

    def renew(self) -> None:
        self.runner.store.looks.renew(self.account, self.token)


def _walk(turn: _Turn, api: ProviderReads, visitors: Sequence[Visitor], since: float) -> float:
    """Returns the time back to which none was left out."""
    after, seen = None, set[str]()
    while True:
        turn.renew()
        page = api.batch_page(after)
        for visitor in visitors:
            visitor.visit(page.batches)
        if not page.more:
            return BEGINNING
        if is_past(page.batches, since):
            return page.batches[-1].created_at or BEGINNING
        after = page.batches[-1].id
        if after in seen or len(seen) >= MOST_PAGES:
            raise Unavailable("the provider's list of batches goes in circles, or does not end", code="nonsense")
        seen.add(after)


def is_past(page: Sequence[Batch], since: float) -> bool:
    """Whether a list, newest first, has reached older entries; one that is oldest first is read to its end."""
    first, last = page[0].created_at, page[-1].created_at
    return first is not None and last is not None and last < since and first >= last
