"""A page of the list of batches, decoded quickly to what we use of it, if each field is what it should be.

Whatever is not is left to ``parse``, which takes any shape; so both ways give the same batches.
"""

from __future__ import annotations

from typing import Any

import msgspec

from batchpipe.model.provider import Batch
from batchpipe.model.records import Counts
from batchpipe.provider.parse import FINISHED, MOST_ID, MOST_PAIRS, MOST_STATUS, is_addressable, parse_batch


class _Counts(msgspec.Struct):
    total: int | None = None
    completed: int | None = None
    failed: int | None = None


class _Item(msgspec.Struct):
    id: str
    status: str = ""
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int | None = None
    in_progress_at: int | None = None
    completed_at: int | None = None
    expired_at: int | None = None
    failed_at: int | None = None
    cancelled_at: int | None = None
    expires_at: int | None = None
    request_counts: _Counts | None = None
    metadata: dict[str, str] | None = None
    errors: Any = None
    usage: Any = None


class _Page(msgspec.Struct):
    data: list[_Item]
    has_more: bool


_DECODER = msgspec.json.Decoder(_Page)
_DECODER.decode(b'{"data":[],"has_more":false}')  # at import, by one thread: see store.records


def fast_page(content: bytes) -> tuple[list[Batch], bool] | None:
    """The batches, and whether there are more; None if anything is not as it should be."""
    try:
        page = _DECODER.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    found = [_batch(item) for item in page.data]
    batches = [batch for batch in found if batch is not None]
    return (batches, page.has_more) if len(batches) == len(found) else None


def _batch(item: _Item) -> Batch | None:
    metadata, counts = item.metadata or {}, item.request_counts or _Counts()
    if len(item.status) > MOST_STATUS or not is_addressable(item.id) or len(metadata) > MOST_PAIRS:
        return None
    if any(len(name) > MOST_ID or len(value) > MOST_ID for name, value in metadata.items()):
        return None
    if min(counts.total or 0, counts.completed or 0, counts.failed or 0) < 0:
        return None
    files = (item.input_file_id, item.output_file_id, item.error_file_id)
    if any(name and not is_addressable(name) for name in files):
        return None
    rest: dict[str, Any] = {}
    if item.errors or item.usage:
        parsed = parse_batch({"id": item.id, "errors": item.errors, "usage": item.usage})
        rest = {"errors": parsed.errors, "usage": parsed.usage}
    return Batch(
        id=item.id,
        status=item.status.lower() or None,
        input_file_id=item.input_file_id or None,
        output_file_id=item.output_file_id or None,
        error_file_id=item.error_file_id or None,
        created_at=_time(item.created_at),
        in_progress_at=_time(item.in_progress_at),
        finished_at=_time(next((at for name in FINISHED if (at := getattr(item, name)) is not None), None)),
        expires_at=_time(item.expires_at),
        counts=Counts(total=counts.total, completed=counts.completed, failed=counts.failed),
        metadata=metadata,
        **rest,
    )


def _time(at: int | None) -> float | None:
    return None if at is None else float(at)
