"""Prepare: stream the input once, check every row, split it into shards, remember the order.

Memory does not grow with the input: rows go straight to their shard files, and of their ids only hashes are
kept, most of them in a temporary file. Whatever a prepare that was stopped leaves behind carries the token of
its lease, so that it harms nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import BinaryIO, Protocol

import msgspec

from batchpipe.errors import InvalidInput, StorageTrouble
from batchpipe.jobs import JobRecord
from batchpipe.rows import EMBEDDINGS, MAX_EMBEDDING_INPUTS, Request, check_request
from batchpipe.storage import Draft, Folder, Pacer, RepeatFinder, input_info, open_input

#: Shards, so models, that may be unfinished at once; beyond it the one that waits longest is finished as it is.
MAX_UNFINISHED = 1024
_NEWLINE = ord("\n")


class ShardPlan(msgspec.Struct, frozen=True):
    """One shard: its number from 0, its file within the workspace ("" where none was written)."""

    index: int
    file: str
    rows: int
    bytes: int
    model: str | None


class Prepared(msgspec.Struct, frozen=True):
    """What came of an input. ``order_file``: runs "SHARD COUNT" that lead back to the order of the input."""

    shards: list[ShardPlan]
    rows: int
    order_file: str | None

    @property
    def bytes(self) -> int:
        """Of all shard files, newlines included."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def models(self) -> dict[str | None, int]:
        """Rows per model."""
        found: dict[str | None, int] = {}
        for shard in self.shards:
            found[shard.model] = found.get(shard.model, 0) + shard.rows
        return found


def prepare(job: JobRecord, workspace: Folder, token: str, *, check: Callable[[], None]) -> Prepared:
    """Check and split the input of a job; write its shard files and their order into the workspace.

    ``token`` becomes part of every name. ``check`` is called at least every 1,024 rows or MB; what it raises
    ends the step. Raises InvalidInput for the first bad row, an id that is there twice, an empty input or an
    output that cannot be written; StorageTrouble (``input_missing``, ``input_changed``, ...).
    """
    if job.output:
        Folder(job.output).check_writable("output.jsonl", "errors.jsonl", "job.json")
    workspace.check_writable()
    files = _ShardFiles(workspace, token)
    try:
        found = _scan(job.input, job.endpoint, job.max_rows, job.max_bytes, files, check)
        files.commit(check)
    except BaseException:
        files.discard()
        raise
    return found


def validate(
    url: str,
    endpoint: str,
    max_rows: int = 50_000,
    max_bytes: int = 200_000_000,
    *,
    check: Callable[[], None] = lambda: None,
) -> Prepared:
    """Check an input as ``prepare`` does and tell the shards that it would make, without writing any."""
    return _scan(url, endpoint, max_rows, max_bytes, _NoFiles(), check)


class _Files(Protocol):
    """Where rows go."""

    max_open: int  #: shards that may be unfinished at once
    order_file: str | None

    def name(self, index: int) -> str: ...

    def write(self, index: int, line: bytes) -> None: ...

    def finish(self, index: int) -> None: ...


class _NoFiles:
    max_open = MAX_UNFINISHED
    order_file: str | None = None

    def name(self, index: int) -> str:
        return ""

    def write(self, index: int, line: bytes) -> None:
        pass

    def finish(self, index: int) -> None:
        pass


class _ShardFiles:
    """The shard files being written, and the order of their rows; at most ``Folder.max_open`` are open."""

    def __init__(self, workspace: Folder, token: str) -> None:
        self.order_file: str | None = f"order-{token}"
        # A local file can be closed and continued, so there many models can have one unfinished shard each.
        self.max_open = MAX_UNFINISHED if workspace.is_local else workspace.max_open
        self._workspace = workspace
        self._token = token
        self._drafts: dict[int, Draft] = {}
        self._open: OrderedDict[int, Draft] = OrderedDict()
        self._done: list[str] = []
        self._order = workspace.draft(f"order-{token}")
        self._run, self._count = -1, 0

    def name(self, index: int) -> str:
        return f"shards/{index:05d}-{self._token}.jsonl"

    def write(self, index: int, line: bytes) -> None:
        if index != self._run:
            self._end_run()
            self._run = index
            self._make_room(index)
        self._count += 1
        self._open[index].write(line)

    def _make_room(self, index: int) -> None:
        if index in self._open:
            self._open.move_to_end(index)
            return
        if len(self._open) >= self._workspace.max_open:
            self._open.popitem(last=False)[1].pause()
        if index not in self._drafts:
            self._drafts[index] = self._workspace.draft(self.name(index))
        self._open[index] = self._drafts[index]

    def _end_run(self) -> None:
        if self._count:
            self._order.write(b"%d %d\n" % (self._run, self._count))
        self._count = 0

    def finish(self, index: int) -> None:
        self._open.pop(index, None)
        self._drafts.pop(index).commit()
        self._done.append(self.name(index))
        if index == self._run:
            self._end_run()
            self._run = -1

    def commit(self, check: Callable[[], None]) -> None:
        for index in list(self._drafts):
            check()
            self.finish(index)
        self._end_run()
        check()
        self._order.commit()

    def discard(self) -> None:
        for draft in (*self._drafts.values(), self._order):
            draft.discard()
        for name in (*self._done, *filter(None, [self.order_file])):
            try:
                self._workspace.remove(name)
            except StorageTrouble:
                return  # what ended the step matters more; the token keeps what is left from harm


