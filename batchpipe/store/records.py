"""Records <-> Redis hashes. Strings stay strings, numbers are decimal, nested values are JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from functools import cache
from itertools import islice
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_type_hints

import msgspec
import orjson
import redis

from batchpipe.errors import MOST_CODE, MOST_MESSAGE, RecordUnreadable, shortened
from batchpipe.model.records import JobRecord, Problem, Record, ShardRecord, Stage, State

R = TypeVar("R", bound=Record)
T = TypeVar("T")

#: Tells the scripts to remove a field: Redis hashes have no null.
NIL = "\0nil"

_SCALARS = (str, int, float, bool, type(None))


@cache
def _json_fields(kind: type[Record]) -> frozenset[str]:
    """Names (as stored) of the fields that are held as JSON."""
    hints = get_type_hints(kind)
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind) if not _is_scalar(hints[field.name]))


def _is_scalar(hint: Any) -> bool:
    return all(part in _SCALARS for part in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))


def bounded_problem(problem: Problem) -> tuple[str, str]:
    """An error's code and message as records hold them: they may come from a provider or a library."""
    return shortened(problem.code, MOST_CODE), shortened(problem.message, MOST_MESSAGE)


def encode_value(value: Any) -> str:
    """One field of a record, as the hash holds it. Enums are their values."""
    kind = type(value)
    if kind is str:
        return cast(str, value)
    if value is None:
        return NIL
    if kind is bool:
        return "1" if value else "0"
    if kind is int or kind is float:
        return repr(value)
    if not value and (kind is list or kind is dict):  # most of a new record's
        return "[]" if kind is list else "{}"
    if kind is Problem:
        code, message = bounded_problem(value)
        value = Problem(code=code, message=message)
    plain = msgspec.to_builtins(value)
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


#: Fields of a new shard that scripts read and that must be present.
_ALWAYS = frozenset({"v", "job", "index", "stage", "epoch", "round", "rows", "bytes", "try"})


def encode_shard(shard: ShardRecord) -> list[str]:
    """The fields of a shard without defaults, to save memory: there may be 100,000 shards."""
    plain = msgspec.to_builtins(shard)
    kept = {name: value for name, value in plain.items() if name in _ALWAYS or value != _NEW_SHARD.get(name)}
    return encode_changes({name: value for name, value in kept.items() if value is not None})


def draft(shard: ShardRecord) -> str:
    """A shard as a single argument of a script, because Redis limits the number of arguments."""
    return orjson.dumps(draft_fields(shard)).decode()


def draft_fields(shard: ShardRecord) -> list[str]:
    """The same before it is encoded."""
    return [str(shard.index), *encode_shard(shard)]


def chunks(many: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many, the last one of fewer."""
    found = iter(many)
    while chunk := list(islice(found, size)):
        yield chunk


def parse_member(member: str) -> tuple[str, int]:
    """The job id and index of a member of the due set. Raises ValueError."""
    job_id, _, index = member.rpartition("/")
    return job_id, int(index)


def decode(kind: type[R], flat: Iterable[str] | Mapping[str, str]) -> R:
    """A record from a hash, given as a mapping or flat. Unknown fields are ignored: newer workers write them.

    Raises RecordUnreadable.
    """
    if isinstance(flat, Mapping):
        fields: dict[str, Any] = dict(flat)
    else:
        parts = list(flat)
        fields = dict(zip(parts[::2], parts[1::2], strict=True))
    try:
        for name in _json_fields(kind) & fields.keys():
            fields[name] = orjson.loads(fields[name])
        record = msgspec.convert(fields, kind, strict=False)
        _stages(kind)(record.stage)  # a value that this version does not know
    except ValueError as error:  # also of msgspec and orjson
        raise unreadable(fields.get("id") or f"{fields.get('job')}, shard {fields.get('index')}", str(error)) from error
    return record


def decoded(kind: type[R], found: Any, what: str) -> R | None:
    """A record from its hash, None if there is none. Raises RecordUnreadable."""
    if isinstance(found, redis.RedisError):
        raise unreadable(what, str(found))
    return decode(kind, found) if found else None


def unreadable(what: str, why: str) -> RecordUnreadable:
    """The message about a record that this version does not understand."""
    said = f"the record of {shortened(what, 100)} in Redis cannot be read ({shortened(why, 200)})"
    return RecordUnreadable(f"{said}: made by hand, or by a newer version?")


def _stages(kind: type[Record]) -> type[StrEnum]:
    return State if issubclass(kind, JobRecord) else Stage


# msgspec analyses a type at its first use, and crashes the process if a second thread uses it during that (0.19 to
# 0.22). An import runs in one thread.
decode(JobRecord, {"id": ""})
decode(ShardRecord, {"job": "", "index": "0"})

_NEW_SHARD = msgspec.to_builtins(ShardRecord(job="", index=0))
