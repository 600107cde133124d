"""Rows back in the order of the input: from the files of the shards, and from the two files of results.

Two small indexes make that possible in constant memory. The **order** file of a round has runs "SHARD COUNT": the
next COUNT rows of the round are the next rows of that shard. The rows of the first round are those of the input,
those of each further round are the ones sent again from the round before. ``results.idx`` has pairs "OK NOT_OK": the
next OK rows of the input are in ``output.jsonl``, the NOT_OK after them in ``errors.jsonl``.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar, cast

import msgspec
import orjson

from batchpipe.errors import BatchpipeError, StorageTrouble
from batchpipe.model.answers import OutcomeState, strict_json
from batchpipe.model.outcome import PLAIN, Outcome, Reads
from batchpipe.model.outcomes import FOR_NOW
from batchpipe.pipeline.shard_files import MAX_UNFINISHED
from batchpipe.storage import Folder, read_lines

OUTPUT, ERRORS, INDEX = "output.jsonl", "errors.jsonl", "results.idx"
#: Folders of a workspace with large files, removed when all is well.
WORKING = ("shards", "downloads", "collected")


@dataclass(frozen=True)
class BatchResult:
    """The result files of an ended job (None where nothing could be written) and its row counts."""

    output_file: str | None
    error_file: str | None
    total: int = 0
    ok: int = 0
    failed: int = 0
    missing: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})

    def to_json(self) -> str:
        return orjson.dumps(self.to_dict()).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls.from_dict(orjson.loads(text))


class _OkLine(msgspec.Struct):
    custom_id: str
    response: Any = None


class _ErrorLine(msgspec.Struct):
    custom_id: str
    outcome: OutcomeState
    attempts: int
    response: Any = None
    error: Any = None


_decode_ok = msgspec.json.Decoder(_OkLine).decode
_decode_error = msgspec.json.Decoder(_ErrorLine).decode
_T = TypeVar("_T")


#: Bytes of their shards that all readers together hold at once.
MOST_READ = 16 << 20
_LEAST_BLOCK, _MOST_BLOCK = 1 << 14, 1 << 20


class ShardReader:
    """Reads the files of many shards by lines, each from where the last read stopped, in blocks: however the rows are
    mixed, files are opened once per MB, not per row. ``share``: how many readers share the memory.
    """

    def __init__(
        self, workspace: Folder, files: Mapping[int, str], max_kept: int = MAX_UNFINISHED, *, share: int = 1
    ) -> None:
        self._workspace = workspace
        self._files = files
        self._max_kept = max_kept
        at_once = max(1, min(len(files), max_kept))
        self._block = min(max(MOST_READ // share // at_once, _LEAST_BLOCK), _MOST_BLOCK)
        self._kept: OrderedDict[int, BinaryIO] = OrderedDict()
        self._offsets: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._kept.clear()

    def stream(self, index: int) -> BinaryIO:
        """The file of a shard, at its next unread line; valid until the next call. KeyError for an unknown shard."""
        found = self._kept.get(index)
        if found is not None:
            self._kept.move_to_end(index)
            return found
        if len(self._kept) >= self._max_kept:
            old, stream = self._kept.popitem(last=False)
            self._offsets[old] = stream.tell()
        raw = _Blocks(self._workspace, self._files[index], self._offsets.get(index, 0))
        found = self._kept[index] = cast(BinaryIO, io.BufferedReader(raw, self._block))
        return found

    def unread(self) -> list[int]:
        """The shards with unread lines in their files."""
        return [index for index in self._files if self.stream(index).read(1)]


class _Blocks(io.RawIOBase):
    """A file of a folder that is opened for each block of it that is read."""

    def __init__(self, folder: Folder, name: str, at: int) -> None:
        self._folder, self._name, self._at = folder, name, at
        self._size = folder.size(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._folder.read_at(self._name, self._at, wanted)
        if not data:
            raise StorageTrouble(f"{self._folder.path(self._name)}: became shorter while it was read")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def iter_in_order(order: BinaryIO, reader: ShardReader) -> Iterator[tuple[int, bytes]]:
    r"""Shard and line (with its ``\n``) of every row, in the order of the input.

    Raises BatchpipeError if the order and the files do not fit.
    """
    for run in read_lines(order):
        index, count = map(int, run.split())
        try:
            stream = reader.stream(index)
        except KeyError:
            raise BatchpipeError(f"the order names shard {index}, which the round does not have") from None
        for done in range(count):
            line = stream.readline()
            if not line:
                message = f"shard {index} ended after {done} rows of a run of {count}"
                raise BatchpipeError(f"the order and the shard files do not fit: {message}")
            yield index, line


class Round(NamedTuple):
    """The files of a round: its order file and the collected files of its shards, by index."""

    order_file: str
    files: Mapping[int, str]


def iter_last(workspace: Folder, rounds: Sequence[Round]) -> Generator[bytes, None, None]:
    r"""For each row of the input in turn, its line with mark and ``\n``, from the last round that it was part of.

    Raises BatchpipeError (``rows_lost``) if orders, files and rounds do not fit each other.
    """
    with ExitStack() as stack:
        yield from _last(workspace, list(rounds), len(rounds), stack)


def _last(workspace: Folder, rounds: list[Round], share: int, stack: ExitStack) -> Iterator[bytes]:
    order = stack.enter_context(workspace.reader(rounds[0].order_file))
    reader = stack.enter_context(ShardReader(workspace, rounds[0].files, share=share))
    later = _last(workspace, rounds[1:], share, stack) if rounds[1:] else None
    for _, line in iter_in_order(order, reader):
        if later is not None and line[:1] in FOR_NOW:
            again = next(later, None)
            if again is None:
                raise BatchpipeError("a further round has fewer rows than were sent again", code="rows_lost")
            yield again
        else:
            yield line
    if later is not None and next(later, None) is not None:
        raise BatchpipeError("a further round has more rows than were sent again", code="rows_lost")
    if unread := reader.unread():
        message = f"the collected files of shards {unread} have more rows than the order"
        raise BatchpipeError(message, code="rows_lost")


class ResultIndex:
    """Writes ``results.idx``: pairs of run lengths, ok and not ok alternating."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ok = self._other = 0

    def note(self, ok: bool) -> None:
        """The next row of the input."""
        if not ok:
            self._other += 1
            return
        if self._other:
            self.end()
        self._ok += 1

    def end(self) -> None:
        """After the last row."""
        if self._ok or self._other:
            self._file.write(b"%d %d\n" % (self._ok, self._other))
        self._ok = self._other = 0


