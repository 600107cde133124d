"""Merge: the rows of all rounds back in the order of the input, into ``output.jsonl`` and ``errors.jsonl``.

Deterministic, so that it may be done again after a crash: the same shards give the same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import msgspec

from batchpipe.errors import WORKSPACE_GONE, BatchpipeError
from batchpipe.model.answers import OutcomeState, add_usage
from batchpipe.model.outcomes import FOR_NOW, OUTCOMES
from batchpipe.model.reasons import Reason, Tally, invalid_in
from batchpipe.model.records import JobRecord, Problem, ShardRecord, State
from batchpipe.pipeline.results import ERRORS, INDEX, OUTPUT, WORKING, ResultIndex, Round, iter_last
from batchpipe.storage import Checkpoint, Draft, Folder

#: The fields of shards that a merge needs, as they are stored, and those that ``Overview`` looks at.
MERGED = ("round", "rows", "ok", "failed", "missing", "resend", "usage", "incomplete", "collected_file")
LOOKED_AT = ("round", "resend", "error", "batch_id", "cancelled_elsewhere")


class Overview:
    """What decides how a job goes on, seen shard by shard: there may be 100,000."""

    def __init__(self, job: JobRecord, shards: Iterable[ShardRecord]) -> None:
        self.gone = False  #: files of a shard were gone from the workspace
        self.resend = False  #: rows of the last round are worth sending again
        self.error: Problem | None = None  #: the first one of a shard
        self.cancelled: str | None = None  #: the first batch that somebody else has cancelled
        for shard in shards:
            self.gone = self.gone or (shard.error is not None and shard.error.code == WORKSPACE_GONE)
            self.resend = self.resend or (shard.round == job.round and shard.resend > 0)
            self.error = self.error or shard.error
            if shard.cancelled_elsewhere and self.cancelled is None:
                self.cancelled = shard.batch_id


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """The row counts of a job: ``total == ok + failed + missing``; ``usage`` in tokens, over all rounds;
    ``incomplete``: rows that are ok and ended early, by reason; ``reasons``: rows that are not ok, by reason."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    missing: int = 0
    invalid: int | None = None  #: of the failed ones; None where answers were not checked
    usage: dict[str, int] = {}
    incomplete: dict[str, int] = {}
    reasons: dict[str, int] = {}

    @property
    def totals(self) -> dict[str, Any]:
        """As fields of the job's record."""
        return {
            name: getattr(self, name) for name in ("total", "ok", "failed", "missing", "invalid", "usage", "reasons")
        }

    @property
    def state(self) -> State:
        """In which the job ends."""
        if self.ok == self.total:
            return State.SUCCEEDED if self.total else State.FAILED
        return State.PARTIAL if self.ok else State.FAILED

    def error(self, seen: Overview) -> Problem | None:
        """What a person should read first: the error of a shard, else that no row is ok."""
        if self.ok == self.total and self.total:
            return None  # the refused rows were sent again
        if seen.error is not None:
            return seen.error
        if seen.cancelled is not None:
            message = (
                f"{seen.cancelled} was cancelled at the provider, and not by batchpipe; not all of its rows were run"
            )
            return Problem(code="cancelled_elsewhere", message=message)
        if self.total and not self.ok:
            message = f"no row is ok: {self.failed} failed, {self.missing} without an answer; see errors.jsonl"
            return Problem(code="no_row_ok", message=message)
        return None


