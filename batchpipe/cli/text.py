"""Texts that fit a terminal: their width in columns, cut and padded."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from batchpipe.masking import printable

#: Columns of a line of `list`, and of a line of the table of `status`.
COLUMNS = 100


def width(text: str) -> int:
    """How many columns a text takes: wide characters of East Asia and emoji two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def plain(text: str) -> str:
    """A text as one printable line."""
    return printable(" ".join(text.split()))


def clip(text: str, columns: int, *, end: bool = False) -> str:
    """A text as one line of at most so many columns; what is cut is shown as ``...``. ``end``: the end is kept, which
    of a path says most."""
    text = plain(text)
    if width(text) <= columns:
        return text
    kept = _first(reversed(text) if end else text, max(columns - 3, 0))
    return ("..." + kept[::-1] if end else kept + "...")[:columns]


def _first(chars: Iterable[str], columns: int) -> str:
    kept: list[str] = []
    for char in chars:
        columns -= _columns(char)
        if columns < 0:
            break
        kept.append(char)
    return "".join(kept)


def left(text: str, columns: int, *, end: bool = False) -> str:
    """A cell with its text to the left."""
    text = clip(text, columns, end=end)
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """A cell with its text to the right."""
    text = clip(text, columns)
    return " " * (columns - width(text)) + text


def short_number(value: int | None, columns: int = 9) -> str:
    """``1,234,567``, or ``123M`` where that does not fit; a dash for None."""
    if value is None:
        return "-"
    text, unit = f"{value:,}", ""
    for unit in ("k", "M", "G", "T", "P"):
        if len(text) <= columns:
            break
        value //= 1_000
        text = f"{value:,}{unit}"
    return text
