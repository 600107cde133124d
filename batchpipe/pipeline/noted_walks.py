"""What walks through an account's list tell about a create call without a clear answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from batchpipe.model.records import ShardRecord, Stage


class NotedWalk(msgspec.Struct, frozen=True, kw_only=True):
    """A walk that came to its end while creates were unanswered. Times are ours, those of batches the provider's."""

    begun: float
    ended: float
    reached: float  #: back to then it left no batch out
    seen_as: str = ""  #: ``Provider.identity`` of the key that read the list
    signs: bool = True  #: the list shows whose its batches are
    #: the latest batches of which nobody can tell whose they are, with the times when they were made
    unsigned: list[tuple[str, float | None]] = []
    read: bool = True  #: of these, those that could be read told nothing either; else they were not read

    def candidates(self, since: float) -> list[str]:
        """Which of these may have been made since then."""
        return [name for name, made in self.unsigned if made is None or made >= since]


encode_walk = msgspec.json.encode
_decoder = msgspec.json.Decoder(NotedWalk)


def decode_walk(text: str) -> NotedWalk | None:
    """None if a newer version wrote it in a way that this one does not understand: then it proves nothing here."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError:
        return None


def telling_walk(walks: Sequence[NotedWalk], *, after: float, since: float, seen_as: str) -> NotedWalk | None:
    """The first of these walks that tells what became of a shard's calls; None if none does.

    It began ``after`` then or later, left nothing out back to ``since``, and was made with the key of the caller
    (``seen_as``), for a key of another project sees another list. One that leaves a doubt is taken only if all do.
    """
    useful = [
        walk
        for walk in sorted(walks, key=lambda walk: walk.ended)
        if walk.begun >= after and walk.reached <= since and walk.seen_as == seen_as
        if walk.read or not walk.candidates(since)
    ]
    clear = [walk for walk in useful if not walk.candidates(since)]
    return clear[0] if clear else useful[-1] if useful else None


def asked_at(shard: ShardRecord, now: float) -> float:
    """From when on a walk shows what the shard's calls made: none of them was under way any more.

    ``now``, under the shard's lease, where that was not noted: a worker of an older version made the last call.
    """
    noted = shard.calls and shard.latest_call == shard.calls[-1]
    return shard.call_over_at if noted and shard.call_over_at is not None else now


def is_seen_by(shard: ShardRecord, identity: str) -> bool:
    """Whether all of a shard's calls were made with this key, so that what they made is in the list that it sees."""
    noted = bool(shard.calls) and shard.latest_call == shard.calls[-1]
    return noted and bool(identity) and shard.called_as == identity


def is_unanswered(shard: ShardRecord) -> bool:
    return shard.stage == Stage.UPLOADED and shard.intent_at is not None and shard.batch_id is None
