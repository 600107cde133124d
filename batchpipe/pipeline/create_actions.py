"""What the create step is given, and how its turn can end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from batchpipe.model.provider import Batch
from batchpipe.model.records import Move, Problem
from batchpipe.model.room import TooLarge
from batchpipe.pipeline.batch_search import SearchContext
from batchpipe.pipeline.noted_walks import NotedWalk

HELD_BACK = Problem(
    code="cancelled_elsewhere",
    message="not sent: a batch of this job was cancelled at the provider, and nothing more was to be sent",
)
CANCELLED = Problem(code="cancelled", message="the job was cancelled before a batch was created")


class CreateActions(SearchContext, Protocol):
    """What this step may do with the shard's record, under its lease."""

    lists_batches: bool  #: the account's settings say that its provider has a list of batches
    grace_seconds: float
    lease_seconds: float
    unseen_seconds: float  #: how long to wait, at least, for what the key does not see
    refusal_seconds: float  #: how long to wait for a refusal that may pass
    resend_unanswered: bool  #: the account's settings say that a call without a clear answer may be repeated

    def now(self) -> float:
        """The time of Redis' clock."""

    def leapt(self, since: float) -> bool:
        """Whether Redis' clock leapt forward since; if so, the real time that has passed is unknown."""

    def walk(self, after: float, since: float) -> NotedWalk | Settled | None:
        """A walk through the list that began ``after`` then or later and went back to ``since``, by the provider's
        clock; if there is none, walk now.

        Returns None if somebody else walks, or has just failed to. Raises Refused if the provider cannot list;
        Unavailable, Paused, LeaseLost.
        """

    def patience(self) -> float:
        """How long to wait for a walk of somebody else, which publishes the shard again at its end. Seconds."""

    def spread(self) -> float:
        """A part of the time, in seconds, over which the shards that are cleared together come back."""

    def intend(self, identity: str) -> bool:
        """Record the intent. Returns whether the job is being cancelled. Raises LeaseLost."""

    def withdraw(self) -> None:
        """The call was clearly refused, or never made."""

    def too_late_to_call(self) -> bool:
        """More than half of the lease is gone."""

    def record_named(self, batch_ids: Mapping[str, bool]) -> None:
        """Record the ids that an unclear answer named (True: that it was about), before anything else is done."""

    def settle(self, batch: Batch, *, sure: bool = False) -> str:
        """Record the id: ok (this turn is over), late, known, other (another shard's), or cancel (it must not live).

        ``sure``: the batch itself shows our key or file.
        """


class GiveUp(msgspec.Struct, frozen=True):
    """This shard will have no batch: account for its rows with this reason."""

    problem: Problem
    refused: bool = False  #: the provider refused; else no answer came for these rows


class Over(msgspec.Struct, frozen=True):
    """The turn is over: ``settled`` by this one, else another turn goes on with the shard."""

    settled: bool
    after: float = 0.0  #: seconds until the batch is looked at for the first time


class Settled(msgspec.Struct, frozen=True):
    """A walk has met the shard's batch and settled it. ``over``: this turn goes on with it, else another one."""

    here: bool


Ending = Move | GiveUp | Over | TooLarge
