"""What a shard waits for before it is sent, in words; and what follows when there was no room after all. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from batchpipe.errors import BATCH_LIMIT, TOKEN_LIMIT, Unavailable
from batchpipe.model.admission import SPAN, WAIT_SECONDS, Full, Kind, Waiting
from batchpipe.model.records import JobRecord, Move, Problem, ShardRecord, Stage
from batchpipe.model.said_limits import said_batch_limit, said_rate, said_token_limit

#: By what is lacking, see ``Waiting.kind``.
_WORDS = {
    "tokens": "room in the provider's queue of tokens for its model",
    "batches": "an unfinished batch of the account to end",
    "creations": "the account's next creation of a batch within the hour",
    "uploads": "the account's next upload within the minute",
    "turn": "its turn: others go first",
    "paused": "the end of the account's pause",
    "hold": "a person to decide about the job",
}


def in_words(waiting: Waiting) -> str:
    """What it waits for, and at which place."""
    place = f" (place {waiting.place:,} of {waiting.of:,})" if waiting.place and waiting.of else ""
    return f"waits{_what(waiting).removeprefix('wait')}{place}"


def _what(waiting: Waiting) -> str:
    return f"wait for {_WORDS.get(waiting.kind, waiting.kind)}"


def waits_for(waiting: Waiting) -> dict[str, Any]:
    """The same as the JSON of ``status``."""
    place, of = (waiting.place, waiting.of) if waiting.place and waiting.of else (None, None)
    return {"code": waiting.kind, "message": _what(waiting), "place": place, "of": of}


class TooLarge(msgspec.Struct, frozen=True):
    """The shard needs more than the provider's queue has in all. ``again``: its rows go into smaller ones, in a further
    round; else it is given up, as it was refused again and again.
    """

    problem: Problem
    full: Full
    again: bool


#: Where the provider says how often, and not when again: seconds until the shard asks.
FIRST_PAUSE = 5.0
#: A shard that needs more than the provider's own number is given up after so many refusals: ours is an estimate.
MOST_REFUSALS = 5


def parked(shard: ShardRecord, waiting: Waiting) -> Move:
    """A turn that ends without a message: whoever grants it room publishes it. Its due time is the safety net."""
    said = {"message": in_words(waiting), "lacks": waiting.kind}
    return Move(
        stage=Stage(shard.stage),
        after=WAIT_SECONDS,
        # what it was refused for stays: it is waited out from the first refusal on
        changes={"refused_at": shard.refused_at, "trouble": shard.trouble},
        events=[] if shard.waits_since is not None else [("waits_for_room", said)],
        parked=in_words(waiting),
    )


def no_room(job: JobRecord, shard: ShardRecord, error: BaseException) -> Move | TooLarge | None:
    """What follows if a create call was refused for want of room; None if it was something else.

    A shard that never asked for room, as older versions sent it, is tried again like after any trouble.
    """
    if not shard.needs or not isinstance(error, Unavailable):
        return None
    if error.code == TOKEN_LIMIT:
        return queue_full(job, shard, error.message, {}, otherwise=0.0)
    if error.code == BATCH_LIMIT:
        return batches_full(shard, error.message, {}, otherwise=0.0)
    return too_fast(shard, error, "creations")


def too_fast(shard: ShardRecord, error: Unavailable, kind: Literal["creations", "uploads"]) -> Move | None:
    """The account may not create, or upload, as often: nobody does before the time that the provider names, and the
    shard, which has asked for room, is the first of its job. None if it names neither a time nor a rate."""
    rate = said_rate(error.message, error.limits) if error.status == 429 else None
    if error.status != 429 or (rate is None and error.after is None):
        return None
    # a rate of days says nothing about the hour
    fits = rate is not None and rate.seconds <= SPAN[kind]
    limit = max(round(rate.most * SPAN[kind] / rate.seconds), 1) if rate is not None and fits else None
    after = min(error.after if error.after is not None else FIRST_PAUSE, WAIT_SECONDS)
    full = Full(kind=kind, limit=limit, after=error.after)
    return _waits_for_room(shard, full, error.code, error.message, {}, after=after)


def batches_full(shard: ShardRecord, message: str, changes: dict[str, Any], *, otherwise: float) -> Move:
    """Too many batches of the account are unfinished, and no row ran. ``otherwise``: see ``queue_full``."""
    full = Full(kind="batches", limit=said_batch_limit(message))
    after = WAIT_SECONDS if shard.needs else otherwise
    return _waits_for_room(shard, full, BATCH_LIMIT, message, changes, after=after, asked=bool(shard.needs))


def queue_full(
    job: JobRecord, shard: ShardRecord, message: str, changes: dict[str, Any], *, otherwise: float
) -> Move | TooLarge:
    """The provider's queue of tokens is full and no row ran: the shard waits as the first of its job.

    One that can never fit is cut again, if it has more than one row and the job a further round.
    ``otherwise``: the pause of one that never asked for room, as older versions sent it; it asks when it comes back.
    """
    full = Full(kind="tokens", limit=said_token_limit(message))
    refusals = max(len(shard.spent), shard.backoff) + 1
    if full.limit is not None and shard.needs.get("tokens", 0) > full.limit:
        again = shard.rows > 1 and not shard.refused_once and job.round < job.attempts
        if again or refusals >= MOST_REFUSALS:
            return TooLarge(_too_large(shard, message, again=again), full, again)
    after = WAIT_SECONDS if shard.needs else otherwise
    return _waits_for_room(shard, full, TOKEN_LIMIT, message, changes, after=after, asked=bool(shard.needs))


def _waits_for_room(
    shard: ShardRecord,
    full: Full,
    code: str,
    message: str,
    changes: dict[str, Any],
    *,
    after: float,
    asked: bool = True,
) -> Move:
    return Move(
        stage=Stage.PLANNED if full.kind == "uploads" else Stage.UPLOADED,
        after=after,
        changes={
            **changes,
            "trouble": Problem(code=code, message=message),
            "full": full,
            "backoff": shard.backoff + 1,
        },
        events=[(_EVENTS[full.kind], {"message": message})],
        parked=message if asked else "",
    )


_EVENTS: dict[Kind, str] = {
    "tokens": "token_limit",
    "batches": "batch_limit",
    "creations": "rate_limit",
    "uploads": "rate_limit",
}


def _too_large(shard: ShardRecord, message: str, *, again: bool) -> Problem:
    ends = "its rows are sent again in smaller ones" if again else f"with smaller ones: batchpipe retry {shard.job}"
    needed = f"a shard of {shard.rows:,} rows needs about {shard.needs['tokens']:,} tokens; {ends}"
    return Problem(code=TOKEN_LIMIT, message=f"{message} ({needed})")


def with_limit(collected: Move, found: TooLarge) -> Move:
    """The end of a shard that was too large: its refusal teaches the limit."""
    event = ("too_large", {"message": found.problem.message})
    changes = {**collected.changes, "full": found.full}
    return msgspec.structs.replace(collected, changes=changes, events=[*collected.events, event])
