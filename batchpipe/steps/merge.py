"""Merge: the rows of all shards back in the order of the input, into ``output.jsonl`` and ``errors.jsonl``.

Deterministic, so that it may be done again after a crash: the same shards give the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import msgspec

from batchpipe.errors import BatchpipeError
from batchpipe.jobs import JobRecord, ShardRecord
from batchpipe.results import ERRORS, INDEX, OUTPUT, ResultIndex, ShardReader, iter_in_order
from batchpipe.rows import add_usage
from batchpipe.storage import Draft, Folder, Pacer

_OK, _NOT_OK = b"+", b"-"


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """The accounts of a round: ``total == ok + failed + missing``; ``usage`` in tokens."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    missing: int = 0
    usage: dict[str, int] = {}


def merge(
    job: JobRecord,
    shards: Iterable[ShardRecord],
    order_file: str | None,
    workspace: Folder,
    output: Folder,
    *,
    check: Callable[[], None],
) -> Merged:
    """Write the two files of results and, into the workspace, ``results.idx``.

    ``shards`` are all of the round, collected; none (and no order) for a job that was cancelled before it had
    any.
    Raises StorageTrouble, BatchpipeError (``rows_lost``) if the numbers do not add up: then nothing is
    written.
    """
    known = list(shards)
    with ExitStack() as stack:
        drafts = []
        for folder, name in _places(workspace, output):
            drafts.append(folder.draft(name))
            stack.callback(drafts[-1].discard)
        ok, not_ok = _write(known, order_file, workspace, drafts, check) if order_file else (0, 0)
        merged = _account(known, ok, not_ok)
        for draft in drafts:
            check()
            draft.commit()
    for folder, name in _places(workspace, output):
        folder.remove_drafts(name)
    return merged


def _places(workspace: Folder, output: Folder) -> list[tuple[Folder, str]]:
    return [(output, OUTPUT), (output, ERRORS), (workspace, INDEX)]


def _write(
    shards: list[ShardRecord],
    order_file: str,
    workspace: Folder,
    drafts: list[Draft],
    check: Callable[[], None],
) -> tuple[int, int]:
    """Returns the number of rows that are ok and that are not."""
    output, errors, index = drafts
    runs = ResultIndex(index.file)
    count = {True: 0, False: 0}
    pace = Pacer(check)
    with workspace.reader(order_file) as order, ShardReader(workspace, _files(shards)) as reader:
        for shard, line in iter_in_order(order, reader):
            ok = line[:1] == _OK
            if not ok and line[:1] != _NOT_OK:
                raise BatchpipeError(f"the collected file of shard {shard} is damaged", code="rows_lost")
            (output if ok else errors).write(line[1:])
            count[ok] += 1
            runs.note(ok)
            pace(line)
        unread = reader.unread()
    runs.end()
    if unread:
        raise BatchpipeError(f"the collected files of shards {unread} have more rows than the order", code="rows_lost")
    return count[True], count[False]


def _files(shards: list[ShardRecord]) -> dict[int, str]:
    files = {shard.index: shard.collected_file for shard in shards}
    return {index: name for index, name in files.items() if name}


def _account(shards: list[ShardRecord], ok: int, not_ok: int) -> Merged:
    """Raises BatchpipeError, with the numbers, unless every row is there once."""
    usage: dict[str, int] = {}
    for shard in shards:
        add_usage(usage, shard.usage)
    merged = Merged(
        total=sum(shard.rows for shard in shards),
        ok=sum(shard.ok or 0 for shard in shards),
        failed=sum(shard.failed or 0 for shard in shards),
        missing=sum(shard.missing or 0 for shard in shards),
        usage=usage,
    )
    if merged.ok != ok or merged.failed + merged.missing != not_ok or merged.total != ok + not_ok:
        told = f"{merged.total} rows planned, {merged.ok} ok, {merged.failed} failed, {merged.missing} missing"
        message = f"the rows do not add up: {told}; merged {ok} ok and {not_ok} not ok"
        raise BatchpipeError(message, code="rows_lost")
    return merged


def clean_up(job: JobRecord, workspace: Folder) -> None:
    """Remove the large files of a job that has ended; ``results.idx`` and the manifest stay."""
    for name in ("shards", "downloads", "collected"):
        workspace.remove(name)
    for name in workspace.names():
        if name.startswith("order-") or name.endswith(".part"):
            workspace.remove(name)
    base = workspace.path().rstrip("/") + "/"
    if job.spooled and job.input.startswith(base):
        workspace.remove(job.input[len(base) :])
