"""Download: fetch a batch's files and account for every row of its shard.

The lines of the two files come in any order and stay on disk; memory holds one small entry per row of the
shard. What comes out is one file with a line for each row, in the order of the requests: a mark (see
``outcomes``), then the provider's line for a row that is ok, a line for ``errors.jsonl`` for every other row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, Protocol

import msgspec

from batchpipe import fetching
from batchpipe.bodies import Failure
from batchpipe.costs import MAX_COST, Pricer, unknown
from batchpipe.errors import BatchpipeError, Gone, Refused
from batchpipe.fetching import Extent, Fetcher
from batchpipe.jobs import BatchError, Counts, JobRecord, Move, Problem, ShardRecord, Stage, Status
from batchpipe.lateness import wait_for_files
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
    was_not_run,
)
from batchpipe.refusals import believed_at, unseen
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
    readable_id,
)
from batchpipe.storage import Folder, Pacer, Scratch

#: So often in a row, and so long, a file must be unknown to a key that sees its batch before we believe that it is
#: gone: its rows are paid.
MAX_GONE = 4
GONE_SECONDS = 3_600.0
_TOO_FEW = Failure("embeddings_missing", "HTTP 200 with fewer embeddings than inputs")

#: Codes of what is waited for: answers that are counted, rows that are counted as failed, a file that looks damaged.
_ANSWERS, _FAILURES, _DAMAGED = "answers_late", "failures_late", "file_damaged"


class Batch(Protocol):
    """What this step reads of the provider's batch object."""

    @property
    def status(self) -> str | None: ...
    @property
    def output_file_id(self) -> str | None: ...
    @property
    def error_file_id(self) -> str | None: ...
    @property
    def counts(self) -> Counts: ...


class FilesApi(fetching.FilesApi, Protocol):
    """What this step needs of the provider."""

    def retrieve(self, batch_id: str) -> Batch:
        """Raises Gone, Unavailable."""


def download(
    job: JobRecord,
    shard: ShardRecord,
    workspace: Folder,
    api: FilesApi,
    token: str,
    *,
    now: float,
    files_patience: float,
    unseen_seconds: float = 86_400.0,
    prices: Pricer = unknown,
    check: Callable[[], None],
    elsewhere: Folder | None = None,
) -> Move:
    """Collect a shard whose batch has ended. ``elsewhere``: a local folder for what has come of its files, if the
    workspace is remote.

    A file that this key does not see is waited for, ``unseen_seconds`` at least if it does not see the batch either.

    Moves to ``collected``, or stays at ``ended`` for a while if its files lag: they have fewer lines than the provider
    counted, fewer bytes than it told, or lines that nobody can read. They are waited for ``files_patience`` seconds;
    what is counted then and did not come is missing for good. Raises Unavailable, StorageTrouble, BatchpipeError
    (``rows_lost``) if the rows do not add up.
    """
    waits = _Waits(job, shard, now, files_patience)
    if shard.late_at is not None:
        shard = _read_again(shard, api)
        if (idle := waits.for_news(shard, api)) is not None:
            return idle
    with Fetcher(api, workspace, f"{job.id}-{shard.index:05d}", check, elsewhere=elsewhere) as files:
        answers = _Answers(workspace, shard, check, endpoint=job.endpoint, prices=prices)
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
            else:
                answers.read(scratch, file_id, check, extent=extent)
        if gone is not None:
            found = _lost(job, shard, lacks, gone, api, now, unseen_seconds)
            if isinstance(found, Move):
                return found
            lost = found
        if gone is None and (waiting := waits.for_answers(shard, answers)) is not None:
            return waiting
        problem = lost or answers.lack(shard)
        return _collect(shard, workspace, token, answers, _absent(shard, problem, answers), check, job.round)


