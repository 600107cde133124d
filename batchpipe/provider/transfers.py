"""Uploads and downloads: with a minimum rate instead of a total time limit; downloads continue where they stopped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, BinaryIO

from batchpipe.errors import Unavailable
from batchpipe.model.provider import Resumable

#: How much of an upload is read at once: little enough for a slow line to send within a minute.
_BLOCK = 1 << 14
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Watched:
    """A binary file that monitors its reads; the SDK streams from it and asks its length."""

    def __init__(self, handle: IO[bytes], watch: Callable[[int], None]) -> None:
        self._handle, self._watch = handle, watch
        self._last = 0

    def read(self, size: int = -1) -> bytes:
        self._watch(self._last)  # a caller that reads more has sent what it had
        data = self._handle.read(_BLOCK if size < 0 else min(size, _BLOCK))
        self._last = len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_BLOCK), b"")


def range_headers(sink: BinaryIO | Resumable) -> dict[str, str]:
    """The headers that request the rest of a file; none if no bytes are there yet."""
    if not isinstance(sink, Resumable) or not sink.have:
        return {}
    tag = sink.etag
    strong = tag if tag and not tag.startswith("W/") else None
    return {"Range": f"bytes={sink.have}-", **({"If-Range": strong} if strong else {})}


def receive(sink: BinaryIO | Resumable, status: int, headers: Mapping[str, str], *, ranged: bool) -> int:
    """Make a sink ready for the body of an answer. Returns how many bytes precede it.

    Raises Unavailable (``range_wrong``) if the answer has another part, or version, than was requested.
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


#: Code of an answer that does not continue the bytes that are there: the file is fetched from its beginning.
WRONG = "range_wrong"


def _ends(found: re.Match[str]) -> bool:
    """Whether a Content-Range reaches the end of its file, as was requested."""
    return found[3] == "*" or int(found[2]) + 1 == int(found[3])
