"""The outcome of a row in a round, as one byte before its line in a collected file; and whether to send it again.

``+`` ok. Capital letters are final: ``F`` failed, ``M`` missing. Small ones are worth sending again while the job's
attempts last: ``f`` failed, ``m`` missing, ``r`` never run, because its batch was refused for other rows (once).
``I`` and ``i``: an answer came, and is not what was asked for; such a row is failed, and is asked again, not only sent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from batchpipe.model.answers import Answer, OutcomeState
from batchpipe.model.bodies import QUOTA_CODES

OK = b"+"
FAILED, FAILED_FOR_NOW = b"F", b"f"
MISSING, MISSING_FOR_NOW = b"M", b"m"
REFUSED_WITH_OTHERS = b"r"
INVALID, INVALID_FOR_NOW = b"I", b"i"
#: Marks of rows with an answer that is not what was asked for.
INVALIDS = frozenset({INVALID, INVALID_FOR_NOW})

#: Marks of rows that are worth sending again.
FOR_NOW = frozenset({FAILED_FOR_NOW, MISSING_FOR_NOW, REFUSED_WITH_OTHERS, INVALID_FOR_NOW})

OUTCOMES: dict[bytes, OutcomeState] = {
    OK: OutcomeState.OK,
    FAILED: OutcomeState.FAILED,
    FAILED_FOR_NOW: OutcomeState.FAILED,
    REFUSED_WITH_OTHERS: OutcomeState.FAILED,
    INVALID: OutcomeState.FAILED,
    INVALID_FOR_NOW: OutcomeState.FAILED,
    MISSING: OutcomeState.MISSING,
    MISSING_FOR_NOW: OutcomeState.MISSING,
}

#: The provider's codes for a row that it did not run, or not to its end.
_PASSING_CODES = frozenset({"batch_expired", "batch_cancelled", "request_timeout"})
#: Those of rows that were not run at all; providers count them neither as completed nor as failed.
_NOT_RUN_CODES = frozenset({"batch_expired", "batch_cancelled"})
#: Codes of a failure that came with HTTP 200 and that passes; a number is taken for an HTTP status.
_PASSING_FAILURES = _PASSING_CODES | {"server_error", "rate_limit_exceeded"} | QUOTA_CODES
_PASSING_STATUSES = frozenset({0, 408, 409, 429})


class _Coded(msgspec.Struct):
    code: Any = None
    type: Any = None


_decode_code = msgspec.json.Decoder(_Coded).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def mark_of(answer: Answer) -> bytes:
    """The mark of a row that the provider answered with this line."""
    if answer.ok:
        return OK
    return FAILED_FOR_NOW if _passes(answer) else FAILED


def was_not_run(answer: Answer) -> bool:
    """Whether a line says that its row was not run: then the provider does not count it."""
    return answer.response is None and (answer.error is None or _code(answer.error) in _NOT_RUN_CODES)


def names_quota(answer: Answer) -> bool:
    """Whether a row was refused because the account has used up its quota: every further row would be refused with it.

    Decided by the error's own fields ``code`` and ``type``, not by its words, because an error may quote the row.
    """
    if answer.failure is not None:
        return answer.failure.code in QUOTA_CODES
    if answer.ok:
        return False
    errors = [answer.error, _error_within(answer.response)]
    return any(not QUOTA_CODES.isdisjoint(_codes(error)) for error in errors if error)


def _error_within(response: bytes | None) -> bytes | None:
    """``body.error`` of a raw response."""
    part = response
    for name in ("body", "error"):
        try:
            part = bytes(_decode_object(part)[name]) if part else None
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
            return None
    return part


def _passes(answer: Answer) -> bool:
    if answer.failure is not None:
        code = answer.failure.code
        return code in _PASSING_FAILURES or (code.isascii() and code.isdigit() and _passing_status(int(code)))
    if answer.error is None and answer.response is None:
        return True  # nothing says that the row was run
    if answer.error is not None and _code(answer.error) in _PASSING_CODES:
        return True
    status = answer.status_code
    return status is not None and _passing_status(status)


def _passing_status(status: int) -> bool:
    return status in _PASSING_STATUSES or 500 <= status < 600


def _code(error: bytes) -> str | None:
    try:
        code = _decode_code(error).code
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return code if isinstance(code, str) else None


def _codes(error: bytes) -> set[str]:
    try:
        found = _decode_code(error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return set()
    return {code for code in (found.code, found.type) if isinstance(code, str)}
