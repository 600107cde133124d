"""Why rows are not ok, counted by reason: what records hold, what people read. Pure.

A reason is the provider's HTTP status and its error code, never its message: that may quote the row, and a record must
not. As a text it is ``"500 server_error"``, with ``-`` for what there is none of. In a running job the rows that are
worth sending again are counted apart, under ``~`` and the reason: most of them will be ok.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from batchpipe.errors import shortened
from batchpipe.masking import printable, without_secrets

#: Kinds of reasons that a record counts; the rows of any further one count as ``OTHER``.
MOST_KINDS = 20
OTHER = "- other"
#: A row of which nothing came, and nothing says why.
NO_ANSWER = "- no_answer"
#: A row with an answer that is not what was asked for: its code, which may come with status 200.
INVALID_CODE = "answer_invalid"
#: Begins the reason of rows that are worth sending again.
AGAIN = "~"
#: Characters of a message that is shown as a sample.
MOST_SAMPLE = 200

#: Codes of a provider for rows that fail again as they are, where no status tells; also what such a code begins with.
_LASTING = frozenset({"model_not_found", "context_length_exceeded", "content_filter", "batch_refused"})
_LASTING_BEGINS = ("invalid_", "unsupported_", "missing_required", "unknown_parameter", "duplicate_custom_id")
#: Statuses that say so of a request.
_LASTING_STATUSES = frozenset({400, 404, 405, 413, 415, 422})

#: A code that is one: a word. Some gateways put a sentence there, which may hold part of the row.
_CODE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}", re.ASCII)


class Reason(msgspec.Struct, frozen=True):
    """Why one row is not ok."""

    key: str
    message: str | None = None


class _Line(msgspec.Struct):
    response: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Response(msgspec.Struct):
    status_code: Any = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Body(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct):
    code: Any = None
    type: Any = None
    message: Any = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_error = msgspec.json.Decoder(_Error).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_reason(line: bytes) -> Reason:
    """The reason in a line of ``errors.jsonl``: of its ``error``, else of the error within its ``response``."""
    try:
        found = _decode_line(line)
    except _UNREADABLE:
        return Reason(OTHER)
    status, within = _of_response(found.response)
    error = _error(found.error) or _error(within)
    if error is None:
        return Reason(f"{status} -" if status else NO_ANSWER)
    code = _word(error.code) or _word(error.type) or ("-" if status else "other")
    message = error.message if isinstance(error.message, str) else None
    return Reason(f"{status or '-'} {'-' if code == status else code}", message)


def _of_response(raw: msgspec.Raw) -> tuple[str, msgspec.Raw]:
    """The status of a response as a text, "" if it has none or it is 200; and the error within its body."""
    try:
        found = _decode_response(raw)
    except _UNREADABLE:
        return "", _Body().error
    status = str(found.status_code)
    if not (len(status) == 3 and status.isascii() and status.isdigit()) or status == "200":
        status = ""
    try:
        return status, _decode_body(found.body).error
    except _UNREADABLE:
        return status, _Body().error


def _error(raw: msgspec.Raw) -> _Error | None:
    text = bytes(raw)
    if text in (b"null", b"", b"{}"):
        return None
    try:
        return _decode_error(text)
    except _UNREADABLE:  # a text, say
        return _Error()


def _word(code: Any) -> str:
    if isinstance(code, int) and not isinstance(code, bool):
        code = str(code)
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


class Tally:
    """Counts rows by reason; a bounded number of kinds."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.samples: dict[str, str] = {}  #: a message for each, cut and without secrets; never to be recorded

    def add(self, reason: Reason, count: int = 1) -> None:
        key = reason.key
        if key not in self.counts and len(self.counts) >= MOST_KINDS:
            key = AGAIN + OTHER if key.startswith(AGAIN) else OTHER
        self.counts[key] = self.counts.get(key, 0) + count
        if reason.message and key not in self.samples:
            self.samples[key] = sample(reason.message)

    def add_line(self, line: bytes, *, again: bool = False) -> None:
        """Add the row of a line of ``errors.jsonl``. ``again``: it is worth sending again."""
        found = read_reason(line)
        self.add(Reason(AGAIN + found.key) if again else found)


def sample(message: str) -> str:
    """A message of the provider, as a person may see it in a list: one line, without secrets, cut."""
    return shortened(printable(without_secrets(" ".join(message[: 10 * MOST_SAMPLE].split()))), MOST_SAMPLE)


def invalid_in(reasons: Mapping[str, int]) -> int:
    """How many rows have an answer that is not what was asked for."""
    return sum(count for key, count in reasons.items() if key.removeprefix(AGAIN).endswith(f" {INVALID_CODE}"))


def final_ones(reasons: Mapping[str, int]) -> dict[str, int]:
    """Without the rows that are sent again: what stays when a further round begins."""
    return {key: count for key, count in reasons.items() if not key.startswith(AGAIN)}


def add_reasons(total: dict[str, int], reasons: Mapping[str, int]) -> None:
    """Add the reasons of a shard to those of others."""
    for key, count in reasons.items():
        if key not in total and len(total) >= 2 * MOST_KINDS:
            key = AGAIN + OTHER if key.startswith(AGAIN) else OTHER
        total[key] = total.get(key, 0) + count


def lasting(reasons: Mapping[str, int]) -> int:
    """How many rows fail again if they are sent as they are, as far as their reasons tell."""
    return sum(count for key, count in reasons.items() if _lasts(key))


def _lasts(key: str) -> bool:
    status, _, code = key.partition(" ")
    if status.isascii() and status.isdigit():
        return int(status) in _LASTING_STATUSES
    return status == "-" and (code in _LASTING or code.startswith(_LASTING_BEGINS))


def reasons_view(reasons: Mapping[str, int], samples: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """For JSON: ``[{"code", "status", "count", "sample"}]``, the most frequent first; all but the count may be null."""
    together: dict[str, int] = {}
    for key, count in reasons.items():
        plain = key.removeprefix(AGAIN)
        together[plain] = together.get(plain, 0) + count
    found = sorted(together.items(), key=lambda item: (-item[1], item[0]))
    return [_view(key, count, (samples or {}).get(key)) for key, count in found if count > 0]


def _view(key: str, count: int, message: str | None) -> dict[str, Any]:
    status, _, code = key.partition(" ")
    number = int(status) if status.isascii() and status.isdigit() else None
    return {"code": code if code not in ("", "-") else None, "status": number, "count": count, "sample": message}


def name_of_reason(reason: Mapping[str, Any]) -> str:
    """For people: ``500 server_error``."""
    return " ".join(str(part) for part in (reason["status"], reason["code"]) if part is not None)


def reason_words(view: Iterable[Mapping[str, Any]]) -> str:
    """For people: ``14 x content_filter, 2 x 500 server_error``; empty if there are none."""
    return ", ".join(f"{reason['count']:,} x {name_of_reason(reason)}" for reason in view)
