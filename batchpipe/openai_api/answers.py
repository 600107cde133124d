"""The provider's answers, made safe: any field may be absent or of another type, but for the id."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from batchpipe.errors import Unavailable
from batchpipe.jobs import BatchError, Counts


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider said of a batch, made safe: any field may be absent but the id."""

    id: str
    status: str | None = None
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: float | None = None
    expires_at: float | None = None
    counts: Counts = Counts()
    errors: list[BatchError] = []
    metadata: dict[str, str] = {}
    usage: dict[str, int] = {}


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider said of a file in its list: any field may be absent but the id."""

    id: str
    name: str | None = None
    bytes: int | None = None
    created_at: float | None = None


def json_object(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise Unavailable(f"the provider's answer is not JSON: {content[:100]!r}", code="nonsense") from None
    if not isinstance(value, dict):
        raise Unavailable("the provider's answer is not a JSON object", code="nonsense")
    return value


def identified(value: dict[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(value.get("id"), str) or not is_addressable(value["id"]):
        raise Unavailable(f"the provider's {what} has no id that can be used", code="nonsense")
    return value


def is_addressable(name: str) -> bool:
    """Whether an id can stand in the path of a URL and stay what it is."""
    return bool(name.strip(".")) and len(name) <= 512 and "%2e" not in name.lower()


def _file_id(value: Any) -> str | None:
    """A file's id, None where there is none ("" means that, too). Raises Unavailable for one that cannot be used."""
    name = text(value)
    if name is not None and not is_addressable(name):
        raise Unavailable("the provider names a file that cannot be asked for", code="nonsense")
    return name


def parse_batch(value: dict[str, Any]) -> Snapshot:
    """A batch object, whatever shape it came in. Raises Unavailable if it has no id."""
    identified(value, "batch")
    counts = value.get("request_counts")
    metadata = value.get("metadata")
    return Snapshot(
        id=value["id"],
        status=(text(value.get("status")) or "").lower() or None,  # some shout
        input_file_id=text(value.get("input_file_id")),
        output_file_id=_file_id(value.get("output_file_id")),
        error_file_id=_file_id(value.get("error_file_id")),
        created_at=_number(value.get("created_at")),
        expires_at=_number(value.get("expires_at")),
        counts=Counts(**{name: _count(counts.get(name)) for name in ("total", "completed", "failed")})
        if isinstance(counts, dict)
        else Counts(),
        errors=_errors(value.get("errors")),
        metadata={k: v for k, v in metadata.items() if isinstance(v, str)} if isinstance(metadata, dict) else {},
        usage=_usage(value.get("usage")),
    )


def parse_file(value: dict[str, Any]) -> StoredFile:
    """A file object, whatever shape it came in. Raises Unavailable if it has no id."""
    identified(value, "file")
    return StoredFile(
        id=value["id"],
        name=text(value.get("filename")),
        bytes=_count(value.get("bytes")),
        created_at=_number(value.get("created_at")),
    )


def _errors(value: Any) -> list[BatchError]:
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, list):
        return []
    return [
        BatchError(
            code=text(item.get("code")),
            message=text(item.get("message")),
            line=_count(item.get("line")),
            param=text(item.get("param")),
        )
        for item in data[:1_000]
        if isinstance(item, dict)
    ]


def _usage(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(v, int) and not isinstance(v, bool)}


def text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def same(snapshot: Snapshot, batch_id: str) -> Snapshot:
    if snapshot.id != batch_id:
        raise Unavailable(f"asked for batch {batch_id}, the provider answered with {snapshot.id}", code="nonsense")
    return snapshot