def merge(
    job: JobRecord,
    shards: Iterable[ShardRecord],
    workspace: Folder,
    output: Folder,
    *,
    check: Callable[[], None],
    record_place: Callable[[int, int], None] = lambda output, errors: None,
) -> Merged:
    """Write the two files of results and, into the workspace, ``results.idx``.

    ``shards`` are those of all rounds, collected, and read once: without any, nothing is written. ``record_place`` is
    called with the bytes of the two files once all is written and before anything takes its name; what it raises ends
    the step. Raises StorageTrouble, BatchpipeError (``rows_lost``) if the numbers do not add up: then nothing is
    written.
    """
    known = _Known()
    for shard in shards:
        known.add(shard)
    if not known.files:
        return Merged()
    with ExitStack() as stack:
        drafts = []
        for folder, name in _places(workspace, output):
            drafts.append(folder.draft(name))
            stack.callback(drafts[-1].discard)
        reasons = Tally()
        counts, sizes = _write(known.rounds(job), workspace, drafts, reasons, check)
        merged = known.account(counts, reasons.counts)
        if job.recipe:
            merged = msgspec.structs.replace(merged, invalid=invalid_in(reasons.counts))
        record_place(*sizes)
        _commit(drafts, check)
    for folder, name in _places(workspace, output):
        folder.remove_drafts(name)
    return merged


def merge_what_is_left(
    job: JobRecord,
    shards: Iterable[ShardRecord],
    workspace: Folder,
    output: Folder,
    *,
    check: Callable[[], None],
    record_place: Callable[[int, int], None] = lambda output, errors: None,
) -> Merged:
    """The same from the collected files that are still there, shard after shard: the order of the input is lost.

    ``shards`` are read once, in the order of their indexes: those of a further round come after all earlier ones.
    One without ``collected_file`` has no file. Lost rows are counted as missing, without a line.
    Raises StorageTrouble.
    """
    last, planned, usage = len(job.order_files), 0, dict[str, int]()
    counts, sizes, reasons = dict.fromkeys(OutcomeState, 0), [0, 0], Tally()
    with ExitStack() as stack:
        drafts = []
        for folder, name in _places(workspace, output):
            drafts.append(folder.draft(name))
            stack.callback(drafts[-1].discard)
        runs, pace = ResultIndex(drafts[2].file), Checkpoint(check)
        for shard in shards:
            planned += shard.rows if shard.round == 1 else 0
            add_usage(usage, shard.usage)
            for line in _lines_left(shard, workspace):
                pace(line)
                outcome = OUTCOMES.get(line[:1])
                if outcome is None or (line[:1] in FOR_NOW and shard.round < last):
                    continue  # it was sent again, so its outcome is in a later round
                place = 0 if outcome is OutcomeState.OK else 1
                if place:
                    reasons.add_line(line[1:])
                drafts[place].write(line[1:])
                sizes[place] += len(line) - 1
                counts[outcome] += 1
                runs.note(outcome is OutcomeState.OK)
        runs.end()
        record_place(*sizes)
        _commit(drafts, check)
    ok, failed = counts[OutcomeState.OK], counts[OutcomeState.FAILED]
    missing = max(planned - ok - failed, counts[OutcomeState.MISSING])
    if unnamed := missing - counts[OutcomeState.MISSING]:
        reasons.add(Reason(f"- {WORKSPACE_GONE}"), unnamed)
    total = ok + failed + missing
    invalid = invalid_in(reasons.counts) if job.recipe else None
    return Merged(
        total=total, ok=ok, failed=failed, missing=missing, invalid=invalid, usage=usage, reasons=reasons.counts
    )


def _lines_left(shard: ShardRecord, workspace: Folder) -> Iterator[bytes]:
    if shard.collected_file:
        with workspace.reader(shard.collected_file) as lines:
            yield from lines


def _places(workspace: Folder, output: Folder) -> list[tuple[Folder, str]]:
    return [(output, OUTPUT), (output, ERRORS), (workspace, INDEX)]


def _commit(drafts: Sequence[Draft], check: Callable[[], None]) -> None:
    """Those of ``_places``: the first two are in one folder."""
    for number, draft in enumerate(drafts):
        check()
        draft.commit(more=number == 0)


