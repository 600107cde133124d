"""Cleanup: delete the files at the provider that an ended job no longer needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from batchpipe.errors import Refused, Unavailable
from batchpipe.model.provider import CLOCK_SLACK_SECONDS, Provider, StoredFile
from batchpipe.model.records import JobRecord, ShardRecord

#: Calls for one file within a turn.
TRIES_AT_ONCE = 3


def delete_files(
    job: JobRecord,
    shards: Iterable[ShardRecord],
    api: Provider,
    which: str,
    *,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Delete the job's files: ``unused`` (uploads that no batch used), ``inputs`` (all uploads) or ``all`` (the
    results, too), or ``none``. Returns how many were there. May be repeated.

    ``check`` is called before each deletion. Raises Unavailable, Paused, and what ``check`` raises.
    """
    if which == "none":
        return 0
    parts = list(shards)
    wanted = {file_id for shard in parts for file_id in _wanted(shard, which)}
    if any(shard.uploads > _known_uploads(shard) for shard in parts):
        used = {shard.file_id for shard in parts if shard.batch_id is not None and shard.file_id}
        wanted |= _unknown_uploads(job, api) - (used if which == "unused" else set())
    deleted, trouble = 0, None
    for file_id in sorted(wanted):
        check()
        try:
            deleted += _delete(api, file_id)
        except Unavailable as error:
            trouble = error  # delete the others first
    if trouble is not None:
        raise trouble
    return deleted


def has_files(shards: Iterable[ShardRecord], which: str) -> bool:
    """Whether ``delete_files`` would ask the provider for anything."""
    return any(shard.uploads > _known_uploads(shard) or any(_wanted(shard, which)) for shard in shards)


def _wanted(shard: ShardRecord, which: str) -> Iterator[str]:
    yield from shard.unused_files
    if shard.file_id and (which != "unused" or (shard.batch_id is None and not shard.spent)):
        yield shard.file_id
    if which == "all":
        yield from filter(None, (shard.output_file_id, shard.error_file_id))


def _known_uploads(shard: ShardRecord) -> int:
    return len(shard.unused_files) + (shard.file_id is not None)


def _unknown_uploads(job: JobRecord, api: Provider) -> set[str]:
    """All uploads of the job, found by name: some are not recorded, as the response was lost or the worker died."""
    prefix = f"batchpipe-{job.id}-"
    try:
        return {file.id for file in api.iter_files(job.created_at - CLOCK_SLACK_SECONDS) if _has(file, prefix)}
    except Refused:  # the provider cannot list files; they expire
        return set()


def _has(file: StoredFile, prefix: str) -> bool:
    return file.name is not None and file.name.startswith(prefix)


def _delete(api: Provider, file_id: str) -> bool:
    for left in reversed(range(TRIES_AT_ONCE)):
        try:
            api.delete_file(file_id)
            return True
        except Refused:  # already gone, or may not be deleted
            return False
        except Unavailable:
            if not left:
                raise
    raise AssertionError("unreachable")
