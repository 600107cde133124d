"""Reads the number in a provider's refusal: how much may be in its queue at once. Pure.

Words never decide about money or rows. A number that is read here only lowers a limit of our own, which is forgotten
again.
"""

from __future__ import annotations

import re

#: Characters of a message that are read, and the largest number that is taken for a limit.
_MOST_READ, _MOST = 2_000, 10**13
#: A number with or without separators of thousands, of which providers and locales have several.
_NUMBER = r"(?P<number>\d{1,3}(?:[,.'_ \u00a0\u2009\u202f\u2019]\d{3})+(?![\d])|\d{1,15}(?:\.\d{1,3})?)"
_SIZE = r"(?:\s?(?P<size>[kmb]|thousand|million|billion)\b)?"
_SIZES = {"k": 10**3, "thousand": 10**3, "m": 10**6, "million": 10**6, "b": 10**9, "billion": 10**9}
#: "Limit: 2,000,000 enqueued tokens", "limit of 90k", "limit is 5 million", "(limit=1_000_000)".
_LIMIT = re.compile(
    rf"\blimit(?:ed)?\b\s*(?:(?::|=|of|is|to|was)\s*)?[`'\"(]?{_NUMBER}{_SIZE}(?P<after>\s+\w+)?", re.IGNORECASE
)
#: "at most 2,000,000 enqueued tokens", "2,000,000 enqueued tokens are allowed".
_TOKENS = re.compile(rf"(?<![\w.]){_NUMBER}{_SIZE}\s+(?:enqueued|queued)\s+(?:\w+\s+)?tokens\b", re.IGNORECASE)
#: What a number after "limit" may count that is no token.
_OTHERS = re.compile(r"\s+(?:batch|request|row|job|file|task|hour|minute|second|day|h|s|min)", re.IGNORECASE)
_MOST_IN_A_MESSAGE = 20
#: A smaller number without its unit is hardly one of tokens.
_LEAST_WITHOUT_UNIT = 1_000


def said_token_limit(message: str | None) -> int | None:
    """The tokens of a model that may be enqueued at once, as a refusal says it; None if it says no such number."""
    text = (message or "")[:_MOST_READ]
    for _, found in zip(range(_MOST_IN_A_MESSAGE), _LIMIT.finditer(text), strict=False):
        after = found["after"] or ""
        if _OTHERS.match(after) or (limit := _value(found)) is None:
            continue
        if limit >= _LEAST_WITHOUT_UNIT or after.strip().lower() in ("enqueued", "queued", "tokens", "input", "prompt"):
            return limit
    found_tokens = _TOKENS.search(text)
    return _value(found_tokens) if found_tokens is not None else None


def _value(found: re.Match[str]) -> int | None:
    number, size = found["number"], (found["size"] or "").lower()
    grouped = re.fullmatch(r"\d{1,3}(?:\D\d{3})+", number)
    try:
        value = float(re.sub(r"\D", "", number)) if grouped and not (size and number.count(".") == 1) else float(number)
    except ValueError:
        return None
    limit = int(value * _SIZES.get(size, 1))
    return limit if 0 < limit <= _MOST else None
