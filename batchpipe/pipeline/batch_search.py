"""Looks for the batch that a create call without a clear answer may have made: by the ids that answers named, then
through the provider's list. Nothing is called here that changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from batchpipe.errors import NO_ROUTE, Refused, Unavailable
from batchpipe.model.provider import CLOCK_SLACK_SECONDS, Batch, ProviderReads
from batchpipe.model.records import JobRecord, ShardRecord, Status

#: How many batches that a list shows without a sign of their owner are read one by one.
MOST_READ = 10
#: Responses to reading a batch that no later try changes.
_NEVER_READ = ("nonsense", NO_ROUTE)


class SearchContext(Protocol):
    """What a search needs to know beside the provider."""

    lists_batches: bool  #: the account's settings say that its provider has a list of batches,
    echoes_metadata: bool  #: and that it shows their metadata

    def ahead(self) -> float:
        """How much Redis' clock may be ahead of the provider's, in seconds."""

    def known(self, batch_ids: Sequence[str]) -> Mapping[str, ShardRecord]:
        """Those of them that a record names, with its shard."""


class Seen(msgspec.Struct):
    """What was found out about earlier calls under a shard's key."""

    found: list[Batch] = []  #: batches made under it, the one to keep first
    candidates: list[Batch] = []  #: batches that could be ours, by the time they were made
    doubt: str = ""  #: why it cannot be known whether there is one
    unread: bool = False  #: an answer named an id that the provider does not know (yet)


def look(job: JobRecord, shard: ShardRecord, api: ProviderReads, context: SearchContext) -> Seen:
    """Read the ids that answers named; then look through the list. Raises Unavailable, Paused."""
    seen = _look_at_named(job, shard, api, context)
    if seen.found:
        return seen
    try:
        if not context.lists_batches:
            raise Refused("so its settings say")
        listed = _look_through_list(seen.candidates, shard, api, context)
    except Refused as error:
        listed = Seen(doubt=f"the provider cannot list batches ({error})")
    listed.doubt, listed.unread = seen.doubt or listed.doubt, seen.unread
    dead = (Status.FAILED, Status.EXPIRED, Status.CANCELLED, Status.CANCELED, "cancelling")
    listed.found.sort(key=lambda batch: (batch.status in dead, batch.created_at or 0.0, batch.id))
    return listed


def _look_at_named(job: JobRecord, shard: ShardRecord, api: ProviderReads, context: SearchContext) -> Seen:
    """The batch that an answer to our call is about counts as ours, unless it shows that it is not.

    One that the answer only mentions must itself show that it is ours; else it is treated like any batch of the list.
    """
    seen = Seen()
    known = context.known(list(shard.named))
    for name, about in shard.named.items():
        if name in shard.spent:
            continue
        try:
            batch = read_batch(name, api)
        except Unavailable as error:
            if error.code not in _NEVER_READ:
                raise
            seen.doubt = f"its answer named {name}, which cannot be read ({error})"
            continue
        if batch is None:
            seen.unread = True
            continue
        key = batch.metadata.get("batchpipe_key")
        if is_ours(batch, shard, context):
            return Seen(found=[batch])
        if name in known or (key or "").startswith(f"{job.id}:"):
            continue
        if key is None and about and not _is_older(batch, shard, context):
            return Seen(found=[batch])
        if key is None:
            seen.candidates.append(batch)
        elif about:
            seen.doubt = f"its answer named {name}, which shows the key of other rows ({key})"
    return seen


def read_batch(name: str, api: ProviderReads) -> Batch | None:
    """Returns None if the provider does not know it as a batch. Raises Unavailable, Paused."""
    try:
        return api.retrieve(name)
    except Refused:
        return None


def _is_older(batch: Batch, shard: ShardRecord, context: SearchContext) -> bool:
    """Whether it was there before our first call."""
    return batch.created_at is not None and batch.created_at < _since(shard, context)


def _since(shard: ShardRecord, context: SearchContext) -> float:
    """The earliest time of the first intent on the provider's clock: we cannot know which clock is right."""
    return (shard.intent_at or 0.0) - max(shard.intent_ahead, context.ahead()) - CLOCK_SLACK_SECONDS


def _look_through_list(candidates: list[Batch], shard: ShardRecord, api: ProviderReads, context: SearchContext) -> Seen:
    """Batches made under this shard's key. In doubt if the list shows some that could be ours, without a sign of that.

    Whether a list shows signs (our metadata, or input files) is known from the batches in it that are certainly ours.
    Raises Refused if the provider has no list.
    """
    found: dict[str, Batch] = {}
    others = {batch.id: batch for batch in candidates}
    tells = hides = False
    batches = api.iter_batches(_since(shard, context))
    while page := list(islice(batches, 100)):
        found |= {b.id: b for b in page if b.id not in shard.spent and is_ours(b, shard, context)}
        tells = tells or any("batchpipe_key" in batch.metadata for batch in page)
        unsigned = [b for b in page if b.id not in found and "batchpipe_key" not in b.metadata]
        known = context.known([batch.id for batch in unsigned])
        for batch in unsigned:
            owner = known.get(batch.id)
            if owner is None:
                others |= {} if _is_older(batch, shard, context) or len(others) > MOST_READ else {batch.id: batch}
            elif batch.input_file_id in (owner.file_id, *owner.unused_files):
                tells = True
            else:
                hides = True
    if found or not others or (tells and not hides):
        return Seen(found=list(found.values()))
    return _read_one_by_one(list(others.values()), shard, api, context)


def _read_one_by_one(candidates: list[Batch], shard: ShardRecord, api: ProviderReads, context: SearchContext) -> Seen:
    """A list may leave out fields that a batch shows when it is read, and the name of its file may tell its owner."""
    left: list[str] = []
    for candidate in candidates[:MOST_READ]:
        batch = read_batch(candidate.id, api)
        if batch is None or ("batchpipe_key" in batch.metadata and not is_ours(batch, shard, context)):
            continue
        name = _name_of_input(batch, api)
        if is_ours(batch, shard, context) or name == shard.upload_name:
            return Seen(found=[batch])
        if name is None:
            left.append(batch.id)
    left += [batch.id for batch in candidates[MOST_READ:]]
    if not left:
        return Seen()
    return Seen(
        doubt=f"the provider's list does not show which shard batches belong to: ours may be {' or '.join(left[:3])}"
    )


def _name_of_input(batch: Batch, api: ProviderReads) -> str | None:
    """None if that cannot be found out. Raises Unavailable, Paused."""
    try:
        return api.file_name(batch.input_file_id) if batch.input_file_id else None
    except Refused:
        return None


def is_ours(batch: Batch, shard: ShardRecord, context: SearchContext) -> bool:
    """Whether the batch itself shows that it is ours: by our key, or, if it has no key, by our input file."""
    key = batch.metadata.get("batchpipe_key")
    if key == shard.key:
        return True
    if key is not None and context.echoes_metadata:
        return False
    return batch.input_file_id is not None and batch.input_file_id in (shard.file_id, *shard.unused_files)
