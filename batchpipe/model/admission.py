"""What a shard needs before it is sent, and what is known about the room for it. Pure.

A resource is a kind (``tokens``, ``batches``, ``creations``, ``uploads``) of an account, tokens of an account and a
model. A shard *holds* tokens and a batch from its admission until its batch has ended; creations and uploads are
counted within a span of time, and come back with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

import msgspec

Kind = Literal["tokens", "batches", "creations", "uploads"]
#: Limits as the settings say them: kind -> amount; what is missing is learned, or not limited.
Limits = Mapping[Kind, int]

#: The seconds within which creations and uploads are counted, as in ``rooms.lua``.
SPAN: Mapping[Kind, float] = {"creations": 3_600.0, "uploads": 60.0}
#: Tokens per byte of a shard's file, where nothing is known about its model.
FIRST_RATIO = 0.25
#: Estimates of tokens are so much higher than the ratio says: one that is too low is refused, one too high only waits.
RATIO_MARGIN = 1.05
#: A shard that was admitted and uses this for nothing loses it after so many seconds, and asks again.
IDLE_SECONDS = 900.0
#: A shard that waits is woken by the grant; if that is lost, it asks again after so many seconds.
WAIT_SECONDS = 600.0
#: The date at the end of a model's name.
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


class Full(msgspec.Struct, frozen=True, kw_only=True):
    """The provider had no room: written as the field ``full`` when the turn ends."""

    kind: Kind = "tokens"
    limit: int | None = None  #: the number in the provider's words, if there is one; of creations and uploads: in SPAN
    after: float | None = None  #: of creations and uploads: nobody tries again before so many seconds


@dataclass(frozen=True)
class Admitted:
    """The shard may be sent: it holds what it needs, now or since before."""


@dataclass(frozen=True)
class Waiting:
    """The shard waits in the queue of its account and model."""

    place: int  #: from 1, in fair order; an estimate where more than one job waits
    of: int  #: shards that wait in this queue
    kind: (
        str  #: what is lacking: a ``Kind``, ``turn`` (others go first), ``paused`` (the account) or ``hold`` (the job)
    )


@dataclass(frozen=True)
class Room:
    """One resource as it is now. ``sent``: the part of ``held`` that is at the provider, or may be."""

    account: str
    kind: Kind
    model: str | None  #: of tokens; None also for rows that name no model
    held: int  #: amount reserved; of creations and uploads: made within their span
    sent: int
    limit: int | None  #: what is in force: the lower of the two below; None: not known
    configured: int | None
    learned: int | None
    holders: int  #: shards that hold some of it; 0 for creations and uploads
    waiting: int  #: shards in the queue of this model; of what belongs to the account, in all of its queues


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild found: holds of shards that need none, shards in flight without one, sums that were wrong."""

    dropped: int = 0
    added: int = 0
    corrected: int = 0


def tokens_of(size: int, ratio: float) -> int:
    """Estimated input tokens of a file of so many bytes, a little high."""
    return max(ceil(size * ratio * RATIO_MARGIN), 1)


def needs_of(size: int, ratio: float, *, upload: bool) -> dict[Kind, int]:
    """What a shard needs whose file has so many bytes; ``upload``: the file is not at the provider yet."""
    needs: dict[Kind, int] = {"tokens": tokens_of(size, ratio), "batches": 1, "creations": 1}
    return needs | {"uploads": 1} if upload else needs


def without_date(model: str | None) -> str:
    """A model's name without the date of its version: versions share one room, as in ``rooms.lua``."""
    return _DATE.sub("", model or "")