def _read_again(shard: ShardRecord, api: FilesApi) -> ShardRecord:
    """The shard with what the provider says of its batch by now. Raises Unavailable, Paused."""
    try:
        batch = api.retrieve(shard.batch_id or "")
    except Refused:
        return shard
    if batch.status not in Status.FINAL:
        return shard
    told = shard.counts if batch.counts.completed is None else batch.counts
    output, error = batch.output_file_id or shard.output_file_id, batch.error_file_id or shard.error_file_id
    return shard.evolve(output_file_id=output, error_file_id=error, counts=told)


@dataclass(frozen=True)
class _Waits:
    """What a download waits for, and how."""

    job: JobRecord
    shard: ShardRecord  #: as it was recorded
    now: float
    patience: float

    def for_news(self, shard: ShardRecord, api: FilesApi) -> Move | None:
        """Files of the same lengths as before are not fetched again; None: there is news, or the time is over."""
        before = self.shard
        same = (shard.output_file_id, shard.error_file_id, shard.counts) == (
            before.output_file_id,
            before.error_file_id,
            before.counts,
        )
        if not same or before.trouble is None or before.trouble.code not in (_ANSWERS, _FAILURES):
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

    def for_answers(self, shard: ShardRecord, answers: _Answers) -> Move | None:
        """None: nothing lacks that may yet come, or the time is over."""
        if answers.answered == shard.rows:
            return None
        code = _DAMAGED
        settled = all(shard.fetched.get(name) == seen for name, seen in answers.fetched.items())
        if answers.lacking(shard) > 0:
            code = _ANSWERS if answers.lacks_paid(shard) else _FAILURES
            what = (
                f"the provider counts {_told(shard)} answers, and its files have {answers.answered - answers.not_run}"
            )
        elif answers.suspect and not (settled and answers.is_counted(shard)):
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
            unpaid=code == _FAILURES,
        )


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
    return _collect(shard, workspace, token, _Answers(workspace, shard, check), absent, check)


