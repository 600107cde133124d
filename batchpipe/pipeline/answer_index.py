"""Where the answer to each row of a shard is, in the output and error files of its batch.

The lines come in any order and stay on disk; memory holds one small entry per row of the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import BinaryIO

import msgspec

from batchpipe.errors import NO_QUOTA, BatchpipeError
from batchpipe.model.answers import Answer, add_usage, is_object, read_answer, readable_id
from batchpipe.model.bodies import Failure
from batchpipe.model.outcomes import names_quota, was_not_run
from batchpipe.model.records import Problem, ShardRecord, Status
from batchpipe.model.requests import EMBEDDINGS, MODERATIONS, custom_id, embedding_inputs
from batchpipe.pipeline.fetching import Extent
from batchpipe.storage import Checkpoint, Folder, Scratch
from batchpipe.telemetry.prices import MAX_COST, Pricer, unknown

#: Why an answer with fewer embeddings than its row had inputs counts as failed.
TOO_FEW = Failure("embeddings_missing", "HTTP 200 with fewer embeddings than inputs")
#: A batch with one of these statuses has run rows, or may have.
_MAY_HAVE_RUN = (Status.COMPLETED, Status.EXPIRED, Status.CANCELLED, Status.CANCELED)


class Answers:
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
        self.not_run = 0  #: how many of these have a line that says that they were not run
        self.usage: dict[str, int] = {}
        self.cost: int | None = 0  #: pico-dollars; None once the price of a row is not known
        self.incomplete: dict[str, int] = {}  #: ok rows that ended early, by reason
        self.unreadable: Problem | None = None  #: the first line that does not parse
        self.cut = 0  #: files that end within a line that does not parse
        self.unread = 0  #: lines that do not parse, and do not tell which row they belong to
        self.fetched: dict[str, str] = {}  #: length and digest of each file
        self.suspect = ""  #: a file that has fewer bytes than the provider reports, or no rows of ours
        self.quota: Problem | None = None  #: rows were refused because the account has used up its quota
        self._files: list[Scratch] = []
        # Digests, because ids may be long; offset, length, not run, file and ok are packed, because tuples are large.
        self._rows: dict[bytes, int] = {}
        self._wanted: dict[bytes, int] = {}  #: for rows with more than one embedding input: how many
        self._model, self._prices, self._endpoint = shard.model, prices, endpoint
        self._unread: set[bytes] = set()  #: rows with a line of their own that does not parse
        rows = 0
        with workspace.reader(shard.file) as requests:
            for line in paced(requests, check):
                key = _digest(custom_id(line))
                self._rows[key] = 0
                if endpoint == EMBEDDINGS and (inputs := embedding_inputs(line)) > 1:
                    self._wanted[key] = inputs
                rows += 1
        if rows != shard.rows or len(self._rows) != rows:
            numbers = f"{shard.rows} rows planned, {rows} in its file, {len(self._rows)} ids"
            raise BatchpipeError(f"shard {shard.index} does not add up: {numbers}", code="rows_lost")

    def read(self, file: Scratch, name: str, check: Callable[[], None], *, extent: Extent) -> None:
        """Add the answers of a file; of several for one row an ok one wins, else the first."""
        number, mine, lines = len(self._files), self._mine(), self.lines
        self._files.append(file)
        offset, seen, like_json = 0, blake2b(digest_size=16), False
        for at, line in enumerate(paced(file.lines(), check), 1):
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
        """``whole``: the line ends with a newline. One that does not is the end of a file that is cut or still grows,
        and does not count as an answer.
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
            what += "; its row, and so what is paid, is unknown"
        self.unreadable = self.unreadable or Problem(code="answer_unreadable", message=what)

    @property
    def has_unreadable(self) -> bool:
        """Whether a whole line does not parse. In a file shorter than reported, part of it may be cut off."""
        return bool(self.unread or self._unread)

    def lacking(self, shard: ShardRecord) -> int:
        """The number of rows that the provider counts and that have no line, not even an unreadable one."""
        counted = min(counted_answers(shard), shard.rows)
        # the provider does not count rows that were not run (expired, cancelled)
        lack = min(counted - (self.answered - self.not_run), shard.rows - self.answered)
        return lack - self.unread - self._unread_alone()

    def _unread_alone(self) -> int:
        """The number of rows that have only an unreadable line."""
        return sum(not self._rows[key] for key in self._unread)

    def leaves_out(self, shard: ShardRecord) -> bool:
        """Rows are missing that the batch's final status does not explain: counts and files may lag behind it."""
        if self.answered + self.unread + self._unread_alone() >= shard.rows or shard.status not in _MAY_HAVE_RUN:
            return False
        if shard.counts.completed is None:
            return True
        counted = counted_answers(shard)
        none = not counted and not (shard.output_file_id or shard.error_file_id)
        return shard.status == Status.COMPLETED and counted < shard.rows and (none or not shard.counts.total)

    def is_counted(self, shard: ShardRecord) -> bool:
        """The provider reports how many answers there are, and all of them are here."""
        return counted_answers(shard) > 0 and self.lacking(shard) <= 0

    @property
    def ok(self) -> int:
        """Rows with an ok answer."""
        return sum(place & 1 for place in self._rows.values())

    def lacks_paid(self, shard: ShardRecord) -> bool:
        """Some of the missing rows are counted as completed, not only as failed."""
        return min(self.lacking(shard), (shard.counts.completed or 0) - self.ok) > 0

    def lack(self, shard: ShardRecord) -> Problem | None:
        """Why rows without a line must not be sent again: some of them were answered, and we cannot tell which."""
        counted = min(counted_answers(shard), shard.rows)
        if tells_nothing(shard) and self.answered != shard.rows:
            message = (
                f"{left_out(shard, self.answered)}: its rows may be paid; what turns up: batchpipe land {shard.job}"
            )
            return Problem(code="output_file_missing", message=message)
        if self.lacks_paid(shard):
            if not shard.output_file_id:
                message = f"the provider counted {shard.counts.completed} answers and named no output file"
                return Problem(code="output_file_missing", message=message)
            message = (
                f"the provider counts {counted_answers(shard)} answers, and {self.answered - self.not_run} came: "
                "those that lack may be paid"
            )
            return Problem(code="answers_missing", message=message)
        if (self.unread or self.cut) and (not counted or self.answered - self.not_run + self._unread_alone() < counted):
            return self.unreadable
        if self.suspect and not self.is_counted(shard):
            return Problem(code="file_damaged", message=f"{self.suspect}; what lacks may be paid")
        return None

    def unread_rows(self) -> list[int]:
        """The numbers, from 1, of rows that have only a line of their own that does not parse."""
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
            self.unknown += 1  # whole, but it names no row: fetching it again would give the same
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
            self.quota = Problem(code=NO_QUOTA, message="rows were refused: the account's quota is used up")
        self._rows[key] = offset << 35 | len(line) << 3 | not_run << 2 | file << 1 | answer.ok
        add_usage(self.usage, answer.usage)
        if answer.incomplete is not None:
            add_usage(self.incomplete, {answer.incomplete: 1})
        if self.cost is not None:
            self._add_cost(answer)

    def _add_cost(self, answer: Answer) -> None:
        """The cost of the row at the price of the model that answered, or if that has none, of the requested one."""
        if answer.usage:
            cost = self._prices(answer.model, answer.usage)
            if cost is None and answer.model != self._model:
                cost = self._prices(self._model, answer.usage)
        elif answer.ok and self._endpoint != MODERATIONS:
            cost = self._prices(None, {})  # it was paid for, but the cost is unknown
        else:
            cost = 0
        total = None if cost is None or self.cost is None else self.cost + cost
        self.cost = total if total is not None and total <= MAX_COST else None

    def _whole(self, answer: Answer, key: bytes) -> Answer:
        """The same answer; failed if it has fewer embeddings than its row had inputs."""
        wanted = self._wanted.get(key, 0)
        if answer.items is None or answer.items >= wanted:
            return answer
        return msgspec.structs.replace(answer, ok=False, failure=TOO_FEW)

    def __iter__(self) -> Iterator[tuple[bool, bytes] | None]:
        """For each request in turn, whether it is ok, and its line; None where there is no answer."""
        for place in self._rows.values():
            if not place:
                yield None
                continue
            line = self._files[place >> 1 & 1].at(place >> 35, place >> 3 & 0xFFFFFFFF)
            yield bool(place & 1), line.rstrip(b"\r\n")


def _digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def tells_nothing(shard: ShardRecord) -> bool:
    """It says that all was done, but gives neither counts nor files: what was paid cannot be known."""
    counted = counted_answers(shard) or shard.counts.total
    return shard.status == Status.COMPLETED and not (counted or shard.output_file_id)


def left_out(shard: ShardRecord, lines: int) -> str:
    """In words: a batch has ended without any answer for some of its rows."""
    counted = "counts none" if shard.counts.completed is None else f"counts {counted_answers(shard)}"
    return f"{shard.batch_id} has ended as {shard.status} and {counted} of its {shard.rows} rows; {lines} have a line"


def counted_answers(shard: ShardRecord) -> int:
    """The number of answers that the provider reports, 0 if it reports none."""
    return (shard.counts.completed or 0) + (shard.counts.failed or 0)


def paced(lines: Iterator[bytes] | BinaryIO, check: Callable[[], None]) -> Iterator[bytes]:
    """Yields the same lines and calls ``check`` now and then."""
    pace = Checkpoint(check)
    for line in lines:
        pace(line)
        yield line
