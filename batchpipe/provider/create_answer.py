"""The answer to the paid call: the batch that it made, the ids that it names, or nothing.

A caller that gets the id of a batch must not call again before that id is settled. So ids are searched everywhere in
an answer: in a broken body, in the words of an error, in the address of a redirect.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

from batchpipe.errors import Unavailable
from batchpipe.model.provider import Batch
from batchpipe.provider.parse import is_addressable, parse_batch, text

#: The answer to a create call is small; bytes beyond this are not read.
_MOST_BYTES = 4_000_000
#: How many ids of one answer are kept.
MOST_NAMED = 4

_ID = re.compile(rb'"id"\s*:\s*"([^"\\\x00-\x20]{1,512})"')
_BATCH_ID = re.compile(rb'"batch_?id"\s*:\s*"([^"\\\x00-\x20]{1,512})"', re.IGNORECASE)
#: An id within a text: it needs a digit, because `batch_expired` is a code. Ours begin with `batchpipe`.
_IN_WORDS = re.compile(rb"\bbatch[_-](?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{1,500}")
_LOCATION = re.compile(r"/batches/([^/]+)(?:/|$)")


@dataclass(frozen=True)
class RawAnswer:
    """An answer as far as it came. ``content`` may be broken off (``whole`` is False)."""

    status: int
    content: bytes
    location: str = ""
    whole: bool = True


class PartialBody:
    """Collects a body as it comes, so that half of one is not lost with the connection."""

    def __init__(self, seconds: float) -> None:
        self.parts = bytearray()
        self._ends = time.monotonic() + seconds

    def read(self, blocks: Iterator[bytes]) -> None:
        """Raises Unavailable for an endless body."""
        for block in blocks:
            self.parts += block
            if len(self.parts) > _MOST_BYTES or time.monotonic() > self._ends:
                raise Unavailable("the provider's answer to the create call does not end", code="nonsense")


def batch_made_by(answer: RawAnswer, key: str | None) -> Batch | None:
    """The batch that an answer is certainly about, if there is one.

    It is still certain with another ``input_file_id`` or without metadata: gateways rewrite both. It is not certain
    for another kind of object, one without a status, or one under another key than ours.
    """
    if not answer.whole or not 200 <= answer.status < 300:
        return None
    value = _object(answer.content)
    if value is None or value.get("object") not in (None, "batch") or text(value.get("status")) is None:
        return None
    try:
        batch = parse_batch(value)
    except Unavailable:
        return None
    return batch if batch.metadata.get("batchpipe_key") in (None, key) else None


def batches_named_in(answer: RawAnswer) -> dict[str, bool]:
    """The ids of batches that an answer names, the most certain first; True if it is about that batch."""
    found: dict[str, bool] = {}
    for name, about in (*_about(answer), *_mentioned(answer)):
        if is_addressable(name) and len(found) < MOST_NAMED:
            found.setdefault(name, about)
    return found


def _about(answer: RawAnswer) -> Iterator[tuple[str, bool]]:
    value = _object(answer.content)
    fine = 200 <= answer.status < 300
    for place in (value, value and value.get("batch"), value and value.get("data")):
        if isinstance(place, dict) and text(place.get("id")) and (fine or _is_batch(place)):
            yield place["id"], True
    if found := _LOCATION.search(_path(answer.location)):
        yield found[1], True
    if value is None and fine and (first := _ID.search(answer.content)):  # broken off
        yield first[1].decode(errors="replace"), True


def _mentioned(answer: RawAnswer) -> Iterator[tuple[str, bool]]:
    for pattern in (_BATCH_ID, _IN_WORDS):
        for match in islice(pattern.finditer(answer.content), MOST_NAMED):
            yield (match[1] if match.re.groups else match[0]).decode(errors="replace"), False


def _path(url: str) -> str:
    try:
        return unquote(urlsplit(url).path)
    except ValueError:  # brackets without an address
        return ""


def _is_batch(value: dict[str, Any]) -> bool:
    return value.get("object") == "batch" or "input_file_id" in value or value["id"].startswith("batch")


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
