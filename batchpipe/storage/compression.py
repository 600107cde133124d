"""Inputs that are compressed: found by their first bytes, unpacked as they are read, and never without a bound."""

from __future__ import annotations

import bz2
import io
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

from batchpipe.errors import InvalidInput

#: Compressed bytes that are read at once, and unpacked bytes that one call may give.
_PACKED, _UNPACKED = 1 << 18, 1 << 20
#: What is small may expand without a limit.
_FREE_EXPANSION = 64 << 20


class _Inflate(Protocol):
    """What zlib's, bz2's and zstd's objects have in common, behind one spelling."""

    eof: bool
    unused_data: bytes

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, size: int) -> bytes: ...


class _Gzip:
    """``zlib`` keeps what it has not looked at in another place than the others do."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    def decompress(self, data: bytes, size: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, size)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _new_zstd() -> _Inflate:
    return cast(_Inflate, _zstd().ZstdDecompressor())


#: How files of each kind begin, what makes a decompressor, and the kind's name.
_KINDS: tuple[tuple[bytes, Callable[[], _Inflate], str], ...] = (
    (b"\x1f\x8b", cast(Callable[[], _Inflate], _Gzip), "gzip"),
    (b"\x28\xb5\x2f\xfd", _new_zstd, "zstd"),
    (b"BZh", cast(Callable[[], _Inflate], bz2.BZ2Decompressor), "bzip2"),
)


def unpacked(stream: io.BufferedReader[Any], url: str, *, most_bytes: int, most_expansion: float) -> BinaryIO:
    """The same stream, or its content if it is gzip, zstd or bzip2. ``most_bytes`` of that, ``most_expansion`` times
    what was read; 0: no limit. What is read later raises InvalidInput (``input_encoding``: damaged or cut;
    ``input_too_large``).
    """
    head = stream.peek(4)[:4]
    for magic, begin, name in _KINDS:
        if head.startswith(magic):
            raw = _Unpacked(stream, url, begin, name, most_bytes, most_expansion)
            return cast(BinaryIO, io.BufferedReader(raw, _UNPACKED))
    return cast(BinaryIO, stream)


class _Unpacked(io.RawIOBase):
    def __init__(
        self,
        packed: io.BufferedReader[Any],
        url: str,
        begin: Callable[[], _Inflate],
        name: str,
        most_bytes: int,
        most_expansion: float,
    ) -> None:
        self._packed, self._url, self._begin, self._name = packed, url, begin, name
        self._most_bytes, self._most_expansion = most_bytes, most_expansion
        self._inflate: _Inflate | None = None
        self._given = self._came = 0
        self._left = b""  #: read, and of the next member

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if (self._inflate is None or self._inflate.eof) and not self._next_member():
                return 0
            assert self._inflate is not None
            data, self._left = self._left, b""
            if not data and self._inflate.needs_input and not (data := self._read()):
                raise self._refuse(f"is cut off: its {self._name} data end in the middle; make the file again")
            try:
                made = self._inflate.decompress(data, min(len(buffer), _UNPACKED))
            except (OSError, ValueError, zlib.error, EOFError) as error:
                raise self._refuse(f"is damaged: its {self._name} data cannot be unpacked ({error})") from None
            except Exception as error:  # zstd has an error of its own, in a package that is imported late
                if type(error).__name__ != "ZstdError":
                    raise
                raise self._refuse(f"is damaged: its {self._name} data cannot be unpacked ({error})") from None
            if made:
                self._check(len(made))
                buffer[: len(made)] = made
                return len(made)

    def _next_member(self) -> bool:
        """Files may be several compressed ones, one after the other; padding of zeros at the end is none."""
        rest = self._inflate.unused_data if self._inflate is not None else b""
        rest = rest or self._read()
        while rest and not rest.strip(b"\0") and self._inflate is not None:
            rest = self._read()
        if not rest:
            return False
        self._left, self._inflate = rest, self._begin()
        return True

    def _read(self) -> bytes:
        data = self._packed.read1(_PACKED)
        self._given += len(data)
        return data

    def _check(self, count: int) -> None:
        self._came += count
        if self._most_bytes and self._came > self._most_bytes:
            message = f"{self._url}: is larger than {self._most_bytes:,} bytes when unpacked; see MAX_INPUT_BYTES"
            raise InvalidInput(message, code="input_too_large")
        if self._most_expansion and self._came > max(self._most_expansion * self._given, _FREE_EXPANSION):
            message = (
                f"{self._url}: becomes more than {self._most_expansion:g} times larger when unpacked; see MAX_EXPANSION"
            )
            raise InvalidInput(message, code="input_too_large")

    def _refuse(self, message: str) -> InvalidInput:
        return InvalidInput(f"{self._url}: {message}", code="input_encoding")

    def close(self) -> None:
        if not self.closed:
            self._packed.close()
        super().close()


def open_zstd_writer(file: BinaryIO) -> Any:
    """Compresses what is written to it into ``file``, which stays open when it is closed."""
    return _zstd().ZstdFile(file, "w", level=3)


def open_zstd_reader(file: BinaryIO) -> BinaryIO:
    """The content of a file that ``open_zstd_writer`` wrote."""
    return cast(BinaryIO, io.BufferedReader(_zstd().ZstdFile(file, "r"), _UNPACKED))
