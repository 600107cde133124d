"""One walk through an account's list for all create calls without a clear answer.

A visitor of looks settles each batch of a shard that waits for one, and notes how far the walk came. What such notes
tell about a shard is in ``walks``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from batchpipe.model.provider import Batch, Provider
from batchpipe.model.records import UPLOAD_NAME, ShardRecord, Status
from batchpipe.pipeline.batch_search import MOST_READ, Declared, is_ours, name_of_input, read_batch
from batchpipe.pipeline.looks import Walk
from batchpipe.pipeline.noted_walks import NotedWalk, asked_at
from batchpipe.pipeline.surplus import cancel

logger = logging.getLogger(__name__)

Place = tuple[str, int]
#: Batches that will bring nothing more: another one is kept rather than these.
_DEAD = (Status.FAILED, Status.EXPIRED, Status.CANCELLED, Status.CANCELED, "cancelling")


class UnansweredRecords(Declared, Protocol):
    """What the visitor may do with the records of an account."""

    @property
    def own(self) -> Place | None:
        """The shard whose turn this is, if it is one's."""

    def now(self) -> float:
        """The time of Redis' clock."""

    def oldest(self) -> float | None:
        """The earliest time of a call without a clear answer, by the provider's clock, less what clocks may differ;
        None: there is none."""

    def unanswered(self, places: Sequence[Place]) -> Mapping[Place, ShardRecord]:
        """Those of these shards that have one."""

    def of_files(self, file_ids: Sequence[str]) -> Sequence[Place | None]:
        """The shards with one whose input files these are."""

    def known(self, batch_ids: Sequence[str]) -> Mapping[str, ShardRecord]:
        """Those of these batches that a record names, with its shard."""

    def adopt(self, shard: ShardRecord, batch: Batch, *, sure: bool) -> str:
        """Record the batch as the shard's, and let it go on. Returns the verdict, see ``Shards.settle``."""

    def note_walk(self, walk: NotedWalk) -> None:
        """Keep it, and let the shards go on that it tells enough."""


