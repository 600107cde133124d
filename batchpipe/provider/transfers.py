"""Uploads and downloads: a least rate is demanded, not a total time; and a download goes on from where it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, BinaryIO, Protocol, runtime_checkable

from batchpipe.errors import Unavailable

#: What is read of an upload at once: a line that is slow takes no minute for it.
_BLOCK = 1 << 14
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@runtime_checkable
class Resumable(Protocol):
    """Where a download goes to that an earlier try may have begun. Each try begins it again, unless it is resumed."""

    @property
    def have(self) -> int:
        """Bytes that earlier tries have brought."""

    @property
    def etag(self) -> str | None:
        """The provider's tag of the version that they are of, if it told one."""

    def resume(self) -> None:
        """What comes now follows what is there."""

    def begin(self, etag: str | None, *, resumable: bool) -> None:
        """What comes now is the whole file, of this version; ``resumable``: its bytes are counted as the file's."""

    def write(self, data: bytes) -> object: ...


class Watched:
    """A binary file whose reads are watched; the SDK streams from it and asks its length."""

    def __init__(self, handle: IO[bytes], watch: Callable[[int], None]) -> None:
        self._handle, self._watch = handle, watch
        self._last = 0

    def read(self, size: int = -1) -> bytes:
        self._watch(self._last)  # whoever asks for more has sent what it had
        data = self._handle.read(_BLOCK if size < 0 else min(size, _BLOCK))
        self._last = len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_BLOCK), b"")


def range_headers(sink: BinaryIO | Resumable) -> dict[str, str]:
    """What asks the provider for the rest of a file; nothing where nothing is there yet."""
    if not isinstance(sink, Resumable) or not sink.have:
        return {}
    tag = sink.etag
    strong = tag if tag and not tag.startswith("W/") else None
    return {"Range": f"bytes={sink.have}-", **({"If-Range": strong} if strong else {})}


def receive(sink: BinaryIO | Resumable, status: int, headers: Mapping[str, str], *, ranged: bool) -> int:
    """Make a sink ready for the body of an answer. Returns how many bytes stand before it.

    Raises Unavailable (``range_wrong``) if the answer is about another part, or version, than was asked for.
    """
    tag, plain = headers.get("etag"), headers.get("content-encoding", "identity") == "identity"
    if status == 206:
        found = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
        have = sink.have if isinstance(sink, Resumable) and ranged else 0
        if found is None or int(found[1]) != have or not plain or not _ends(found):
            raise Unavailable("the provider answered with another part of the file than it was asked for", code=WRONG)
        if isinstance(sink, Resumable) and ranged:
            if tag is not None and sink.etag is not None and tag != sink.etag:
                raise Unavailable("the file at the provider is not what it was", code=WRONG)
            sink.resume()
            return have
    if isinstance(sink, Resumable):
        sink.begin(tag, resumable=plain)
    return 0


#: Code of an answer that does not follow what is there: the file is asked for from its beginning.
WRONG = "range_wrong"


def _ends(found: re.Match[str]) -> bool:
    """Whether a Content-Range goes to the end of its file, as was asked."""
    return found[3] == "*" or int(found[2]) + 1 == int(found[3])
