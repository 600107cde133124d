"""Download: fetch a batch's files and account for every row of its shard.

``answer_index`` finds each row's line in the two files. What comes out is one file with a line for each row, in the
order of the requests: a mark (see ``outcomes``), then the provider's line for a row that is ok, a line for
``errors.jsonl`` for every other row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from batchpipe.errors import BatchpipeError, Gone, Refused
from batchpipe.model.answers import OutcomeState, error_line, failed_line, raw_error, read_answer
from batchpipe.model.lateness import wait_for_files
from batchpipe.model.outcomes import (
    FAILED,
    FOR_NOW,
    MISSING,
    MISSING_FOR_NOW,
    OK,
    OUTCOMES,
    REFUSED_WITH_OTHERS,
    mark_of,
)
from batchpipe.model.provider import ProviderReads
from batchpipe.model.reasons import Tally
from batchpipe.model.records import BatchError, Counts, JobRecord, Move, Problem, ShardRecord, Stage, Status
from batchpipe.model.refusals import believed_at, unseen
from batchpipe.model.requests import custom_id
from batchpipe.pipeline.answer_index import TOO_FEW, Answers, counted_answers, left_out, paced, tells_nothing
from batchpipe.pipeline.fetching import Fetcher, Unsized
from batchpipe.pipeline.slots import is_small
from batchpipe.storage import Folder
from batchpipe.telemetry.prices import Pricer, unknown

#: How often in a row, and how long, a file must be unknown to a key that sees its batch before we believe that it is
#: gone: its rows are paid.
MAX_GONE = 4
GONE_SECONDS = 3_600.0

#: Codes of what we wait for: answers that are counted, or of which the provider tells nothing; rows that are counted as
#: failed; rows missing from a batch that says it is complete; a file that looks damaged.
_ANSWERS, _FAILURES, _UNCOUNTED, _DAMAGED = "answers_late", "failures_late", "rows_uncounted", "file_damaged"
_BY_COUNT = (_ANSWERS, _FAILURES, _UNCOUNTED)


def download(
    job: JobRecord,
    shard: ShardRecord,
    workspace: Folder,
    api: ProviderReads,
    token: str,
    *,
    now: float,
    files_patience: float,
    unseen_seconds: float = 86_400.0,
    prices: Pricer = unknown,
    check: Callable[[], None],
    elsewhere: Folder | None = None,
) -> Move:
    """Collect a shard after its batch has ended. ``elsewhere``: a local folder for the downloaded parts of its files,
    if the workspace is remote.

    A file that this key does not see is waited for, ``unseen_seconds`` at least if it does not see the batch either.

    Moves to ``collected``, or stays at ``ended`` for a while if its files lag: they have fewer lines than the provider
    counted, fewer bytes than it reported, or unreadable lines. They are waited for ``files_patience`` seconds;
    answers that are counted and have not come by then are missing for good. Raises Unavailable, StorageTrouble,
    BatchpipeError (``rows_lost``) if the rows do not add up.
    """
    waits = _Waits(job, shard, now, files_patience)
    if shard.late_at is not None:
        shard = _read_again(shard, api)
        if (idle := waits.for_news(shard, api)) is not None:
            return idle

    def collected(*, sized: bool) -> Move | None:
        with Fetcher(api, workspace, name, check, elsewhere=elsewhere, sized=sized) as files:
            answers = Answers(workspace, shard, check, endpoint=job.endpoint, prices=prices)
            gone: Gone | None = None
            lost: Problem | None = None
            lacks = ""
            for file_id in (shard.output_file_id, shard.error_file_id):
                if not file_id:
                    continue
                try:
                    scratch, extent = files.fetch(file_id)
                except Gone as error:
                    gone, lacks = error, file_id
                except Unsized:
                    return None
                else:
                    answers.read(scratch, file_id, check, extent=extent)
            if not sized and (gone is not None or not _has_all(answers, shard)):
                return None
            if gone is not None:
                found = _lost(job, shard, lacks, gone, api, now, unseen_seconds)
                if isinstance(found, Move):
                    return found
                lost = found
            if gone is None and (waiting := waits.for_answers(shard, answers)) is not None:
                return waiting
            problem = lost or answers.lack(shard)
            return _collect(shard, workspace, token, answers, _absent(shard, problem, answers), check, job.round)

    name = f"{job.id}-{shard.index:05d}"
    # where every row has its answer nobody need know how long the files are: of a small shard that is not asked first
    counted = (shard.counts.completed or 0) + (shard.counts.failed or 0) == shard.rows
    hopeful = counted and not shard.fetched and shard.late_at is None and is_small(shard.bytes, shard.rows)
    quick = collected(sized=False) if hopeful else None
    move = quick or collected(sized=True)
    assert move is not None
    return move


def _has_all(answers: Answers, shard: ShardRecord) -> bool:
    """Every row has its answer, and as many are ok as the provider counts: a file may have a failed line of a row, and
    further down an ok one."""
    return answers.answered == shard.rows and answers.ok >= (shard.counts.completed or 0)


def _read_again(shard: ShardRecord, api: ProviderReads) -> ShardRecord:
    """The shard, updated with what the provider says of its batch now. Raises Unavailable, Paused."""
    try:
        batch = api.retrieve(shard.batch_id or "")
    except Refused:
        return shard
    if batch.status not in Status.FINAL:
        return shard
    counted = shard.counts if batch.counts.completed is None else batch.counts
    output, error = batch.output_file_id or shard.output_file_id, batch.error_file_id or shard.error_file_id
    return shard.evolve(output_file_id=output, error_file_id=error, counts=counted)


@dataclass(frozen=True)
class _Waits:
    """What a download waits for, and how."""

    job: JobRecord
    shard: ShardRecord  #: as it was recorded
    now: float
    patience: float

    def for_news(self, shard: ShardRecord, api: ProviderReads) -> Move | None:
        """Files of the same lengths as before are not fetched again. None if they have changed, or the time is over."""
        before = self.shard
        same = (shard.output_file_id, shard.error_file_id, shard.counts) == (
            before.output_file_id,
            before.error_file_id,
            before.counts,
        )
        if not same or before.trouble is None or before.trouble.code not in _BY_COUNT:
            return None
        for file_id in filter(None, (shard.output_file_id, shard.error_file_id)):
            length = before.fetched.get(file_id, "").partition(":")[0]
            try:
                if not length or api.file_bytes(file_id) != int(length):
                    return None
            except Gone:
                return None
        what = before.trouble.message.partition("; waited for")[0]
        return self._longer(shard, what, before.fetched, before.trouble.code)

    def for_answers(self, shard: ShardRecord, answers: Answers) -> Move | None:
        """None if nothing is missing that may yet come, or the time is over."""
        if answers.answered == shard.rows:
            return None
        code = _DAMAGED
        settled = all(shard.fetched.get(name) == seen for name, seen in answers.fetched.items())
        if answers.lacking(shard) > 0:
            code = _ANSWERS if answers.lacks_paid(shard) else _FAILURES
            came = answers.answered - answers.not_run
            what = f"the provider counts {counted_answers(shard)} answers, and its files have {came}"
        elif not self.job.cancel and answers.leaves_out(shard):
            code = _ANSWERS if tells_nothing(shard) else _UNCOUNTED
            what = left_out(shard, answers.answered)
        elif answers.suspect and (answers.has_unreadable or not (settled and answers.is_counted(shard))):
            what = answers.suspect
        elif answers.unreadable and not settled:
            what = f"{answers.unreadable.message}: the file may be cut short, and is fetched once more"
        else:
            return None
        return self._longer(shard, what, answers.fetched, code)

    def _longer(self, shard: ShardRecord, what: str, fetched: dict[str, str], code: str) -> Move | None:
        changes = {
            "fetched": fetched,
            "counts": shard.counts,
            "output_file_id": shard.output_file_id,
            "error_file_id": shard.error_file_id,
        }
        return wait_for_files(
            self.job,
            self.shard,
            Stage.ENDED,
            what,
            now=self.now,
            patience=self.patience,
            changes=changes,
            code=code,
            unpaid=code in (_FAILURES, _UNCOUNTED),
        )


def abandon(
    job: JobRecord,
    shard: ShardRecord,
    workspace: Folder,
    token: str,
    problem: Problem,
    *,
    refused: bool = False,
    again: bool = False,
    check: Callable[[], None],
) -> Move:
    """Collect a shard without files: it was abandoned, or cancelled before it had a batch.

    Each row is ``failed`` if the provider ``refused`` the shard, else ``missing``; for good in both cases, as rows that
    made workers vanish must not come back round after round. ``again``: it was too large, and they come back once.

    Raises StorageTrouble, BatchpipeError (``rows_lost``) if the rows do not add up.
    """
    mark = REFUSED_WITH_OTHERS if again else FAILED if refused else MISSING
    absent = _Absent(mark, raw_error(problem.code, problem.message), {}, problem)
    return _collect(shard, workspace, token, Answers(workspace, shard, check), absent, check)


def _lost(
    job: JobRecord, shard: ShardRecord, file_id: str, error: Gone, api: ProviderReads, now: float, patience: float
) -> Move | Problem:
    """Whether a file that is not found is believed to be gone: a key that sees its batch is believed sooner."""
    try:
        api.retrieve(shard.batch_id or "")
        ends = (shard.unseen_at if shard.unseen_at is not None else now) + GONE_SECONDS
        what = f"file {file_id} with results, though it sees their batch"
    except Gone:
        ends = believed_at(job, shard, shard.created_at, now=now, patience=patience)
        what = f"file {file_id} with results, nor their batch {shard.batch_id}"
    if not shard.landing and (shard.unfound + 1 < MAX_GONE or now < ends):
        return unseen(job, shard, Stage.ENDED, what, error, now=now, ends=ends)
    message = f"file {file_id} is gone at the provider: {error}; if another key sees it: batchpipe land {shard.job}"
    return Problem(code="file_gone", message=message)


class _Absent(msgspec.Struct, frozen=True):
    """How rows without an answer are recorded."""

    mark: bytes
    error: bytes | None
    by_line: dict[int, tuple[bytes, bytes | None]]  #: mark and error of the rows that an error names, by line from 1
    problem: Problem | None


def _absent(shard: ShardRecord, lack: Problem | None, answers: Answers) -> _Absent:
    by_line = dict.fromkeys(answers.unread_rows(), (MISSING, _raw(answers.unreadable)))
    paid = bool(shard.counts.completed) and lack is not None
    if shard.error is None and (shard.status != Status.FAILED or paid):
        if lack is None:
            return _Absent(MISSING_FOR_NOW, None, by_line, answers.unreadable if by_line else None)
        return _Absent(MISSING, _raw(lack), by_line, lack)  # they may be paid
    problem = shard.error or _refusal(shard.errors)
    named = {error.line: (FAILED, _raw_of(error)) for error in shard.errors if error.line}
    by_line |= named
    if not named or not all(error.line for error in shard.errors):
        return _Absent(FAILED, _raw(problem), by_line, problem)
    message = f"this row was not run: its batch was refused for others ({problem.code}: {problem.message})"
    mark = FAILED if shard.refused_once else REFUSED_WITH_OTHERS
    return _Absent(mark, raw_error("batch_refused", message), by_line, problem)


def _raw(problem: Problem | None) -> bytes | None:
    return raw_error(problem.code, problem.message) if problem is not None else None


def _raw_of(error: BatchError) -> bytes:
    if error.code is None and error.message is None:
        return _REFUSED
    return raw_error(error.code, error.message)


#: The error of a refused row if there were too many to keep all texts.
_REFUSED = raw_error("row_refused", "the provider refused this row; of so many only the first reasons are kept")


def _refusal(errors: list[BatchError]) -> Problem:
    if not errors:
        return Problem(code="batch_failed", message="the provider refused the batch and did not say why")
    code = errors[0].code or "batch_failed"
    return Problem(code=code, message=errors[0].message or "the provider refused the batch")


def _collect(
    shard: ShardRecord,
    workspace: Folder,
    token: str,
    answers: Answers,
    absent: _Absent,
    check: Callable[[], None],
    rounds: int = 0,
) -> Move:
    name = f"collected/{shard.index:05d}-{shard.try_}-{token}.rows"
    counts, resend, final = dict.fromkeys(OutcomeState, 0), 0, 0
    reasons = Tally()
    with ExitStack() as stack:
        requests, out = stack.enter_context(workspace.reader(shard.file)), stack.enter_context(workspace.writer(name))
        before = iter(stack.enter_context(workspace.reader(shard.collected_file or ""))) if shard.landing else None
        rows = zip(paced(requests, check), answers, strict=True)
        for number, (request, answer) in enumerate(rows, 1):
            mark, line = _row(shard, number, request, answer, absent)
            if before is not None:
                mark, line = _landed(next(before, b""), mark, line, again=shard.round < rounds)
            counts[OUTCOMES[mark]] += 1
            resend += mark in FOR_NOW
            final += mark in (OK, FAILED)
            if mark != OK:
                reasons.add_line(line, again=mark in FOR_NOW)
            out.write(b"%b%b\n" % (mark, line))
    if sum(counts.values()) != shard.rows:
        numbers = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        raise BatchpipeError(f"shard {shard.index} does not add up: {shard.rows} rows, {numbers}", code="rows_lost")
    changes: dict[str, Any] = {"resend": resend, **{outcome.value: count for outcome, count in counts.items()}}
    changes |= {"answered": final, "reasons": reasons.counts}
    changes["counts"] = Counts(  # if the provider told no usage, what the rows add up to
        total=_or(shard.counts.total, shard.rows),
        completed=_or(shard.counts.completed, counts[OutcomeState.OK]),
        failed=_or(shard.counts.failed, counts[OutcomeState.FAILED]),
    )
    return Move(
        stage=Stage.COLLECTED,
        changes={
            **changes,
            **_spent(shard, answers, absent),
            "collected_file": name,
            "error": absent.problem,
            **({"landing": False} if shard.landing else {}),
        },
        events=_anomalies(shard, answers),
        pause=answers.quota,
    )


def _spent(shard: ShardRecord, answers: Answers, absent: _Absent) -> dict[str, Any]:
    """Tokens, cost and early ends. Answers that were counted and did not come were paid for, at an unknown cost."""
    lost = (shard.counts.completed or 0) > answers.answered
    given_up = absent.mark == MISSING and shard.batch_id is not None and answers.answered < shard.rows
    cost = None if lost or given_up else answers.cost
    return {"usage": answers.usage, "cost": cost, "incomplete": answers.incomplete}


def _or(counted: int | None, found: int) -> int:
    return found if counted is None else counted


def _row(
    shard: ShardRecord, number: int, request: bytes, answer: tuple[bool, bytes] | None, absent: _Absent
) -> tuple[bytes, bytes]:
    """The mark of a row and its line in the collected file, without its newline."""
    if answer is None:
        mark, error = absent.by_line.get(number, (absent.mark, absent.error))
        return mark, error_line(custom_id(request), OUTCOMES[mark], shard.round, None, error or absent.error)
    ok, raw = answer
    if ok:
        return OK, raw
    found = read_answer(raw)
    if found.ok:  # the line alone does not show that it is incomplete
        found = msgspec.structs.replace(found, ok=False, failure=TOO_FEW)
    return mark_of(found), failed_line(found, shard.round)


def _landed(before: bytes, mark: bytes, line: bytes, *, again: bool) -> tuple[bytes, bytes]:
    """A row of a shard that is collected again later: its earlier line, unless the batch now has more of it.

    ``again``: a later round has sent the rows that were worth it, and their order there depends on these marks.
    """
    old, old_line = before[:1], before[1:].rstrip(b"\n")
    if old not in OUTCOMES:
        raise BatchpipeError("a collected file is damaged", code="rows_lost")
    if old == OK or (again and old in FOR_NOW):
        return old, old_line
    if mark == OK or OUTCOMES[mark] is OutcomeState.FAILED:
        return (mark if mark == OK else FAILED), line
    return (FAILED if OUTCOMES[old] is OutcomeState.FAILED else MISSING), old_line


def _anomalies(shard: ShardRecord, answers: Answers) -> list[tuple[str, dict[str, int]]]:
    counted = counted_answers(shard)
    short = max(counted - answers.lines, 0)
    if not (answers.duplicates or answers.unknown or short):
        return []
    return [
        (
            "anomaly",
            {
                "lines": answers.lines,
                "counted": counted,
                "short": short,
                "duplicates": answers.duplicates,
                "unknown": answers.unknown,
            },
        )
    ]