def iter_index(index: BinaryIO) -> Iterator[bool]:
    """For each row of the input in turn, whether it is ok."""
    for line in read_lines(index):
        ok, other = map(int, line.split())
        for _ in range(ok):
            yield True
        for _ in range(other):
            yield False


def iter_outcomes(
    output: Folder,
    index: BinaryIO | None = None,
    *,
    reads: Reads = PLAIN,
    inputs: Iterable[dict[str, Any]] | None = None,
) -> Iterator[Outcome]:
    """The rows of a finished job, lazily, in the order of the input; without an index the ok ones come first.

    ``inputs``: the data rows that they came from, in the same order. Raises StorageTrouble (``file_missing``),
    BatchpipeError if index and files do not fit.
    """
    given = iter(inputs) if inputs is not None else repeat(None)
    for at, (is_ok, line) in enumerate(iter_rows(output, index)):
        yield outcome_of(at, is_ok, line, reads, next(given, None))


def iter_rows(output: Folder, index: BinaryIO | None = None) -> Iterator[tuple[bool, bytes]]:
    r"""For each row, in the same order, whether it is ok, and its line with its ``\n``. Raises as ``iter_outcomes``."""
    with output.reader(OUTPUT) as ok, output.reader(ERRORS) as other:
        if index is None:
            yield from chain(zip(repeat(True), ok), zip(repeat(False), other))
            return
        for at, is_ok in enumerate(iter_index(index)):
            line = (ok if is_ok else other).readline()
            if not line:
                raise BatchpipeError(f"{OUTPUT if is_ok else ERRORS} ends before row {at + 1} of {INDEX}")
            yield is_ok, line
        if ok.read(1) or other.read(1):
            raise BatchpipeError(f"{OUTPUT} and {ERRORS} have more rows than {INDEX}")


def outcome_of(at: int, is_ok: bool, line: bytes, reads: Reads = PLAIN, given: dict[str, Any] | None = None) -> Outcome:
    """The row of a line of ``output.jsonl``, or of ``errors.jsonl``."""
    if is_ok:
        ok = _ok_line(line)
        state = OutcomeState.OK
        return Outcome(index=at, custom_id=ok.custom_id, state=state, response=ok.response, input=given, reads=reads)
    other = _decode_error(line)
    return Outcome(
        index=at,
        custom_id=other.custom_id,
        state=other.outcome,
        response=other.response,
        error=other.error,
        attempts=other.attempts,
        input=given,
        reads=reads,
    )


def _ok_line(line: bytes) -> _OkLine:
    """Accepts NaN: ok lines are as the provider wrote them, and some providers write NaN."""
    try:
        return _decode_ok(line)
    except msgspec.DecodeError:
        strict = strict_json(line)
        if strict is None:
            raise
        return _decode_ok(strict)


def iter_failed_requests(
    order: BinaryIO, workspace: Folder, files: Mapping[int, str], index: BinaryIO
) -> Iterator[bytes]:
    r"""The request lines (each with its ``\n``) of the rows that are not ok, in the order of the input.

    ``files`` are the request files of the shards of the first round, by shard. Raises BatchpipeError if the
    files do not fit each other.
    """
    with ShardReader(workspace, files) as reader:
        for (_, line), ok in _paired(iter_in_order(order, reader), iter_index(index)):
            if not ok:
                yield line


def iter_failed_lines(requests: Iterable[bytes], index: BinaryIO) -> Iterator[bytes]:
    """The same from the lines of the input itself, for a job with a workspace that is already cleaned up."""
    for line, ok in _paired(requests, iter_index(index)):
        if not ok:
            yield line


def _paired(rows: Iterable[_T], oks: Iterator[bool]) -> Iterator[tuple[_T, bool]]:
    for row in rows:
        ok = next(oks, None)
        if ok is None:
            raise BatchpipeError(f"there are more requests than {INDEX} has rows")
        yield row, ok
    if next(oks, None) is not None:
        raise BatchpipeError(f"there are fewer requests than {INDEX} has rows")