class _Shard:
    """The unfinished shard of one model."""

    __slots__ = ("bytes", "index", "inputs", "model", "rows")

    def __init__(self, index: int, model: str | None) -> None:
        self.index = index
        self.model = model
        self.rows = self.bytes = self.inputs = 0


class _Planner:
    """Decides which shard a row goes to."""

    def __init__(self, files: _Files, max_rows: int, max_bytes: int, max_inputs: int | None) -> None:
        self._files = files
        self._max_inputs = max_inputs
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._open: OrderedDict[str | None, _Shard] = OrderedDict()
        self._last: _Shard | None = None
        self.plans: list[ShardPlan] = []
        self._next = 0

    def place(self, request: Request, line: bytes) -> None:
        """Write a row, newline included, to the shard that it belongs to."""
        size = len(line)
        shard = self._last
        if shard is None or shard.model != request.model:
            shard = self._last = self._of(request.model)
        if (
            shard.rows >= self._max_rows
            or shard.bytes + size > self._max_bytes
            or (self._max_inputs is not None and shard.inputs + request.inputs > self._max_inputs)
        ) and shard.rows:
            self._finish(shard)
            shard = self._last = self._of(request.model)
        shard.rows += 1
        shard.bytes += size
        shard.inputs += request.inputs
        self._files.write(shard.index, line)

    def _of(self, model: str | None) -> _Shard:
        found = self._open.get(model)
        if found is not None:
            self._open.move_to_end(model)
            return found
        if len(self._open) >= self._files.max_open:
            self._finish(next(iter(self._open.values())))
        found = self._open[model] = _Shard(self._next, model)
        self._next += 1
        return found

    def _finish(self, shard: _Shard) -> None:
        self._note(shard)
        del self._open[shard.model]
        self._files.finish(shard.index)

    def _note(self, shard: _Shard) -> None:
        name = self._files.name(shard.index)
        self.plans.append(ShardPlan(shard.index, name, shard.rows, shard.bytes, shard.model))

    def all(self) -> list[ShardPlan]:
        """Every shard, the unfinished ones too."""
        for shard in self._open.values():
            self._note(shard)
        return sorted(self.plans, key=lambda plan: plan.index)


def _scan(url: str, endpoint: str, max_rows: int, max_bytes: int, files: _Files, check: Callable[[], None]) -> Prepared:
    max_inputs = MAX_EMBEDDING_INPUTS if endpoint == EMBEDDINGS else None
    planner = _Planner(files, max_rows, max_bytes, max_inputs)
    before = input_info(url)
    try:
        rows = _scan_rows(url, endpoint, max_bytes, planner, check)
    except InvalidInput:
        if input_info(url) != before:
            raise _changed(url) from None  # what looks wrong may be half of a row that is being written
        raise
    if input_info(url) != before:
        raise _changed(url)
    return Prepared(planner.all(), rows, files.order_file)


def _scan_rows(url: str, endpoint: str, max_bytes: int, planner: _Planner, check: Callable[[], None]) -> int:
    """Check and place every row; returns how many there are."""
    number = 0
    with RepeatFinder() as ids:
        with open_input(url) as stream:
            for number, line in _numbered_lines(stream, max_bytes, check):
                request = check_request(line, number, endpoint)
                ids.note(request.custom_id)
                planner.place(request, line)
        if not number:
            raise InvalidInput("the input has no rows", code="input_empty")
        check()
        suspects = ids.suspects(check)
    if suspects:
        with open_input(url) as stream:
            _refuse_repeats(_numbered_lines(stream, max_bytes, check), endpoint, suspects)
    return number


def _numbered_lines(stream: BinaryIO, max_bytes: int, check: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
    """Each line with its number from 1 and its newline, which the last one gets if it has none."""
    pace = Pacer(check)
    for number, line in enumerate(iter(partial(stream.readline, max_bytes + 1), b""), 1):
        whole = line if line[-1] == _NEWLINE else line + b"\n"
        if len(whole) > max_bytes:
            raise InvalidInput(f"is longer than the {max_bytes} bytes that a batch file may have", line=number)
        pace(whole)
        yield number, whole


def _refuse_repeats(lines: Iterable[tuple[int, bytes]], endpoint: str, suspects: set[int]) -> None:
    """Look at the input again for ids that are there twice; their hashes may also be equal by chance."""
    seen: dict[str, int] = {}
    for number, line in lines:
        name = check_request(line, number, endpoint).custom_id
        if hash(name) not in suspects:
            continue
        if name in seen:
            shown = name if len(name) <= 100 else name[:100] + "..."
            message = f'"{shown}" was used on line {seen[name]} already; give each row an id of its own'
            raise InvalidInput(message, line=number, field="custom_id", code="custom_id_repeated")
        seen[name] = number


def _changed(url: str) -> StorageTrouble:
    return StorageTrouble(f"{url}: the input changed while it was read", code="input_changed")
