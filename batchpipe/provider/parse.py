"""The provider's responses, made safe: any field except the id may be absent or of another type."""

from __future__ import annotations

from itertools import islice
from typing import Any

import orjson

from batchpipe.errors import MOST_CODE, Unavailable, shortened
from batchpipe.model.provider import Batch, StoredFile
from batchpipe.model.records import BatchError, Counts

#: Entries of a batch's errors that are kept, entries with kept texts, and characters of a text.
MOST_ERRORS, MOST_ERROR_TEXTS, MOST_ERROR_TEXT = 10_000, 100, 500
#: Characters of a status, and of an id of a file or batch; pairs of metadata (the provider accepts 16), names of usage.
MOST_STATUS, MOST_ID, MOST_PAIRS = 64, 512, 64
#: The names of the time at which a batch has ended.
FINISHED = ("completed_at", "expired_at", "failed_at", "cancelled_at")


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
    """Whether an id can be part of a URL's path unchanged."""
    return bool(name.strip(".")) and len(name) <= 512 and "%2e" not in name.lower()


def _file_id(value: Any) -> str | None:
    """A file's id, None if there is none ("" means that, too). Raises Unavailable for one that cannot be used."""
    name = text(value)
    if name is not None and not is_addressable(name):
        raise Unavailable("the provider names a file that cannot be asked for", code="nonsense")
    return name


def parse_batch(value: dict[str, Any]) -> Batch:
    """A batch object from a response of any shape. Raises Unavailable if it has no id."""
    identified(value, "batch")
    counts = value.get("request_counts")
    metadata = value.get("metadata")
    return Batch(
        id=value["id"],
        status=(short(value.get("status"), MOST_STATUS) or "").lower() or None,  # some providers write it in capitals
        input_file_id=short(value.get("input_file_id"), MOST_ID),
        output_file_id=_file_id(value.get("output_file_id")),
        error_file_id=_file_id(value.get("error_file_id")),
        created_at=_number(value.get("created_at")),
        in_progress_at=_number(value.get("in_progress_at")),
        finished_at=next((at for name in FINISHED if (at := _number(value.get(name))) is not None), None),
        expires_at=_number(value.get("expires_at")),
        counts=Counts(**{name: _count(counts.get(name)) for name in ("total", "completed", "failed")})
        if isinstance(counts, dict)
        else Counts(),
        errors=_errors(value.get("errors")),
        metadata=_metadata(metadata),
        usage=_usage(value.get("usage")),
    )


def parse_file(value: dict[str, Any]) -> StoredFile:
    """A file object from a response of any shape. Raises Unavailable if it has no id."""
    identified(value, "file")
    return StoredFile(
        id=value["id"],
        name=short(value.get("filename"), MOST_ID),
        bytes=_count(value.get("bytes")),
        created_at=_number(value.get("created_at")),
    )


def _errors(value: Any) -> list[BatchError]:
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, list):
        return []
    items = [item for item in data[:MOST_ERRORS] if isinstance(item, dict)]
    return [_error(item, whole=at < MOST_ERROR_TEXTS) for at, item in enumerate(items)]


def _error(item: dict[str, Any], *, whole: bool) -> BatchError:
    """An entry of a batch's errors. Its row is always kept, its texts only for some entries."""
    line = _count(item.get("line"))
    if not whole:
        return BatchError(line=line)
    return BatchError(
        code=short(item.get("code"), MOST_CODE),
        message=short(item.get("message"), MOST_ERROR_TEXT),
        line=line,
        param=short(item.get("param"), MOST_CODE),
    )


def short(value: Any, most: int) -> str | None:
    """A text of at most so many characters; None for other values."""
    return shortened(value, most) if isinstance(value, str) and value else None


def _metadata(value: Any) -> dict[str, str]:
    """Our pairs may be the first or the last: all are examined, and so many kept."""
    if not isinstance(value, dict):
        return {}
    pairs = [(k, v) for k, v in value.items() if isinstance(v, str) and len(k) <= MOST_ID and len(v) <= MOST_ID]
    ours = [pair for pair in pairs if pair[0].startswith("batchpipe_")]
    return dict([*ours, *pairs][:MOST_PAIRS])


def _usage(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    some = islice(value.items(), MOST_PAIRS)
    return {k: v for k, v in some if isinstance(v, int) and not isinstance(v, bool) and len(k) <= MOST_STATUS}


def text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def same(batch: Batch, batch_id: str) -> Batch:
    if batch.id != batch_id:
        raise Unavailable(f"asked for batch {batch_id}, the provider answered with {batch.id}", code="nonsense")
    return batch