class Search:
    """The visitor. ``reads``: batches that the list shows without a sign of their owner are read one by one."""

    def __init__(
        self, records: UnansweredRecords, api: Provider, *, reads: bool, check: Callable[[], None] = lambda: None
    ) -> None:
        self._records, self._api, self._reads, self._check = records, api, reads, check
        self._oldest: float | None = None
        self._begun: float | None = None
        self._tells = self._hides = False
        self._unsigned: dict[str, Batch] = {}
        self._dead: list[tuple[ShardRecord, Batch]] = []

    def visit(self, batches: Sequence[Batch], recorded: frozenset[str]) -> set[Place]:
        """Settle those that are found; note whether the list shows signs, and what shows none."""
        if self._begun is None:
            self._begun, self._oldest = self._records.now(), self._records.oldest()
        if self._oldest is None:
            return set()  # calls that are made from now on are no business of this walk
        self._check()
        found = self._owners([batch for batch in batches if batch.id not in recorded])
        settled = self._settle(found)
        ours = {batch.id for _, batch in found}
        unsigned = [b for b in batches if b.id not in ours and "batchpipe_key" not in b.metadata]
        self._tells = self._tells or bool(ours) or any("batchpipe_key" in batch.metadata for batch in batches)
        known = self._records.known([batch.id for batch in unsigned])
        for batch in unsigned:
            if (owner := known.get(batch.id)) is not None:
                shows = batch.input_file_id in (owner.file_id, *owner.unused_files)
                self._tells, self._hides = self._tells or shows, self._hides or not shows
            elif batch.created_at is None or batch.created_at >= self._oldest:
                self._unsigned[batch.id] = batch
        latest = sorted(self._unsigned.values(), key=lambda b: -(b.created_at or float("inf")))
        self._unsigned = {batch.id: batch for batch in latest[: MOST_READ + 1]}
        return settled

    def walked(self, walk: Walk) -> None:
        """Note the walk, once all that it met is settled. Raises what reads raise: then it is no walk."""
        if self._oldest is None:
            return
        self._settle(self._dead, late=True)
        signs = self._tells and not self._hides
        left = [] if signs else list(self._unsigned.values())
        read = not left or self._reads
        if left and self._reads:
            left = self._read_one_by_one(left)
        self._records.note_walk(
            NotedWalk(
                begun=walk.begun,
                ended=self._records.now(),
                reached=walk.reached,
                seen_as=self._api.identity,
                signs=signs,
                unsigned=[(batch.id, batch.created_at) for batch in left],
                read=read,
            )
        )

    def _owners(self, batches: Sequence[Batch]) -> list[tuple[ShardRecord, Batch]]:
        """The batches that show that they are of a shard that waits for one."""
        places: dict[str, set[Place]] = {batch.id: set() for batch in batches}
        of_files = [batch for batch in batches if batch.input_file_id]
        for batch, place in zip(
            of_files, self._records.of_files([str(b.input_file_id) for b in of_files]), strict=True
        ):
            places[batch.id] |= {place} if place else set()
        for batch in batches:
            place = place_of_key(batch.metadata.get("batchpipe_key"))
            places[batch.id] |= {place} if place else set()
        shards = self._records.unanswered(list({place for each in places.values() for place in each}))
        return [
            (shard, batch)
            for batch in batches
            for place in places[batch.id]
            if (shard := shards.get(place)) is not None
            if batch.id not in shard.spent and is_ours(batch, shard, self._records)
        ]

    def _settle(self, found: Sequence[tuple[ShardRecord, Batch]], *, late: bool = False) -> set[Place]:
        """The oldest that lives is kept. A dead one only if the whole walk meets no other. Returns whose were found."""
        settled = set[Place]()
        for shard, batch in sorted(found, key=lambda each: (each[1].created_at or 0.0, each[1].id)):
            if batch.status in _DEAD and not late:
                self._dead.append((shard, batch))
            elif not self._is_under_way(shard):
                self._adopt(shard, batch, sure=True)
                settled.add((shard.job, shard.index))
        return settled

    def _is_under_way(self, shard: ShardRecord) -> bool:
        """The call is just being made: its turn settles what it makes, and this walk proves nothing about it."""
        begun = self._begun or 0.0
        living = shard.token is not None and (shard.lease_until or 0.0) > self._records.now()
        return living and (shard.job, shard.index) != self._records.own and asked_at(shard, 0.0) > begun

    def _adopt(self, shard: ShardRecord, batch: Batch, *, sure: bool) -> None:
        if self._records.adopt(shard, batch, sure=sure) == "cancel":
            ids = {"job": shard.job, "shard": shard.index, "batch": batch.id}
            logger.error("a batch is cancelled: its shard has another", extra={"event": "orphan", **ids})
            cancel(batch, self._api)

    def _read_one_by_one(self, left: Sequence[Batch]) -> list[Batch]:
        """A list may leave out fields that a batch shows when it is read, and the name of its file may tell its owner.

        Returns those that tell nothing.
        """
        nobodys = []
        for listed in left[:MOST_READ]:
            self._check()
            batch = read_batch(listed.id, self._api)
            if batch is None:
                continue
            found = self._owners([batch])
            for shard, _ in found:
                self._adopt(shard, batch, sure=True)
            if found or "batchpipe_key" in batch.metadata:
                continue
            name = name_of_input(batch, self._api)
            if name is None:
                nobodys.append(batch)
            elif (owner := self._named(name)) is not None:
                self._adopt(owner, batch, sure=False)
        return nobodys + list(left[MOST_READ:])

    def _named(self, name: str) -> ShardRecord | None:
        """The shard that waits for a batch of the file with this name."""
        parts = UPLOAD_NAME.fullmatch(name)
        if parts is None:
            return None
        place = (parts[1], int(parts[2]))
        shard = self._records.unanswered([place]).get(place)
        return shard if shard is not None and shard.upload_name == name else None


def place_of_key(key: str | None) -> Place | None:
    """The job and shard of a ``batchpipe_key`` (job:index:try)."""
    job, _, rest = (key or "").partition(":")
    index = rest.partition(":")[0]
    return (job, int(index)) if job and index.isascii() and index.isdigit() and len(index) < 10 else None
