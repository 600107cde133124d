"""How shards wait for room at the provider, and how long that is likely to take. Read for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from batchpipe.model.admission import SPAN, Room, Waiting, without_date
from batchpipe.model.eta import Delay, delay_of, unless_in_trouble
from batchpipe.model.pace import History
from batchpipe.model.records import ShardRecord
from batchpipe.store import Store

#: Characters of a model's name that its room keeps.
MOST_OF_A_NAME = 200
#: How a shard waits; None: it does not.
ShardRoom = Callable[[ShardRecord], Waiting | None]


class WaitingShards:
    """How shards wait for room, read a hundred at a time: they are asked for in the order of their indexes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, int], Waiting] = {}
        self._read = range(0)

    def __call__(self, shard: ShardRecord) -> Waiting | None:
        if shard.waits_since is None:
            return None
        if shard.index not in self._read:
            self._read = range(shard.index, shard.index + 100)
            self._known = self._store.admission.waiting_of([(shard.job, index) for index in self._read])
        return self._known.get((shard.job, shard.index))


def waiting_among(store: Store, shards: Iterable[ShardRecord]) -> ShardRoom:
    """How these shards wait. Raises StoreUnavailable."""
    places = [(shard.job, shard.index) for shard in shards if shard.waits_since is not None]
    known = store.admission.waiting_of(places)
    return lambda shard: known.get((shard.job, shard.index))


class Delays:
    """In how many seconds the waiting shards of an account are sent: by their place in the line, by how many batches
    run in that room, and by how long each of them takes."""

    def __init__(
        self, rooms: Callable[[], Sequence[Room]], waiting: ShardRoom, history: Callable[[str | None], History]
    ) -> None:
        """``rooms``: those of the account, asked for again and again."""
        self._rooms, self._waiting, self._history = rooms, waiting, history

    def __call__(self, shard: ShardRecord) -> Delay | None:
        """None: that is not known. Raises StoreUnavailable."""
        if shard.waits_since is None or (waiting := self._waiting(shard)) is None:
            return unless_in_trouble(shard)
        if waiting.kind in SPAN:
            room = self._room(waiting.kind)
            per_second = (room.limit or 0) / SPAN[room.kind] if room is not None else 0.0
            return Delay(self._place(waiting, room) / per_second) if per_second else None
        if waiting.kind not in ("tokens", "batches", "turn"):  # a person, or the end of a pause, is waited for
            return None
        room = self._room("batches") if waiting.kind == "batches" else self._room("tokens", shard.model)
        took = self._history(shard.model).mean()
        if room is None or took is None or not room.holders or not waiting.place:
            return None
        return delay_of(self._place(waiting, room), room.holders, *took)

    @staticmethod
    def _place(waiting: Waiting, room: Room | None) -> int:
        """What belongs to the account is shared by the lines of all its models."""
        shared = room is not None and room.kind != "tokens" and waiting.of
        return round(waiting.place * max(room.waiting / waiting.of, 1.0)) if shared and room else waiting.place

    def _room(self, kind: str, model: str | None = None) -> Room | None:
        named = without_date(model)[:MOST_OF_A_NAME] or None
        return next((room for room in self._rooms() if room.kind == kind and room.model == named), None)
