"""Records <-> Redis hashes. Strings stay strings, numbers are decimal, everything deeper is JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
import orjson

from batchpipe.errors import BatchpipeError
from batchpipe.jobs import JobRecord, Record, ShardRecord

R = TypeVar("R", bound=Record)

#: What the scripts take as "remove this field": Redis hashes know no null.
NIL = "\0nil"

_SCALARS = (str, int, float, bool, type(None))


@cache
def _json_fields(kind: type[Record]) -> frozenset[str]:
    """Names (as stored) of the fields that are held as JSON."""
    hints = get_type_hints(kind)
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind) if not _is_scalar(hints[field.name]))


def _is_scalar(hint: Any) -> bool:
    return all(part in _SCALARS for part in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))


def encode_value(value: Any) -> str:
    """One field of a record, as the hash holds it. Enums are their values."""
    plain = msgspec.to_builtins(value)
    if plain is None:
        return NIL
    if isinstance(plain, bool):
        return "1" if plain else "0"
    if isinstance(plain, str):
        return plain
    if isinstance(plain, int | float):
        return repr(plain)
    return orjson.dumps(plain).decode()


def encode_changes(changes: Mapping[str, Any]) -> list[str]:
    """field, value, field, value ... for a script. ``try_`` is stored as ``try``."""
    flat: list[str] = []
    for name, value in changes.items():
        flat += (name.rstrip("_"), encode_value(value))
    return flat


def encode_record(record: Record) -> list[str]:
    """All fields of a record that are not null, flat."""
    changes = {name: value for name, value in msgspec.to_builtins(record).items() if value is not None}
    return encode_changes(changes)


def decode(kind: type[R], flat: Iterable[str] | Mapping[str, str]) -> R:
    """A record from a hash, given as a mapping or flat. Unknown fields are ignored: newer workers write them.

    Raises BatchpipeError (``record_unreadable``).
    """
    if isinstance(flat, Mapping):
        fields: dict[str, Any] = dict(flat)
    else:
        parts = list(flat)
        fields = dict(zip(parts[::2], parts[1::2], strict=True))
    try:
        for name in _json_fields(kind) & fields.keys():
            fields[name] = orjson.loads(fields[name])
        return msgspec.convert(fields, kind, strict=False)
    except (msgspec.ValidationError, orjson.JSONDecodeError) as error:
        record = fields.get("id") or f"{fields.get('job')}, shard {fields.get('index')}"
        message = f"the record of {record} in Redis cannot be read ({error}): made by hand, or by a newer version?"
        raise BatchpipeError(message, code="record_unreadable") from error


# msgspec learns a type at its first use, and ends the process if a second thread comes upon it half learnt (0.19 to
# 0.22). An import is alone.
decode(JobRecord, {"id": ""})
decode(ShardRecord, {"job": "", "index": "0"})
