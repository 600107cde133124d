"""Looks for the batch that a create call without a clear answer may have made: by the ids that answers named, and what
makes a batch a shard's own. The list is read for all shards at once: see ``unanswered``. Nothing is called here that
changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from batchpipe.errors import NO_ROUTE, Refused, Unavailable
from batchpipe.model.provider import CLOCK_SLACK_SECONDS, Batch, ProviderReads
from batchpipe.model.records import JobRecord, ShardRecord

#: How many batches that a list shows without a sign of their owner are read one by one.
MOST_READ = 10
#: Responses to reading a batch that no later try changes.
_NEVER_READ = ("nonsense", NO_ROUTE)


class Declared(Protocol):
    """What the settings of an account say of its provider."""

    echoes_metadata: bool  #: its list shows the metadata of batches


class SearchContext(Declared, Protocol):
    """What a search needs to know beside the provider."""

    def ahead(self) -> float:
        """How much Redis' clock may be ahead of the provider's, in seconds."""

    def known(self, batch_ids: Sequence[str]) -> Mapping[str, ShardRecord]:
        """Those of them that a record names, with its shard."""


class Seen(msgspec.Struct):
    """What the ids tell that answers to earlier calls under a shard's key named."""

    found: list[Batch] = []  #: the batch made under it
    candidates: list[Batch] = []  #: batches that could be ours
    doubt: str = ""  #: why it cannot be known whether there is one
    unread: bool = False  #: an answer named an id that the provider does not know (yet)


def look_at_named(job: JobRecord, shard: ShardRecord, api: ProviderReads, context: SearchContext) -> Seen:
    """The batch that an answer to our call is about counts as ours, unless it shows that it is not.

    One that the answer only mentions must itself show that it is ours; else it is treated like any batch of the list.
    Raises Unavailable, Paused.
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
    return batch.created_at is not None and batch.created_at < since_of(shard, context.ahead())


def since_of(shard: ShardRecord, ahead: float) -> float:
    """The earliest time of the first intent on the provider's clock: we cannot know which clock is right."""
    return (shard.intent_at or 0.0) - max(shard.intent_ahead, ahead) - CLOCK_SLACK_SECONDS


def read_one_by_one(
    candidates: Sequence[Batch], shard: ShardRecord, api: ProviderReads, context: SearchContext
) -> tuple[Batch | None, list[str]]:
    """The one of these batches that is the shard's, if it shows that when it is read, or by the name of its file; and
    the ids of those that tell nothing. Raises Unavailable, Paused."""
    left: list[str] = []
    for candidate in candidates[:MOST_READ]:
        batch = read_batch(candidate.id, api)
        if batch is None or ("batchpipe_key" in batch.metadata and not is_ours(batch, shard, context)):
            continue
        name = name_of_input(batch, api)
        if is_ours(batch, shard, context) or name == shard.upload_name:
            return batch, []
        if name is None:
            left.append(batch.id)
    return None, left


def name_of_input(batch: Batch, api: ProviderReads) -> str | None:
    """None if that cannot be found out. Raises Unavailable, Paused."""
    try:
        return api.file_name(batch.input_file_id) if batch.input_file_id else None
    except Refused:
        return None


def is_ours(batch: Batch, shard: ShardRecord, declared: Declared) -> bool:
    """Whether the batch itself shows that it is ours: by our key, or, if it has no key, by our input file."""
    key = batch.metadata.get("batchpipe_key")
    if key == shard.key:
        return True
    if key is not None and declared.echoes_metadata:
        return False
    return batch.input_file_id is not None and batch.input_file_id in (shard.file_id, *shard.unused_files)
