"""Writes the shard files. However the rows of many shards are mixed, files are opened once per MB, not per row.

Rows are gathered in memory, ``MOST_PENDING`` bytes in all. From there they go to drafts where a file can be closed and
continued; for other storages to a local file, which is copied there when its shard is complete: many models in turn,
each with one unfinished shard, cost no more there than one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from batchpipe.errors import StorageTrouble
from batchpipe.storage import Draft, Folder, Spill

#: Shards, so models, that may be unfinished at once; beyond that the one that waits longest is finished as it is.
MAX_UNFINISHED = 1024
#: Bytes of one shard, and of all, that are gathered before they are written.
PIECE, MOST_PENDING = 1 << 16, 12 << 20


class _Sink(Protocol):
    def append(self, name: str, index: int, data: bytearray) -> None: ...

    def finish(self, name: str, index: int) -> None: ...

    def discard(self) -> None: ...


class ShardFiles:
    """The shard files being written, and the order of their rows. Names carry the token of the lease."""

    max_open = MAX_UNFINISHED

    def __init__(self, workspace: Folder, token: str) -> None:
        self.order_file: str | None = f"order-{token}"
        self._workspace = workspace
        self._token = token
        self._sink: _Sink = _Drafts(workspace) if workspace.is_local else _Spilled(workspace)
        self._pending: dict[int, bytearray] = {}
        self._bytes = 0
        self._done: list[str] = []
        self._order = workspace.draft(f"order-{token}")
        self._run, self._count = -1, 0

    def name(self, index: int) -> str:
        return f"shards/{index:05d}-{self._token}.jsonl"

    def write(self, index: int, line: bytes) -> None:
        if index != self._run:
            self._end_run()
            self._run = index
        self._count += 1
        pending = self._pending.get(index)
        if pending is None:
            pending = self._pending[index] = bytearray()
        pending += line
        self._bytes += len(line)
        if len(pending) >= PIECE:
            self._hand_over(index)
        elif self._bytes >= MOST_PENDING:
            for other in list(self._pending):
                self._hand_over(other)

    def _hand_over(self, index: int) -> None:
        data = self._pending[index]
        if data:
            self._sink.append(self.name(index), index, data)
        self._bytes -= len(data)
        self._pending[index] = bytearray()

    def _end_run(self) -> None:
        if self._count:
            self._order.write(b"%d %d\n" % (self._run, self._count))
        self._count = 0

    def finish(self, index: int) -> None:
        self._hand_over(index)
        del self._pending[index]
        self._done.append(self.name(index))
        self._sink.finish(self.name(index), index)
        if index == self._run:
            self._end_run()
            self._run = -1

    def commit(self, check: Callable[[], None]) -> None:
        for index in list(self._pending):
            check()
            self.finish(index)
        self._end_run()
        check()
        self._order.commit(more=True)  # the manifest follows, in the same folder
        self._sink.discard()

    def discard(self) -> None:
        self._sink.discard()
        self._order.discard()
        for name in (*self._done, *filter(None, [self.order_file])):
            try:
                self._workspace.remove(name)
            except StorageTrouble:
                return  # what ended the step matters more; files that are left do no harm: their names have the token


class _Drafts:
    """Local files: a few are open, the others wait closed."""

    def __init__(self, workspace: Folder) -> None:
        self._workspace = workspace
        self._drafts: dict[int, Draft] = {}
        self._open: OrderedDict[int, Draft] = OrderedDict()

    def append(self, name: str, index: int, data: bytearray) -> None:
        if index in self._open:
            self._open.move_to_end(index)
        else:
            if len(self._open) >= self._workspace.max_open:
                self._open.popitem(last=False)[1].pause()
            if index not in self._drafts:
                self._drafts[index] = self._workspace.draft(name)
            self._open[index] = self._drafts[index]
        self._open[index].write(bytes(data))

    def finish(self, name: str, index: int) -> None:
        self._open.pop(index, None)
        self._drafts.pop(index).commit()

    def discard(self) -> None:
        for draft in self._drafts.values():
            draft.discard()


class _Spilled:
    """Files of other storages: gathered locally, written in one go."""

    def __init__(self, workspace: Folder) -> None:
        self._workspace = workspace
        self._spill = Spill()

    def append(self, name: str, index: int, data: bytearray) -> None:
        self._spill.append(index, data)

    def finish(self, name: str, index: int) -> None:
        draft = self._workspace.draft(name)
        try:
            for piece in self._spill.take(index):
                draft.write(piece)
        except BaseException:
            draft.discard()
            raise
        draft.commit()

    def discard(self) -> None:
        self._spill.close()
