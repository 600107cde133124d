"""Decides which shard a row goes to. Memory does not grow with the input: rows go straight to their files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from batchpipe.errors import InvalidInput, shortened
from batchpipe.model.requests import EMBEDDINGS, MAX_EMBEDDING_INPUTS, Request
from batchpipe.pipeline.shard_files import MAX_UNFINISHED


class Bounds(NamedTuple):
    """The most that one job may have."""

    models: int
    shards: int
    custom_id: int | None = None  #: characters of one
    model_bytes: Callable[[str | None], int | None] = lambda model: None  #: of a shard of this model; None: any


NO_BOUNDS = Bounds(1 << 60, 1 << 60)


class ShardPlan(msgspec.Struct, frozen=True):
    """One shard: its index in the job, its file within the workspace ("" where none was written)."""

    index: int
    file: str
    rows: int
    bytes: int
    model: str | None
    refused_once: bool = False  #: its rows were in a batch that was refused because of other rows in it


class Prepared(msgspec.Struct, frozen=True):
    """The result of splitting an input. ``order_file``: runs "SHARD COUNT" that give the order of the input.
    ``rows_file``: its data rows, of a table; ``endpoint``: of all rows."""

    shards: list[ShardPlan]
    rows: int
    order_file: str | None
    rows_file: str = ""
    endpoint: str = ""

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


class Files(Protocol):
    """Where rows go."""

    max_open: int  #: shards that may be unfinished at once
    order_file: str | None

    def name(self, index: int) -> str: ...

    def write(self, index: int, line: bytes) -> None: ...

    def finish(self, index: int) -> None: ...


class NoFiles:
    max_open = MAX_UNFINISHED
    order_file: str | None = None

    def name(self, index: int) -> str:
        return ""

    def write(self, index: int, line: bytes) -> None:
        pass

    def finish(self, index: int) -> None:
        pass


#: What the rows of a shard have in common: the model, and whether they were refused with others before.
_Kind = tuple[str | None, bool]


class _Shard:
    """The unfinished shard of one kind of rows."""

    __slots__ = ("bytes", "index", "inputs", "kind", "most", "rows")

    def __init__(self, index: int, kind: _Kind, most: int) -> None:
        self.index = index
        self.kind = kind
        self.most = most  #: bytes
        self.rows = self.bytes = self.inputs = 0


class Planner:
    """Decides which shard a row goes to. ``first`` is the index of its first shard."""

    def __init__(
        self, files: Files, endpoint: str, max_rows: int, max_bytes: int, first: int = 0, bounds: Bounds | None = None
    ) -> None:
        self._files = files
        self._bounds, self._models = bounds or NO_BOUNDS, set[str | None]()
        self._first = first
        self._max_inputs = MAX_EMBEDDING_INPUTS if endpoint == EMBEDDINGS else None
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._open: OrderedDict[_Kind, _Shard] = OrderedDict()
        self._last: _Shard | None = None
        self._plans: list[ShardPlan] = []
        self._next = first

    def place(self, request: Request, line: bytes, *, refused_once: bool = False) -> None:
        """Write a row, newline included, to the shard that it belongs to."""
        size = len(line)
        shard, kind = self._last, (request.model, refused_once)
        if shard is None or shard.kind != kind:
            shard = self._last = self._of(kind)
        if (
            shard.rows >= self._max_rows
            or shard.bytes + size > shard.most
            or (self._max_inputs is not None and shard.inputs + request.inputs > self._max_inputs)
        ) and shard.rows:
            self._finish(shard)
            shard = self._last = self._of(kind)
        shard.rows += 1
        shard.bytes += size
        shard.inputs += request.inputs
        self._files.write(shard.index, line)

    def _of(self, kind: _Kind) -> _Shard:
        found = self._open.get(kind)
        if found is not None:
            self._open.move_to_end(kind)
            return found
        self._check_bounds(kind[0])
        if len(self._open) >= self._files.max_open:
            self._finish(next(iter(self._open.values())))
        found = self._open[kind] = _Shard(self._next, kind, self._most_bytes(kind[0]))
        self._next += 1
        return found

    def _most_bytes(self, model: str | None) -> int:
        most = self._bounds.model_bytes(model)
        return self._max_bytes if most is None else min(most, self._max_bytes)

    def _check_bounds(self, model: str | None) -> None:
        """Raises InvalidInput before a shard is begun that would exceed the limit."""
        self._models.add(model)
        if len(self._models) > self._bounds.models:
            message = (
                f"the input has rows for more than {self._bounds.models:,} models "
                f"({shortened(str(model), 80)!r} is one too many), and each needs batches of its own; if that is "
                "meant, set BATCHPIPE_MAX_MODELS"
            )
            raise InvalidInput(message, code="too_many_models")
        if self._next - self._first >= self._bounds.shards:
            message = (
                f"the input makes more than {self._bounds.shards:,} shards; raise max_rows or max_bytes, split the "
                "input, or set BATCHPIPE_MAX_SHARDS"
            )
            raise InvalidInput(message, code="too_many_shards")

    def _finish(self, shard: _Shard) -> None:
        self._note(shard)
        del self._open[shard.kind]
        self._files.finish(shard.index)

    def _note(self, shard: _Shard) -> None:
        name = self._files.name(shard.index)
        self._plans.append(ShardPlan(shard.index, name, shard.rows, shard.bytes, *shard.kind))

    def all(self) -> list[ShardPlan]:
        """Every shard, the unfinished ones too."""
        for shard in self._open.values():
            self._note(shard)
        return sorted(self._plans, key=lambda plan: plan.index)
