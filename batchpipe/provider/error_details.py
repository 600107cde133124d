"""The code and the message of a provider's refusal, whatever their shape.

Codes decide; words are only shown. Words may quote a row, which a tenant wrote, so they never decide about an account.
"""

from __future__ import annotations

from html import unescape
from typing import Any

import msgspec
import orjson

#: Characters that are shown: of the provider's own message, and of a text or page of unknown shape.
MOST_OF_A_MESSAGE, MOST_OF_A_TEXT = 500, 300
#: Bytes of an answer that are examined.
_MOST_READ = 1_000_000
#: Levels of an answer that are searched, and entries of each of its lists.
_DEEPEST, _WIDEST = 6, 10
#: Fields that hold text for a person, the best first.
_WORDS = (
    *("message", "detail", "error", "errors", "msg", "error_message", "error_description", "description"),
    *("title", "reason", "fault", "faultstring", "status_message"),
)
#: Elements of a page with content that is not text.
_NO_TEXT = ("script", "style", "head")


class ErrorDetails(msgspec.Struct, frozen=True):
    """``codes``: the error's own fields ``code`` and ``type``, in that order; ``message`` may be empty."""

    message: str = ""
    codes: tuple[str, ...] = ()
    code: str | None = None
    param: str | None = None


def error_details(content: bytes) -> ErrorDetails:
    """Code and message from the body of an answer. Raises nothing."""
    content = content[:_MOST_READ]
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return ErrorDetails(_storable(_plain_text(content.decode(errors="replace")), MOST_OF_A_TEXT))
    error = document.get("error", document) if isinstance(document, dict) else document
    levels = [level for level in (error, document) if isinstance(level, dict)]
    words = _words(document)
    if not words and document:
        words = content[:MOST_OF_A_TEXT].decode(errors="replace")  # an unknown shape
    return ErrorDetails(
        message=_storable(words, MOST_OF_A_MESSAGE),
        codes=tuple(code for name in ("code", "type") if (code := _field(levels, name)) is not None),
        code=_field(levels, "code"),
        param=_field(levels, "param"),
    )


def _field(levels: list[dict[str, Any]], name: str) -> str | None:
    for level in levels:
        value = level.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value:
            return _storable(value, 100)
    return None


def _words(value: Any, depth: int = 0) -> str:
    """The text for a person in an answer; texts of a list are joined."""
    if isinstance(value, str):
        return _plain_text(value) if value.lstrip()[:1] == "<" else value.strip()
    if depth >= _DEEPEST:
        return ""
    if isinstance(value, list):
        found = (_words(item, depth + 1) for item in value[:_WIDEST])
        return "; ".join(words for words in found if words)
    if not isinstance(value, dict):
        return ""
    for name in _WORDS:
        if words := _words(value.get(name), depth + 1):
            return f"{where}: {words}" if (where := _where(value.get("loc"))) else words
    return ""


def _where(loc: Any) -> str:
    """The place of a field as pydantic gives it: ``["body", "endpoint"]``."""
    if not isinstance(loc, list):
        return ""
    return ".".join(str(part)[:100] for part in loc[:_DEEPEST] if isinstance(part, str | int))


def _plain_text(text: str) -> str:
    """A text on one line, without HTML tags. In one pass, because a page may contain anything."""
    text = text[:_MOST_READ]
    first, *rest = text.split("<")
    parts, skipped = [first], ""
    for piece in rest:
        if not (piece[:1].isalpha() or piece[:1] in ("/", "!", "?")):  # not a tag: "a < b"
            parts.append("" if skipped else f"<{piece}")
            continue
        tag, _, words = piece.partition(">")
        name = tag.lower()
        if skipped and name.startswith((f"/{skipped}", "title")):
            skipped = ""
        elif not skipped:
            skipped = next((one for one in _NO_TEXT if name.startswith(one) and not name.startswith("header")), "")
        if not skipped:
            parts.append(words)
    shown = " ".join(" ".join(parts).split())[: 2 * MOST_OF_A_TEXT]
    return unescape(shown)[:MOST_OF_A_TEXT]


def _storable(text: str, length: int) -> str:
    """A text that Redis and JSON can hold: the bytes of a page may have no valid encoding."""
    return text[:length].encode(errors="replace").decode()
