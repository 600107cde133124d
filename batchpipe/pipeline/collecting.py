"""What becomes of every row of a shard: the file with a line for each, in the order of the requests.

A line is a mark (see ``outcomes``), then the provider's line for a row that is ok, a line for ``errors.jsonl`` for any
other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from batchpipe.errors import BatchpipeError
from batchpipe.model.answers import OutcomeState, error_line, failed_line, raw_error, read_answer
from batchpipe.model.outcomes import (
    FAILED,
    FOR_NOW,
    INVALID,
    INVALIDS,
    MISSING,
    MISSING_FOR_NOW,
    OK,
    OUTCOMES,
    REFUSED_WITH_OTHERS,
    mark_of,
)
from batchpipe.model.reasons import Tally
from batchpipe.model.records import BatchError, Counts, JobRecord, Move, Problem, ShardRecord, Stage, Status
from batchpipe.model.requests import custom_id
from batchpipe.pipeline.answer_index import TOO_FEW, Answers, counted_answers, paced
from batchpipe.pipeline.judging import Judge
from batchpipe.storage import Folder


class Absent(msgspec.Struct, frozen=True):
    """How rows without an answer are recorded."""

    mark: bytes
    error: bytes | None
    by_line: dict[int, tuple[bytes, bytes | None]]  #: mark and error of the rows that an error names, by line from 1
    problem: Problem | None


def absent_of(shard: ShardRecord, lack: Problem | None, answers: Answers) -> Absent:
    """How this shard's are. ``lack``: why rows without an answer must not be sent again; None: they may be."""
    by_line = dict.fromkeys(answers.unread_rows(), (MISSING, _raw(answers.unreadable)))
    paid = bool(shard.counts.completed) and lack is not None
    if shard.error is None and (shard.status != Status.FAILED or paid):
        if lack is None:
            return Absent(MISSING_FOR_NOW, None, by_line, answers.unreadable if by_line else None)
        return Absent(MISSING, _raw(lack), by_line, lack)  # they may be paid
    problem = shard.error or _refusal(shard.errors)
    named = {error.line: (FAILED, _raw_of(error)) for error in shard.errors if error.line}
    by_line |= named
    if not named or not all(error.line for error in shard.errors):
        return Absent(FAILED, _raw(problem), by_line, problem)
    message = f"this row was not run: its batch was refused for others ({problem.code}: {problem.message})"
    mark = FAILED if shard.refused_once else REFUSED_WITH_OTHERS
    return Absent(mark, raw_error("batch_refused", message), by_line, problem)


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


def collect(
    shard: ShardRecord,
    workspace: Folder,
    token: str,
    answers: Answers,
    absent: Absent,
    check: Callable[[], None],
    rounds: int = 0,
    judge: Judge | None = None,
) -> Move:
    """Write the collected file, and move the shard to ``collected``. ``absent``: see ``absent_of``; ``rounds``: those
    that the job has had; ``judge``: of answers. Raises StorageTrouble, BatchpipeError (``rows_lost``) if the rows do
    not add up.
    """
    name = f"collected/{shard.index:05d}-{shard.try_}-{token}.rows"
    counts, resend, final, invalid = dict.fromkeys(OutcomeState, 0), 0, 0, 0
    reasons = Tally()
    with ExitStack() as stack:
        requests, out = stack.enter_context(workspace.reader(shard.file)), stack.enter_context(workspace.writer(name))
        before = iter(stack.enter_context(workspace.reader(shard.collected_file or ""))) if shard.landing else None
        rows = zip(paced(requests, check), answers, strict=True)
        for number, (request, answer) in enumerate(rows, 1):
            mark, line = _row(shard, number, request, answer, absent, judge)
            if before is not None:
                mark, line = _landed(next(before, b""), mark, line, again=shard.round < rounds)
            counts[OUTCOMES[mark]] += 1
            resend += mark in FOR_NOW
            final += mark in (OK, FAILED, INVALID)
            invalid += mark in INVALIDS
            if mark != OK:
                reasons.add_line(line, again=mark in FOR_NOW)
            out.write(b"%b%b\n" % (mark, line))
    if sum(counts.values()) != shard.rows:
        numbers = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        raise BatchpipeError(f"shard {shard.index} does not add up: {shard.rows} rows, {numbers}", code="rows_lost")
    changes: dict[str, Any] = {"resend": resend, **{outcome.value: count for outcome, count in counts.items()}}
    changes |= {"answered": final, "reasons": reasons.counts, "counts": _counted(shard, counts)}
    changes |= {"invalid": invalid} if judge is not None or shard.invalid else {}
    changes |= {**_spent(shard, answers, absent), "collected_file": name, "error": absent.problem}
    if shard.landing:
        changes["landing"] = False
    return Move(stage=Stage.COLLECTED, changes=changes, events=_anomalies(shard, answers), pause=answers.quota)


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
    absent = Absent(mark, raw_error(problem.code, problem.message), {}, problem)
    return collect(shard, workspace, token, Answers(workspace, shard, check), absent, check)


def _spent(shard: ShardRecord, answers: Answers, absent: Absent) -> dict[str, Any]:
    """Tokens, cost and early ends. Answers that were counted and did not come were paid for, at an unknown cost."""
    lost = (shard.counts.completed or 0) > answers.answered
    given_up = absent.mark == MISSING and shard.batch_id is not None and answers.answered < shard.rows
    cost = None if lost or given_up else answers.cost
    return {"usage": answers.usage, "cost": cost, "incomplete": answers.incomplete}


def _counted(shard: ShardRecord, counts: dict[OutcomeState, int]) -> Counts:
    """The provider's counts; what it did not tell is what the rows add up to."""
    return Counts(
        total=_or(shard.counts.total, shard.rows),
        completed=_or(shard.counts.completed, counts[OutcomeState.OK]),
        failed=_or(shard.counts.failed, counts[OutcomeState.FAILED]),
    )


def _or(counted: int | None, found: int) -> int:
    return found if counted is None else counted


def _row(
    shard: ShardRecord,
    number: int,
    request: bytes,
    answer: tuple[bool, bytes] | None,
    absent: Absent,
    judge: Judge | None,
) -> tuple[bytes, bytes]:
    """The mark of a row and its line in the collected file, without its newline."""
    if answer is None:
        mark, error = absent.by_line.get(number, (absent.mark, absent.error))
        return mark, error_line(custom_id(request), OUTCOMES[mark], shard.round, None, error or absent.error)
    ok, raw = answer
    if ok:
        refused = judge.refuse(raw, shard) if judge is not None else None
        return (OK, raw) if judge is None or refused is None else (judge.mark, refused)
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
        return (mark if mark in (OK, INVALID) else FAILED), line
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