def _lost(
    job: JobRecord, shard: ShardRecord, file_id: str, error: Gone, api: FilesApi, now: float, patience: float
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
    """What becomes of rows that have no answer."""

    mark: bytes
    error: bytes | None
    by_line: dict[int, tuple[bytes, bytes | None]]  #: mark and error of rows that were named, by line from 1
    problem: Problem | None


def _absent(shard: ShardRecord, lack: Problem | None, answers: _Answers) -> _Absent:
    by_line = dict.fromkeys(answers.unread_rows(), (MISSING, _raw(answers.unreadable)))
    paid = bool(shard.counts.completed) and lack is not None
    if shard.error is None and (shard.status != Status.FAILED or paid):
        if lack is None:
            return _Absent(MISSING_FOR_NOW, None, by_line, answers.unreadable if by_line else None)
        return _Absent(MISSING, _raw(lack), by_line, lack)  # they may be paid
    problem = shard.error or _refusal(shard.errors)
    named = {error.line: (FAILED, raw_error(error.code, error.message)) for error in shard.errors if error.line}
    by_line |= named
    if not named or not all(error.line for error in shard.errors):
        return _Absent(FAILED, _raw(problem), by_line, problem)
    message = f"this row was not run: its batch was refused for others ({problem.code}: {problem.message})"
    mark = FAILED if shard.refused_once else REFUSED_WITH_OTHERS
    return _Absent(mark, raw_error("batch_refused", message), by_line, problem)


def _raw(problem: Problem | None) -> bytes | None:
    return raw_error(problem.code, problem.message) if problem is not None else None


def _refusal(errors: list[BatchError]) -> Problem:
    if not errors:
        return Problem(code="batch_failed", message="the provider refused the batch and did not say why")
    code = errors[0].code or "batch_failed"
    return Problem(code=code, message=errors[0].message or "the provider refused the batch")


def _told(shard: ShardRecord) -> int:
    """How many answers the provider says there are, 0 where it does not say."""
    return (shard.counts.completed or 0) + (shard.counts.failed or 0)


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
        self.not_run = 0  #: of these, rows whose line says that they were not run
        self.usage: dict[str, int] = {}
        self.cost: int | None = 0  #: pico-dollars; None once the price of a row is not known
        self.incomplete: dict[str, int] = {}  #: ok rows that ended early, by reason
        self.unreadable: Problem | None = None  #: the first line that does not parse
        self.cut = 0  #: files that end within a line that does not parse
        self.unread = 0  #: lines that do not parse, and do not tell whose they are
        self.fetched: dict[str, str] = {}  #: length and digest of each file
        self.suspect = ""  #: a file that has fewer bytes than the provider told, or nothing of ours
        self.quota: Problem | None = None  #: rows were refused because the account has used up its quota
        self._files: list[Scratch] = []
        # Digests, for ids may be long; offset, length, not run, file and ok packed, for tuples are large.
        self._rows: dict[bytes, int] = {}
        self._wanted: dict[bytes, int] = {}  #: for rows with more than one embedding input: how many
        self._model, self._prices, self._endpoint = shard.model, prices, endpoint
        self._unread: set[bytes] = set()  #: rows whose own line does not parse
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

    def read(self, file: Scratch, name: str, check: Callable[[], None], *, extent: Extent) -> None:
        """Take the answers of a file in; an ok one wins over another, else the first."""
        number, mine, lines = len(self._files), self._mine(), self.lines
        self._files.append(file)
        offset, seen, like_json = 0, blake2b(digest_size=16), False
        for at, line in enumerate(_paced(file.lines(), check), 1):
            seen.update(line)
            if line.strip():
                try:
                    self._note(line, offset, number)
                except ValueError as error:
                    like_json = like_json or line.startswith(b"{")
                    self._note_unreadable(line, f"line {at} of {name} is {error}", whole=line.endswith(b"\n"))
            offset += len(line)
        self.fetched[name] = f"{offset}:{seen.hexdigest()}"
        if extent == "short":
            self.suspect = self.suspect or f"{name} is cut short: {offset} bytes, fewer than the provider tells"
        elif self.lines > lines and self._mine() == mine and not like_json:
            self.suspect = self.suspect or f"{name} has no answer to any row: is it cut short, or an error's page?"

    def _mine(self) -> int:
        return self.answered + self.duplicates + len(self._unread)

    def _note_unreadable(self, line: bytes, what: str, *, whole: bool) -> None:
        """``whole``: it ends as lines end. One that does not is the end of a file that is cut, or still grows, and no
        answer that came.
        """
        if not whole:
            self.cut += 1
            self.unreadable = self.unreadable or Problem(code="answer_unreadable", message=f"{what}, and ends there")
            return
        name = readable_id(line)
        place = self._rows.get(_digest(name)) if name is not None else None
        if place:
            self.duplicates += 1
            return
        if name is not None and place == 0:
            self._unread.add(_digest(name))
            what += "; it is the answer to that row, and may be paid"
        else:
            self.unread += 1
            what += "; whose answer it is, and so what is paid, nobody knows"
        self.unreadable = self.unreadable or Problem(code="answer_unreadable", message=what)

    def lacking(self, shard: ShardRecord) -> int:
        """Rows that the provider counts and of which no line came, not even one that nobody can read."""
        told = min(_told(shard), shard.rows)
        # lines of rows that were not run (expired, cancelled) are none of those that are counted
        lack = min(told - (self.answered - self.not_run), shard.rows - self.answered)
        return lack - self.unread - self._unread_alone()

    def _unread_alone(self) -> int:
        """Rows of which an unreadable line is all that came."""
        return sum(not self._rows[key] for key in self._unread)

    def is_counted(self, shard: ShardRecord) -> bool:
        """The provider told how many answers there are, and they are here."""
        return _told(shard) > 0 and self.lacking(shard) <= 0

    def lacks_paid(self, shard: ShardRecord) -> bool:
        """Of the rows that lack some are counted as completed, not only as failed."""
        ok = sum(place & 1 for place in self._rows.values())
        return min(self.lacking(shard), (shard.counts.completed or 0) - ok) > 0

    def lack(self, shard: ShardRecord) -> Problem | None:
        """Why rows without a line must not be sent again: some of them were answered, and nobody knows which."""
        told = min(_told(shard), shard.rows)
        if self.lacks_paid(shard):
            if not shard.output_file_id:
                message = f"the provider counted {shard.counts.completed} answers and named no output file"
                return Problem(code="output_file_missing", message=message)
            message = (
                f"the provider counts {_told(shard)} answers, and {self.answered - self.not_run} came: "
                "those that lack may be paid"
            )
            return Problem(code="answers_missing", message=message)
        if (self.unread or self.cut) and (not told or self.answered - self.not_run + self._unread_alone() < told):
            return self.unreadable
        if self.suspect and not self.is_counted(shard):
            return Problem(code="file_damaged", message=f"{self.suspect}; what lacks may be paid")
        return None

    def unread_rows(self) -> list[int]:
        """The numbers, from 1, of rows without an answer whose own line does not parse."""
        if not self._unread:
            return []
        places = enumerate(self._rows.items(), 1)
        return [number for number, (key, place) in places if not place and key in self._unread]

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
        not_run = not answer.ok and was_not_run(answer)
        if known:
            self.duplicates += 1
            if known & 1 or not answer.ok:
                return
            self.not_run -= known >> 2 & 1
        else:
            self.answered += 1
            self.not_run += not_run
        if self.quota is None and names_quota(answer):
            self.quota = Problem(code="insufficient_quota", message="rows were refused: the account's quota is used up")
        self._rows[key] = offset << 35 | len(line) << 3 | not_run << 2 | file << 1 | answer.ok
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
            line = self._files[place >> 1 & 1].at(place >> 35, place >> 3 & 0xFFFFFFFF)
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
    rounds: int = 0,
) -> Move:
    name = f"collected/{shard.index:05d}-{shard.try_}-{token}.rows"
    counts, resend = dict.fromkeys(OutcomeState, 0), 0
    with ExitStack() as stack:
        requests, out = stack.enter_context(workspace.reader(shard.file)), stack.enter_context(workspace.writer(name))
        before = iter(stack.enter_context(workspace.reader(shard.collected_file or ""))) if shard.landing else None
        rows = zip(_paced(requests, check), answers, strict=True)
        for number, (request, answer) in enumerate(rows, 1):
            mark, line = _row(shard, number, request, answer, absent)
            if before is not None:
                mark, line = _landed(next(before, b""), mark, line, again=shard.round < rounds)
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
        mark, error = absent.by_line.get(number, (absent.mark, absent.error))
        return mark, error_line(custom_id(request), OUTCOMES[mark], shard.round, None, error or absent.error)
    ok, raw = answer
    if ok:
        return OK, raw
    found = read_answer(raw)
    if found.ok:  # the line alone does not tell that it is not all
        found = msgspec.structs.replace(found, ok=False, failure=_TOO_FEW)
    error = found.error if found.failure is None else raw_error(found.failure.code, found.failure.message)
    line = error_line(found.custom_id, OutcomeState.FAILED, shard.round, found.response, error)
    return mark_of(found), line


def _landed(before: bytes, mark: bytes, line: bytes, *, again: bool) -> tuple[bytes, bytes]:
    """A row of a shard that is landed later: what was there before, unless the batch has brought more of it.

    ``again``: a later round has sent the rows that were worth it, and their places there count on these marks.
    """
    old, old_line = before[:1], before[1:].rstrip(b"\n")
    if old not in OUTCOMES:
        raise BatchpipeError("a collected file is damaged", code="rows_lost")
    if old == OK or (again and old in FOR_NOW):
        return old, old_line
    if mark == OK or OUTCOMES[mark] is OutcomeState.FAILED:
        return (mark if mark == OK else FAILED), line
    return (FAILED if OUTCOMES[old] is OutcomeState.FAILED else MISSING), old_line


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
