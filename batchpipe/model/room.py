"""What a shard waits for before it is sent, in words; and what follows when there was no room after all. Pure."""

from __future__ import annotations

from typing import Any

from batchpipe.errors import TOKEN_LIMIT
from batchpipe.model.admission import WAIT_SECONDS, Full, Waiting
from batchpipe.model.records import Move, Problem, ShardRecord, Stage
from batchpipe.model.said_limits import said_token_limit

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
    return f"{_what(waiting)}{place}"


def _what(waiting: Waiting) -> str:
    return f"waits for {_WORDS.get(waiting.kind, waiting.kind)}"


def waits_for(waiting: Waiting) -> dict[str, Any]:
    """The same as the JSON of ``status``."""
    place, of = (waiting.place, waiting.of) if waiting.place and waiting.of else (None, None)
    return {"code": waiting.kind, "message": _what(waiting), "place": place, "of": of}


def parked(shard: ShardRecord, waiting: Waiting) -> Move:
    """A turn that ends without a message: whoever grants it room publishes it. Its due time is the safety net."""
    said = {"message": in_words(waiting), "lacks": waiting.kind}
    return Move(
        stage=Stage(shard.stage),
        after=WAIT_SECONDS,
        # what it was refused for stays: it is waited out from the first refusal on
        changes={"refused_at": shard.refused_at, "trouble": shard.trouble},
        events=[] if shard.waits_since is not None else [("waits_for_room", said)],
        parked=True,
    )


def queue_full(shard: ShardRecord, message: str, changes: dict[str, Any], *, otherwise: float) -> Move:
    """The provider's queue of tokens is full and no row ran: the shard waits as the first of its job.

    ``otherwise``: the pause of one that never asked for room, as older versions sent it; it asks when it comes back.
    """
    return Move(
        stage=Stage.UPLOADED,
        after=WAIT_SECONDS if shard.needs else otherwise,
        changes={
            **changes,
            "trouble": Problem(code=TOKEN_LIMIT, message=message),
            "full": Full(kind="tokens", limit=said_token_limit(message)),
        },
        events=[("token_limit", {"message": message})],
        parked=bool(shard.needs),
    )
