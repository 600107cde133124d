"""What a user submits, checked before anything is recorded; and requests of any type as JSON lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import orjson

from batchpipe.errors import InvalidInput
from batchpipe.jobs import JobRecord

#: The provider takes 16 pairs; three are ours.
MAX_METADATA = 13
_RESERVED = frozenset({"endpoint", "completion_window", "input_file_id", "metadata"})


def check_options(job: JobRecord) -> None:
    """Raises InvalidInput that names the option."""
    if not job.endpoint.startswith("/"):
        raise InvalidInput(f"{job.endpoint!r} is not a path such as /v1/chat/completions", field="endpoint")
    if not job.completion_window:
        raise InvalidInput("must not be empty", field="completion_window")
    if not job.account:
        raise InvalidInput("must not be empty", field="account")
    for name in ("max_rows", "max_bytes", "attempts"):
        if getattr(job, name) < 1:
            raise InvalidInput("must be at least 1", field=name)
    _check_metadata(job.metadata)
    if taken := sorted(_RESERVED & job.extra.keys()):
        raise InvalidInput(f"{taken[0]} has an option of its own", field="extra")
    for name in ("extra", "tags"):
        try:
            orjson.dumps(getattr(job, name))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"is not JSON: {error}", field=name) from None


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if len(metadata) > MAX_METADATA:
        raise InvalidInput(f"has {len(metadata)} pairs; at most {MAX_METADATA} (three more are ours)", field="metadata")
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidInput(f"{name!r}: keys and values must be strings", field="metadata")
        if name.startswith("batchpipe_"):
            raise InvalidInput(f"{name!r}: names that begin with batchpipe_ are ours", field="metadata")
        if len(name) > 64 or len(value) > 512:
            raise InvalidInput(f"{name[:64]!r}: at most 64 characters for a key, 512 for a value", field="metadata")


def dump_rows(rows: Iterable[Any]) -> Iterator[bytes]:
    """Requests as JSON lines with their newline. Bytes are lines already. Raises InvalidInput with the row's number."""
    try:
        iterator = iter(rows)
    except TypeError:
        raise InvalidInput(f"is a {type(rows).__name__}: give a path, a URL or an iterable", field="input") from None
    for number, row in enumerate(iterator, start=1):
        line = row if isinstance(row, bytes) else _dump(row, number)
        yield line if line.endswith(b"\n") else line + b"\n"


def _dump(row: Any, number: int) -> bytes:
    try:
        plain = _as_dict(row)
        if plain is None:
            raise InvalidInput(f"a {type(row).__name__} is no request: give dicts or typed objects", line=number)
        line = orjson.dumps(plain)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"cannot be written as JSON: {error}", line=number) from None
    if b":null" in line and _has_nan(plain):  # orjson writes NaN as null, silently
        raise InvalidInput("NaN and Infinity are no JSON", line=number)
    return line


def _as_dict(row: Any) -> Mapping[str, Any] | None:
    if isinstance(row, Mapping):
        return dict(row)
    if hasattr(row, "model_dump"):
        dumped: dict[str, Any] = row.model_dump(mode="json", exclude_none=True)
        return dumped
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return dataclasses.asdict(row)
    if isinstance(row, msgspec.Struct):
        built: dict[str, Any] = msgspec.to_builtins(row)
        return built
    return None


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    if isinstance(value, Mapping):
        return any(_has_nan(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_has_nan(item) for item in value)
