"""Files that a caller passes to us: open ones, uploads of a web framework, files of a Django model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from batchpipe.errors import InvalidInput

#: How much of a file is read at once.
_CHUNK = 1 << 16


def stored_at(source: Any) -> str | None:
    """The local path of a Django ``FieldFile``; None for anything else, or if its storage has none. Raises
    InvalidInput.

    The upload of a running request has no usable path: its temporary file is removed after the request.
    """
    if not _is_field_file(source) or not getattr(source, "_committed", True):
        return None
    if not source:
        raise InvalidInput("no file is stored in this field", field="input", code="input_missing")
    try:
        return str(source.path)
    except NotImplementedError:  # S3 and the like: read through the storage
        return None


def chunks_of(source: Any) -> Iterator[bytes] | None:
    """The bytes of an object that is read like a file, or has chunks like a Django upload; None for anything else."""
    if _is_field_file(source):
        return _chunks_of_storage(source) if getattr(source, "_committed", True) else _chunks_of_upload(source)
    if hasattr(source, "chunks") and not hasattr(source, "__arrow_c_stream__"):
        return _as_bytes(source.chunks())
    if hasattr(source, "read"):  # iterating gives lines for some, chunks for others
        return _as_bytes(iter(lambda: source.read(_CHUNK), source.read(0)))
    return None


def _is_field_file(source: Any) -> bool:
    """A file of a Django model: it lies in a storage, which may be remote."""
    return hasattr(source, "storage") and hasattr(source, "chunks")


def _chunks_of_storage(field: Any) -> Iterator[bytes]:
    """Reads through a handle of our own: the caller may have the file open."""
    try:
        file = field.storage.open(field.name, "rb")
    except FileNotFoundError:
        raise InvalidInput(f"{field.name} is not in its storage", field="input", code="input_missing") from None
    try:
        yield from _as_bytes(file.chunks())
    finally:
        file.close()


def _chunks_of_upload(field: Any) -> Iterator[bytes]:
    """For a model that is not saved yet: restores the position, because saving needs the upload from its beginning."""
    yield from _as_bytes(field.chunks())
    field.seek(0)


def _as_bytes(chunks: Iterable[bytes | str]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk.encode() if isinstance(chunk, str) else bytes(chunk)
