"""Looks: one process at a time reads the list of an account's batches, for all shards, page by page, newest first.

What has changed is recorded, and shards whose batches have ended are published again. Whoever wants to know something
else of the list is a visitor: it is given each page, and told when the walk has ended.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from batchpipe.errors import Gone, LeaseLost, Refused, StoreUnavailable, Unavailable
from batchpipe.model.provider import Batch, BatchPage, ProviderReads
from batchpipe.model.records import Stage
from batchpipe.pipeline.look_turn import LookTurn
from batchpipe.pipeline.overdue import republish_or_set_aside
from batchpipe.pipeline.ranks import Ranks
from batchpipe.pipeline.runner import Runner
from batchpipe.pipeline.steps.poll import SAFETY_NET_SECONDS
from batchpipe.pipeline.walks import BEGINNING, Way, walk
from batchpipe.store import parse_member

logger = logging.getLogger(__name__)

#: Batches that one script compares.
CHUNK = 100
#: Counts and the time of the last sight are written so often, unless somebody watches.
COUNTS_SECONDS = 60.0
#: From the beginning of one look to that of the next, while polls are parked: few in flight, and many. Sweeps come by
#: every five seconds, so it is a second less than a multiple of that.
LOOK_SECONDS, LOOK_MANY_SECONDS, MANY = 14.0, 19.0, 500
#: The same where the provider tells of ends by itself.
LOOK_WITH_NEWS_SECONDS = 300.0
#: A look that has died stands in the way of the next one for so long at most.
LEASE_SECONDS = 20.0
#: How long one page may take: its reader tries it so many times, and there is work to do with what it brings. Seconds.
PAGE_TRIES, PAGE_WORK_SECONDS = 3, 60.0
#: So many batches of one look may be unreadable; then the provider is in trouble.
MOST_UNREAD = 3
#: Parked polls stay so for at least so long after a look.
GOOD_SECONDS = 60.0


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
    calls: int = 0  #: of the provider


class Visitor(Protocol):
    """Sees what a walk sees."""

    def visit(self, batches: Sequence[Batch], recorded: frozenset[str]) -> Collection[tuple[str, int]]:
        """One page, or what was read singly; ``recorded``: ids of batches that are known as their shards'.

        Returns the shards that have got their batch only by this visit. What it raises ends the walk: it is then none,
        and has no ``walked``.
        """

    def walked(self, walk: Walk) -> None:
        """The walk has ended, and the next one may begin."""


def seconds_between(in_flight: int, per_second: float, *, news: bool = False) -> float:
    """From the beginning of one look at so many batches to that of the next: a status is then 30 seconds old at most.

    ``per_second``: the account's budget of reads. ``news``: the provider tells of ends by itself (webhooks).
    """
    if news:
        return LOOK_WITH_NEWS_SECONDS
    least = LOOK_SECONDS if in_flight <= MANY else LOOK_MANY_SECONDS
    return max(least, 1.2 * (in_flight / 100) / per_second)


def look(
    runner: Runner,
    account: str,
    api: ProviderReads,
    visitors: Sequence[Visitor],
    *,
    every: float = 0.0,
    since: float | None = BEGINNING,
    watch: bool = True,
) -> Walk | None:
    """Walk back to the batches made at ``since`` (the provider's clock) without leaving one out (None: no need), and,
    to ``watch``, to the oldest batch in flight.

    Returns None if another look is under way, or began less than ``every`` seconds ago. Raises Unavailable, Paused,
    Refused (the provider cannot list), SettingsError, StoreUnavailable, and what visitors raise: then it was no walk.
    """
    turn = _turn(runner, account)
    looks = runner.store.looks
    begun = turn.begin(every)
    if begun is None:
        return None
    try:
        with turn:
            state = looks.state(account)
            way = Way(looks.in_flight(account), Ranks(state.ranks, state.ranks_read_at), begun)
            reached = walk(way, _Reader(runner, account, api, visitors, turn), since, watch=watch)
            met_all = watch or way.sought() is None  # it may also have been on its way to something else
        good = max(GOOD_SECONDS, 2 * every) if met_all else None
        ended = looks.end(
            account, turn.token, begun=begun, good=good, ranks=way.ranks.dump(), read_at=way.ranks.read_at
        )
    except LeaseLost:
        logger.warning("a look at the batches of account %r took too long", account, extra={"event": "look_lost"})
        return None
    except BaseException:
        with suppress(LeaseLost, StoreUnavailable):
            looks.give_up(account, turn.token)
        raise
    done = Walk(account, begun, ended, reached, whole=not way.jumped, jumped=way.jumped, calls=way.calls)
    runner.counters.add("looks", account=account)
    for visitor in visitors:
        visitor.walked(done)
    return done


def _turn(runner: Runner, account: str) -> LookTurn:
    settings = runner.settings
    patience = PAGE_TRIES * settings.control_timeout_seconds + PAGE_WORK_SECONDS
    return LookTurn(runner.store.looks, account, lease=min(LEASE_SECONDS, settings.lease_seconds), patience=patience)


class _Reader:
    """What a look reads with: each call has its slot, and what comes is recorded and shown to the visitors."""

    def __init__(
        self, runner: Runner, account: str, api: ProviderReads, visitors: Sequence[Visitor], turn: LookTurn
    ) -> None:
        self._runner, self._account, self._api, self._visitors = runner, account, api, visitors
        self._turn = turn
        self._unread = 0
        self._rate = runner.settings.account(account).looks_per_second

    def page(self, after: str | None) -> tuple[BatchPage, set[str]]:
        self._wait()
        page = self._api.batch_page(after)
        return page, self._record(page.batches)

    def single(self, member: str) -> Batch | None:
        [shard] = self._runner.store.shards.at([parse_member(member)])
        if shard is None or shard.batch_id is None or shard.stage != Stage.CREATED:
            self._runner.store.looks.forget_if_gone(self._account, member)
            return None
        self._wait()
        try:
            batch = self._api.retrieve(shard.batch_id)
        except (Gone, Refused):
            return None  # its own poll judges that
        except Unavailable as error:  # one batch that cannot be read must not end the look: older ones are behind it
            self._unread += 1
            if error.status is None or self._unread > MOST_UNREAD:
                raise
            return None
        self._record([batch])
        return batch

    def _wait(self) -> None:
        """Sleep until this read's slot."""
        _, wait = self._runner.store.accounts.take_rate_token(self._account, per_second=self._rate, what="look")
        while wait > 0:
            self._turn.step()
            some = min(wait, self._turn.longest_sleep)
            self._runner.sleep(some)
            wait -= some
        self._turn.step()

    def _record(self, batches: Sequence[Batch]) -> set[str]:
        """Returns the shards in flight that were met."""
        met = set[str]()
        # a server may send more than it was asked for; visitors see an empty page, too
        for start in range(0, len(batches) or 1, CHUNK):
            some, net = batches[start : start + CHUNK], SAFETY_NET_SECONDS * random.uniform(0.9, 1.0)
            seen = self._runner.store.looks.record_page(self._account, some, every=COUNTS_SECONDS, net=net)
            for job_id, index in seen.wake:
                republish_or_set_aside(self._runner, job_id, index, "waiting")
            for job_id, index in seen.granted:
                republish_or_set_aside(self._runner, job_id, index, "overdue")
            met |= seen.met
            for visitor in self._visitors:
                # ours, too: else the next look would take them for batches of others, and leave them out
                met |= {self._runner.store.connection.member(*place) for place in visitor.visit(some, seen.recorded)}
        return met