def _write(
    rounds: Sequence[Round], workspace: Folder, drafts: list[Draft], reasons: Tally, check: Callable[[], None]
) -> tuple[dict[OutcomeState, int], tuple[int, int]]:
    """Returns the number of rows of each outcome, and the bytes of the files of ok rows and of the others. The
    ``reasons`` of those are added up.
    """
    output, errors, index = drafts
    runs = ResultIndex(index.file)
    counts, size, size_ok = dict.fromkeys(OutcomeState, 0), 0, 0
    pace = Checkpoint(check)
    with closing(iter_last(workspace, rounds)) as lines:
        for line in lines:
            outcome = OUTCOMES.get(line[:1])
            if outcome is None:
                raise BatchpipeError("a collected file is damaged", code="rows_lost")
            ok = outcome is OutcomeState.OK
            (output if ok else errors).write(line[1:])
            if not ok:
                reasons.add_line(line[1:])
            counts[outcome] += 1
            size += len(line) - 1
            size_ok += (len(line) - 1) * ok
            runs.note(ok)
            pace(line)
    runs.end()
    return counts, (size_ok, size - size_ok)


class _Known:
    """Totals over all shards, added up one by one; of each shard only the name of its file is kept."""

    def __init__(self) -> None:
        self.files: dict[int, dict[int, str]] = {}
        self._rows, self._resend = Counter[int](), Counter[int]()
        self._ok = self._not_ok = 0
        self._usage: dict[str, int] = {}
        self._incomplete: dict[str, int] = {}

    def add(self, shard: ShardRecord) -> None:
        self.files.setdefault(shard.round, {})[shard.index] = shard.collected_file or ""
        self._rows[shard.round] += shard.rows
        self._resend[shard.round] += shard.resend
        self._ok += shard.ok or 0
        self._not_ok += (shard.failed or 0) + (shard.missing or 0)
        add_usage(self._usage, shard.usage)
        add_usage(self._incomplete, shard.incomplete)

    def rounds(self, job: JobRecord) -> list[Round]:
        last = max(self.files)
        if len(job.order_files) != last:
            raise BatchpipeError(f"{last} rounds, and {len(job.order_files)} order files", code="rows_lost")
        return [Round(order, self.files.get(number, {})) for number, order in enumerate(job.order_files, 1)]

    def account(self, counts: dict[OutcomeState, int], reasons: dict[str, int]) -> Merged:
        """Raises BatchpipeError, with the numbers, unless every row is there exactly once."""
        self._check_rounds()
        total, again = self._rows[1], self._rows.total() - self._rows[1]
        merged = Merged(
            total=total,
            ok=counts[OutcomeState.OK],
            failed=counts[OutcomeState.FAILED],
            missing=counts[OutcomeState.MISSING],
            usage=self._usage,
            incomplete=self._incomplete,
            reasons=reasons,
        )
        ok, not_ok = self._ok, self._not_ok - again
        if (merged.ok, merged.failed + merged.missing) != (ok, not_ok) or ok + not_ok != total:
            expected = f"{total} rows planned, {ok} ok, {not_ok} not ok"
            found = f"merged {merged.ok} ok, {merged.failed} failed, {merged.missing} missing"
            raise BatchpipeError(f"the rows do not add up: {expected}; {found}", code="rows_lost")
        return merged

    def _check_rounds(self) -> None:
        """Checks that each round has sent exactly the rows of the one before that were worth sending again."""
        for number in range(1, max(self.files)):
            wanted, sent = self._resend[number], self._rows[number + 1]
            if wanted != sent:
                message = f"round {number} left {wanted} rows to send again, round {number + 1} has {sent}"
                raise BatchpipeError(message, code="rows_lost")


def clean_up(job: JobRecord, workspace: Folder) -> None:
    """Remove the large files of a job that has ended; ``results.idx`` and the manifest stay."""
    for name in WORKING:
        workspace.remove(name)
    for name in workspace.names():
        if name.startswith("order-") or name.endswith(".part"):
            workspace.remove(name)
    base = workspace.path().rstrip("/") + "/"
    if job.spooled and job.input.startswith(base):
        workspace.remove(job.input[len(base) :])
