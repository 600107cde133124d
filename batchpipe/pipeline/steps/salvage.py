"""Salvage: keep a batch's answers though the requests of its shard are gone from the workspace.

The answers name their rows, so no paid one is lost. Only the requests could tell their order, and which rows have no
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

from batchpipe.errors import Gone, Unavailable
from batchpipe.model.answers import add_usage, failed_line, read_answer
from batchpipe.model.outcomes import mark_of
from batchpipe.model.provider import ProviderReads
from batchpipe.model.reasons import Reason, Tally
from batchpipe.model.records import Move, Problem, ShardRecord, Stage
from batchpipe.storage import Checkpoint, Folder, Scratch, temporary


def salvaged_file(shard: ShardRecord) -> str:
    """Where the answers of a salvaged shard are kept, relative to the workspace."""
    return f"collected/{shard.index:05d}-{shard.try_}-salvaged.rows"


def lost(shard: ShardRecord, problem: Problem) -> Move:
    """Collect a shard of which nothing is left but the number of its rows."""
    counts = {"ok": 0, "failed": 0, "missing": shard.rows}
    reasons = {f"- {problem.code}": shard.rows}
    changes = {**counts, "resend": 0, "collected_file": None, "error": problem, "answered": 0, "reasons": reasons}
    return Move(stage=Stage.COLLECTED, changes=changes)


def salvage(
    shard: ShardRecord,
    workspace: Folder,
    api: ProviderReads,
    problem: Problem,
    *,
    check: Callable[[], None],
) -> Move:
    """Collect the answers of an ended batch without its requests, in the order in which they come.

    Rows without an answer are counted as missing; their ids are unknown. Raises Unavailable, StorageTrouble.
    """
    counts, usage, seen = {"ok": 0, "failed": 0}, dict[str, int](), set[bytes]()
    reasons = Tally()
    with workspace.writer(salvaged_file(shard)) as out:
        for file_id in (shard.output_file_id, shard.error_file_id):
            for line in _lines(api, file_id, check) if file_id else ():
                try:
                    answer = read_answer(line)
                except ValueError:
                    continue  # its row is unknown
                name = blake2b(answer.custom_id.encode(), digest_size=16).digest()
                if name in seen or len(seen) == shard.rows:
                    continue
                seen.add(name)
                counts["ok" if answer.ok else "failed"] += 1
                add_usage(usage, answer.usage)
                kept = line.rstrip(b"\r\n") if answer.ok else failed_line(answer, shard.round)
                out.write(b"%b%b\n" % (mark_of(answer), kept))
                if not answer.ok:
                    reasons.add_line(kept)
    if missing := shard.rows - len(seen):
        reasons.add(Reason(f"- {problem.code}"), missing)
    changes: dict[str, Any] = {**counts, "missing": missing, "resend": 0, "usage": usage}
    changes |= {"answered": len(seen), "reasons": reasons.counts}
    changes |= {"collected_file": salvaged_file(shard), "error": problem}
    return Move(stage=Stage.COLLECTED, changes=changes, events=[("salvaged", {**counts, "rows": shard.rows})])


def _lines(api: ProviderReads, file_id: str, check: Callable[[], None]) -> Iterator[bytes]:
    """The lines of a provider's file; none if it is gone there, too."""
    pace = Checkpoint(check)
    with temporary() as scratch:
        try:
            _fetch(api, file_id, scratch, check)
        except Gone:
            return
        for line in scratch.lines():
            pace(line)
            if line.strip():
                yield line


def _fetch(api: ProviderReads, file_id: str, scratch: Scratch, check: Callable[[], None]) -> None:
    try:
        size = api.file_bytes(file_id)
    except Gone:
        size = None
    got = api.download(file_id, scratch.sink, check)
    if size and got < size:
        raise Unavailable(f"the downloaded file is cut short: {file_id} has {got} of {size} bytes")
