"""Many unfinished files within one unnamed local file: its blocks are reused, and end with the process."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import ExitStack

from batchpipe.storage.scratch import Scratch, temporary

#: Bytes of a block: what a short piece wastes at most.
BLOCK = 1 << 16
#: An entry is the number of a block and, in this many bits, how much of it is used.
_BITS = 20


class Spill:
    """Appends to many files by turns; each is then read once and dropped. Every method may raise StorageTrouble."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._file: Scratch | None = None
        self._blocks: dict[int, array[int]] = {}
        self._free = array("Q")
        self._end = 0

    def append(self, key: int, data: bytes | bytearray) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(temporary())
        blocks = self._blocks.setdefault(key, array("Q"))
        for start in range(0, len(data), BLOCK):
            piece = data[start : start + BLOCK]
            block = self._free.pop() if self._free else self._end
            self._end = max(self._end, block + 1)
            self._file.put(block * BLOCK, piece)
            blocks.append(block << _BITS | len(piece))

    def take(self, key: int) -> Iterator[bytes]:
        """The contents of a file, in pieces; blocks become free as they are read."""
        for entry in self._blocks.pop(key, array("Q")):
            assert self._file is not None
            block = entry >> _BITS
            yield self._file.at(block * BLOCK, entry & ((1 << _BITS) - 1))
            self._free.append(block)

    def close(self) -> None:
        self._stack.close()
        self._file = None
