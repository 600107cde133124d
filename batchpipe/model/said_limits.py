"""Reads the numbers in a refusal: how much may be in a provider's queue at once, how often it may be called. Pure.

Words never decide about money or rows. A number that is read here only lowers a limit of our own, which is forgotten
again.

No header is known that speaks of the batch queue: ``x-ratelimit-limit-tokens`` and its like are of direct calls. So of
headers only those of requests are read, and only of a 429 to the upload or the creation itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

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
_OF_TOKENS = re.compile(r"\s+(?:\w+\s+)?tokens", re.IGNORECASE)
_MOST_IN_A_MESSAGE = 20
#: A smaller number without its unit is hardly one of tokens.
_LEAST_WITHOUT_UNIT = 1_000

#: "at most 50 unfinished batches", "a maximum of 50 batch jobs", "50 active batches are allowed".
_BATCHES = re.compile(rf"(?<![\w.,]){_NUMBER}{_SIZE}\s+(?:[\w-]+\s+){{0,2}}batch(?:es|\s+jobs)\b", re.IGNORECASE)
#: What follows a number that counts within a span of time: "2,000 per hour", "60 requests/min", "3 RPM".
_PER = re.compile(
    r"(?:\s+[\w-]+){0,2}\s*(?:\b(?:per|every|an?|each)\s+|/\s*)(?P<unit>s|sec|second|m|min|minute|h|hour|d|day)s?\b",
    re.IGNORECASE,
)
#: "on requests per min (RPM): Limit 3, Used 3": the unit comes first.
_UNIT = re.compile(r"\bper\s+(?P<unit>s|sec|second|m|min|minute|h|hour|d|day)\b", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
#: "6m0s", "1h2m3.5s", "20ms", or a number of seconds.
_SPAN = re.compile(
    r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?"
)
_LONGEST_SPAN = 7 * 86_400.0

#: The headers of a 429 that are read here.
LIMIT_HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-reset-requests")

#: Behind a number: it is one of bytes or tokens, not of calls.
_OF_SIZES = re.compile(r"\s*(?:[kmgt]?i?b\b|(?:kilo|mega|giga)?bytes?\b|tok)", re.IGNORECASE)


class Rate(msgspec.Struct, frozen=True):
    """So many calls within so many seconds."""

    most: int
    seconds: float


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


def said_batch_limit(message: str | None) -> int | None:
    """The batches that may be unfinished at once, as a refusal says it; None if it says no such number."""
    text = (message or "")[:_MOST_READ]
    for _, found in zip(range(_MOST_IN_A_MESSAGE), _LIMIT.finditer(text), strict=False):
        rest = text[found.end("size") if found["size"] else found.end("number") :]
        of_batches = not (_OTHERS.match(rest) or _OF_TOKENS.match(rest)) or rest.lstrip().lower().startswith("batch")
        if of_batches and not _PER.match(rest) and (limit := _value(found)) is not None:
            return limit
    named = _BATCHES.search(text)
    return _value(named) if named and not _PER.match(text[named.end() :]) else None


def said_rate(message: str | None, headers: Mapping[str, str]) -> Rate | None:
    """How often a call may be made that was answered with 429, by its words or else its headers; None: not said.

    A header names no span. It is the shortest of a minute, an hour and a day within which all is free again. Where that
    is a second, no rate is learned: ``Retry-After`` is enough for those.
    """
    if (said := _rate_in_words((message or "")[:_MOST_READ])) is not None:
        return said
    most, reset = headers.get(LIMIT_HEADERS[0], ""), seconds_of(headers.get(LIMIT_HEADERS[1], ""))
    if not re.fullmatch(r"\d{1,12}", most) or int(most) < 1 or reset is None or reset < 1.0:
        return None
    return next((Rate(int(most), span) for span in (60.0, 3_600.0, 86_400.0) if reset <= span), None)


def _rate_in_words(text: str) -> Rate | None:
    unit = _UNIT.search(text)
    for _, found in zip(range(_MOST_IN_A_MESSAGE), _LIMIT.finditer(text), strict=False):
        rest = text[found.end("size") if found["size"] else found.end("number") :]
        if _OF_SIZES.match(rest):
            continue
        per = _PER.match(rest) or (unit if unit is not None and unit.end() <= found.start() else None)
        if per is not None and (most := _value(found)) is not None:
            return Rate(most, _SECONDS[per["unit"][0].lower()])
    return None


def seconds_of(text: str) -> float | None:
    """A span of time as headers write it: ``6m0s``, ``20ms``, ``59.5``; None for anything else."""
    text = text.strip()
    try:
        seconds = float(text)
    except ValueError:
        found = _SPAN.fullmatch(text)
        if found is None or not any(found.groupdict().values()):
            return None
        parts = {unit: float(number) for unit, number in found.groupdict().items() if number}
        seconds = sum(number * _SECONDS[unit] for unit, number in parts.items() if unit != "ms")
        seconds += parts.get("ms", 0.0) / 1_000
    return seconds if 0.0 <= seconds <= _LONGEST_SPAN else None


def _value(found: re.Match[str]) -> int | None:
    number, size = found["number"], (found["size"] or "").lower()
    grouped = re.fullmatch(r"\d{1,3}(?:\D\d{3})+", number)
    try:
        value = float(re.sub(r"\D", "", number)) if grouped and not (size and number.count(".") == 1) else float(number)
    except ValueError:
        return None
    limit = int(value * _SIZES.get(size, 1))
    return limit if 0 < limit <= _MOST else None
