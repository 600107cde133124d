"""Download: fetch a batch's files and account for every row of its shard.

The lines of the two files come in any order and stay on disk; memory holds one small entry per row of the
shard. What comes out is one file with a line for each row, in the order of the requests: a mark (see
``outcomes``), then the provider's line for a row that is ok, a line for ``errors.jsonl`` for every other row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import blake2b
from typing import Any, BinaryIO, Protocol

import msgspec

from batchpipe.bodies import Failure
from batchpipe.costs import MAX_COST, Pricer, unknown
from batchpipe.errors import BatchpipeError, Gone, Unavailable
from batchpipe.jobs import BatchError, Counts, JobRecord, Move, Problem, ShardRecord, Stage, Status
from batchpipe.outcomes import (
    FAILED,
    FOR_NOW,
    MISSING,
    MISSING_FOR_NOW,
    OK,
    OUTCOMES,
    REFUSED_WITH_OTHERS,
    mark_of,
    names_quota,
)
from batchpipe.rows import (
    EMBEDDINGS,
    MODERATIONS,
    Answer,
    OutcomeState,
    add_usage,
    custom_id,
    embedding_inputs,
    error_line,
    is_object,
    raw_error,
    read_answer,
)
from batchpipe.storage import Folder, Pacer, Scratch

#: How often files with fewer lines than the provider counted are fetched anew; then that is the truth.
MAX_FETCHES = 3
#: Fetches of one file in a turn. A turn that fails throws away the other file, which may be 200 MB, too.
FETCHES_AT_ONCE = 3
#: So often in a row a file must be unknown to the provider before we believe that it is gone: its rows are paid.
MAX_GONE = 4
_TOO_FEW = Failure("embeddings_missing", "HTTP 200 with fewer embeddings than inputs")


class FilesApi(Protocol):
    """What this step needs of the provider."""

    def file_bytes(self, file_id: str) -> int | None:
        """The length of a file, None where the provider does not tell; raises Gone, Unavailable."""

    def download(self, file_id: str, sink: BinaryIO, check: Callable[[], None]) -> int:
        """Stream a file into ``sink``; returns the number of bytes. Raises Gone, Unavailable."""


def download(
    job: JobRecord,
    shard: ShardRecord,
    workspace: Folder,
    api: FilesApi,
    token: str,
    *,
    prices: Pricer = unknown,
    check: Callable[[], None],
) -> Move:
    """Collect a shard whose batch has ended.

    Moves to ``collected``, or stays at ``ended`` for a while if the files have fewer lines than the provider
    counted, or some that nobody can read. Raises Unavailable for a file that is cut short, StorageTrouble,
    BatchpipeError (``rows_lost``) if the rows do not add up.
    """
    with ExitStack() as stack:
        answers = _Answers(workspace, shard, check, endpoint=job.endpoint, prices=prices)
        gone: Problem | None = None
        for file_id in (shard.output_file_id, shard.error_file_id):
            if not file_id:
                continue
            try:
                scratch, whole = _fetched(api, file_id, workspace, stack, check)
            except Gone as error:
                gone = Problem(code="file_gone", message=f"file {file_id} is gone at the provider: {error}")
            else:
                answers.read(scratch, file_id, check, whole=whole)
        if gone is not None and shard.unfound + 1 < MAX_GONE:
            return Move(stage=Stage.ENDED, after=2.0 * 4**shard.unfound, changes={"unfound": shard.unfound + 1})
        short = gone is None and answers.answered < _told(shard)
        if (short or answers.unreadable) and shard.fetches < MAX_FETCHES:
            pause = 2.0 * 2**shard.fetches
            return Move(stage=Stage.ENDED, after=pause, changes={"fetches": shard.fetches + 1})
        absent = _absent(shard, gone or answers.unreadable or _unnamed(shard))
        return _collect(shard, workspace, token, answers, absent, check)


def abandon(
    job: JobRecord,
    shard: ShardRecord,
    workspace: Folder,
    token: str,
    problem: Problem,
    *,
    refused: bool = False,
    check: Callable[[], None],
) -> Move:
    """Collect a shard without files: given up, or cancelled before it had a batch.

    Each row is ``failed`` if the provider ``refused`` the shard, else ``missing``; for good in both cases: what has
    made workers vanish must not come back round after round.

    Raises StorageTrouble, BatchpipeError (``rows_lost``) if the rows do not add up.
    """
    mark = FAILED if refused else MISSING
    absent = _Absent(mark, raw_error(problem.code, problem.message), {}, problem)
    answers = _Answers(workspace, shard, check)
    return _collect(shard, workspace, token, answers, absent, check)


class _Absent(msgspec.Struct, frozen=True):
    """What becomes of rows that have no answer."""

    mark: bytes
    error: bytes | None
    by_line: dict[int, bytes]  #: errors of the rows that the provider named, by line from 1
    problem: Problem | None


def _absent(shard: ShardRecord, gone: Problem | None) -> _Absent:
    if shard.error is None and shard.status != Status.FAILED:
        if gone is None:
            return _Absent(MISSING_FOR_NOW, None, {}, None)
        return _Absent(MISSING, raw_error(gone.code, gone.message), {}, gone)  # they may be paid
    problem = shard.error or _refusal(shard.errors)
    by_line = {error.line: raw_error(error.code, error.message) for error in shard.errors if error.line}
    if not by_line or not all(error.line for error in shard.errors):
        return _Absent(FAILED, raw_error(problem.code, problem.message), by_line, problem)
    message = f"this row was not run: its batch was refused for others ({problem.code}: {problem.message})"
    mark = FAILED if shard.refused_once else REFUSED_WITH_OTHERS
    return _Absent(mark, raw_error("batch_refused", message), by_line, problem)


def _unnamed(shard: ShardRecord) -> Problem | None:
    """Answers were counted, so paid, and the provider never named the file that has them."""
    if not shard.counts.completed or shard.output_file_id:
        return None
    message = f"the provider counted {shard.counts.completed} answers and named no output file"
    return Problem(code="output_file_missing", message=message)


def _refusal(errors: list[BatchError]) -> Problem:
    if not errors:
        return Problem(code="batch_failed", message="the provider refused the batch and did not say why")
    code = errors[0].code or "batch_failed"
    return Problem(code=code, message=errors[0].message or "the provider refused the batch")


def _told(shard: ShardRecord) -> int:
    """How many answers the provider says there are, 0 where it does not say."""
    return (shard.counts.completed or 0) + (shard.counts.failed or 0)


def _fetched(
    api: FilesApi, file_id: str, workspace: Folder, stack: ExitStack, check: Callable[[], None]
) -> tuple[Scratch, bool]:
    """A file, which lives as long as ``stack``, and whether it is known to be whole. Raises Gone, Unavailable."""
    for left in reversed(range(FETCHES_AT_ONCE)):
        with ExitStack() as attempt:
            scratch = attempt.enter_context(workspace.scratch())
            try:
                whole = _fetch(api, file_id, scratch, check, last=not left)
            except Unavailable as error:
                if not left or error.after is not None:
                    raise
                continue
            stack.push(attempt.pop_all())
            return scratch, whole
    raise AssertionError("unreachable")


def _fetch(api: FilesApi, file_id: str, scratch: Scratch, check: Callable[[], None], *, last: bool) -> bool:
    """Whether the file is as long as the provider says. Raises Gone; Unavailable if it is cut.

    One that is longer, time and again, is not cut: some count characters, not bytes.
    """
    try:
        size = api.file_bytes(file_id)
    except Gone:
        size = None  # only if the content is gone too, paid rows are lost
    got = api.download(file_id, scratch.sink, check)
    # Some tell 0 for a file that they have not measured; a file cannot be cut shorter than that.
    if size and (got < size or (got > size and not last)):
        raise Unavailable(f"the downloaded file is cut short: {file_id} has {got} of {size} bytes")
    return got == size


class _Answers:
    """Where the answer to each request is: an index of the files, in the order of the requests."""

    def __init__(
        self,
        workspace: Folder,
        shard: ShardRecord,
        check: Callable[[], None],
        *,
        endpoint: str = "",
        prices: Pricer = unknown,
    ) -> None:
        self.lines = self.duplicates = self.unknown = 0
        self.answered = 0  #: rows that have an answer
        self.usage: dict[str, int] = {}
        self.cost: int | None = 0  #: pico-dollars; None once the price of a row is not known
        self.incomplete: dict[str, int] = {}  #: ok rows that ended early, by reason
        self.unreadable: Problem | None = None  #: a line of a whole file that does not parse
        self.quota: Problem | None = None  #: rows were refused because the account has used up its quota
        self._files: list[Scratch] = []
        # Digests, for ids may be long; offset, length, file and ok packed, for tuples are large.
        self._rows: dict[bytes, int] = {}
        self._wanted: dict[bytes, int] = {}  #: for rows with more than one embedding input: how many
        self._model, self._prices, self._endpoint = shard.model, prices, endpoint
        rows = 0
        with workspace.reader(shard.file) as requests:
            for line in _paced(requests, check):
                key = _digest(custom_id(line))
                self._rows[key] = 0
                if endpoint == EMBEDDINGS and (inputs := embedding_inputs(line)) > 1:
                    self._wanted[key] = inputs
                rows += 1
        if rows != shard.rows or len(self._rows) != rows:
            numbers = f"{shard.rows} rows planned, {rows} in its file, {len(self._rows)} ids"
            raise BatchpipeError(f"shard {shard.index} does not add up: {numbers}", code="rows_lost")

    def read(self, file: Scratch, name: str, check: Callable[[], None], *, whole: bool) -> None:
        """Take the answers of a file in; an ok one wins over another, else the first.

        Raises Unavailable for a line that does not parse, unless the file is known to be ``whole``.
        """
        number = len(self._files)
        self._files.append(file)
        offset = 0
        for at, line in enumerate(_paced(file.lines(), check), 1):
            if line.strip():
                try:
                    self._note(line, offset, number)
                except ValueError as error:
                    if not whole:
                        message = f"the downloaded file is cut short: line {at} of {name} is {error}"
                        raise Unavailable(message) from None
                    message = f"line {at} of {name} is {error}; whose answer it is, and so what is paid, nobody knows"
                    self.unreadable = self.unreadable or Problem(code="answer_unreadable", message=message)
            offset += len(line)

    def _note(self, line: bytes, offset: int, file: int) -> None:
        self.lines += 1
        try:
            answer = read_answer(line)
        except ValueError:
            if not is_object(line):
                raise
            self.unknown += 1  # whole, but nobody's: fetching it anew would give the same
            return
        key = _digest(answer.custom_id)
        if self._wanted and answer.ok:
            answer = self._whole(answer, key)
        known = self._rows.get(key)
        if known is None:
            self.unknown += 1
            return
        if known:
            self.duplicates += 1
            if known & 1 or not answer.ok:
                return
        else:
            self.answered += 1
        if self.quota is None and names_quota(answer):
            self.quota = Problem(code="insufficient_quota", message="rows were refused: the account's quota is used up")
        self._rows[key] = offset << 34 | len(line) << 2 | file << 1 | answer.ok
        add_usage(self.usage, answer.usage)
        if answer.incomplete is not None:
            add_usage(self.incomplete, {answer.incomplete: 1})
        if self.cost is not None:
            self._add_cost(answer)

    def _add_cost(self, answer: Answer) -> None:
        """What the row was billed for, by the model that answered; if that has no price, by the one that was asked."""
        if answer.usage:
            cost = self._prices(answer.model, answer.usage)
            if cost is None and answer.model != self._model:
                cost = self._prices(self._model, answer.usage)
        elif answer.ok and self._endpoint != MODERATIONS:
            cost = self._prices(None, {})  # it was paid for, and nothing says how much
        else:
            cost = 0
        total = None if cost is None or self.cost is None else self.cost + cost
        self.cost = total if total is not None and total <= MAX_COST else None

    def _whole(self, answer: Answer, key: bytes) -> Answer:
        """The same answer; failed if it has fewer embeddings than its row had inputs."""
        wanted = self._wanted.get(key, 0)
        if answer.items is None or answer.items >= wanted:
            return answer
        return msgspec.structs.replace(answer, ok=False, failure=_TOO_FEW)

    def __iter__(self) -> Iterator[tuple[bool, bytes] | None]:
        """For each request in turn whether it is ok and its line, None where there is no answer."""
        for place in self._rows.values():
            if not place:
                yield None
                continue
            line = self._files[place >> 1 & 1].at(place >> 34, place >> 2 & 0xFFFFFFFF)
            yield bool(place & 1), line.rstrip(b"\r\n")


def _digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def _collect(
    shard: ShardRecord,
    workspace: Folder,
    token: str,
    answers: _Answers,
    absent: _Absent,
    check: Callable[[], None],
) -> Move:
    name = f"collected/{shard.index:05d}-{shard.try_}-{token}.rows"
    counts, resend = dict.fromkeys(OutcomeState, 0), 0
    with workspace.reader(shard.file) as requests, workspace.writer(name) as out:
        rows = zip(_paced(requests, check), answers, strict=True)
        for number, (request, answer) in enumerate(rows, 1):
            mark, line = _row(shard, number, request, answer, absent)
            counts[OUTCOMES[mark]] += 1
            resend += mark in FOR_NOW
            out.write(b"%b%b\n" % (mark, line))
    if sum(counts.values()) != shard.rows:
        numbers = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        raise BatchpipeError(f"shard {shard.index} does not add up: {shard.rows} rows, {numbers}", code="rows_lost")
    changes: dict[str, Any] = {"resend": resend, **{outcome.value: count for outcome, count in counts.items()}}
    changes["counts"] = Counts(  # where the provider told none, what came of it
        total=_or(shard.counts.total, shard.rows),
        completed=_or(shard.counts.completed, counts[OutcomeState.OK]),
        failed=_or(shard.counts.failed, counts[OutcomeState.FAILED]),
    )
    return Move(
        stage=Stage.COLLECTED,
        changes={**changes, **_spent(shard, answers, absent), "collected_file": name, "error": absent.problem},
        events=_anomalies(shard, answers),
        pause=answers.quota,
    )


def _spent(shard: ShardRecord, answers: _Answers, absent: _Absent) -> dict[str, Any]:
    """Tokens, cost and early ends. Answers that were counted and did not come were paid for; nobody knows how much."""
    lost = (shard.counts.completed or 0) > answers.answered
    given_up = absent.mark == MISSING and shard.batch_id is not None and answers.answered < shard.rows
    cost = None if lost or given_up else answers.cost
    return {"usage": answers.usage, "cost": cost, "incomplete": answers.incomplete}


def _or(told: int | None, found: int) -> int:
    return found if told is None else told


def _row(
    shard: ShardRecord, number: int, request: bytes, answer: tuple[bool, bytes] | None, absent: _Absent
) -> tuple[bytes, bytes]:
    """The mark of a row and its line in the collected file, without its newline."""
    if answer is None:
        own = absent.by_line.get(number)
        mark = FAILED if own is not None else absent.mark
        return mark, error_line(custom_id(request), OUTCOMES[mark], shard.round, None, own or absent.error)
    ok, raw = answer
    if ok:
        return OK, raw
    found = read_answer(raw)
    if found.ok:  # the line alone does not tell that it is not all
        found = msgspec.structs.replace(found, ok=False, failure=_TOO_FEW)
    error = found.error if found.failure is None else raw_error(found.failure.code, found.failure.message)
    line = error_line(found.custom_id, OutcomeState.FAILED, shard.round, found.response, error)
    return mark_of(found), line


def _anomalies(shard: ShardRecord, answers: _Answers) -> list[tuple[str, dict[str, int]]]:
    told = _told(shard)
    short = max(told - answers.lines, 0)
    if not (answers.duplicates or answers.unknown or short):
        return []
    return [
        (
            "anomaly",
            {
                "lines": answers.lines,
                "told": told,
                "short": short,
                "duplicates": answers.duplicates,
                "unknown": answers.unknown,
            },
        )
    ]


def _paced(lines: Iterator[bytes] | BinaryIO, check: Callable[[], None]) -> Iterator[bytes]:
    """The same lines, with a call of ``check`` now and then."""
    pace = Pacer(check)
    for line in lines:
        pace(line)
        yield line
