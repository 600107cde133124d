"""What the body of an answered row says: tokens, model, and whether it is an answer at all. Pure.

HTTP 200 does not make an answer: a response may have failed, a gateway may wrap its own error. But a usable answer must
never be called failed, so the rules below name what is known not to be an answer, and anything else is one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from batchpipe.errors import NO_QUOTA

#: No row has more tokens; sums of larger numbers could not be recorded.
_MOST_TOKENS = 10**10
#: A response with one of these is not an answer. ``queued`` and ``in_progress`` may become one, and be paid.
_UNANSWERED = frozenset({"failed", "cancelled", "queued", "in_progress"})
#: Reasons why an answer may end early, as they are counted: a bounded set, because records hold it.
_REASONS = frozenset({"max_output_tokens", "length", "content_filter"})
_CHAT = frozenset({"chat.completion", "text_completion"})


#: Values of the field ``code`` or ``type`` of an error if the account has no money.
QUOTA_CODES = frozenset({NO_QUOTA, "billing_hard_limit_reached", "billing_not_active"})


class Failure(msgspec.Struct, frozen=True):
    """Why a body that came with HTTP 200 is not an answer."""

    code: str
    message: str


class Body(msgspec.Struct, frozen=True):
    """What batchpipe wants to know of a response body; the last three count for HTTP 200 only.

    ``incomplete``: why an answer ended early. ``items``: the number of embeddings (or images) in ``data``.
    """

    usage: dict[str, int] = {}
    model: str | None = None
    failure: Failure | None = None
    incomplete: str | None = None
    items: int | None = None


class _Usage(msgspec.Struct):
    """Both spellings: of chat and completions, and of responses; null and odd values are dropped later."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    input_tokens_details: Any = None
    output_tokens_details: Any = None


class _Choice(msgspec.Struct):
    finish_reason: Any = None
    error: Any = None


class _Odd(msgspec.Struct):
    """What is read of a body with an unexpected shape."""

    usage: Any = None
    model: Any = None


class _Known(msgspec.Struct):
    usage: _Usage | None = None
    model: Any = None
    object: Any = None
    status: Any = None
    error: Any = None
    incomplete_details: Any = None
    choices: list[_Choice] | msgspec.UnsetType | None = msgspec.UNSET
    data: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    results: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET


_decode_known = msgspec.json.Decoder(_Known).decode
_decode_odd = msgspec.json.Decoder(_Odd).decode


def read_body(raw: bytes | msgspec.Raw) -> Body:
    """Read a raw response body; never raises."""
    try:
        found = _decode_known(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_odd(bytes(raw))
    usage = found.usage
    return Body(
        _tokens(usage) if usage is not None else {},
        found.model if type(found.model) is str else None,
        _failure(found),
        _incomplete(found),
        len(found.data) if type(found.data) is list else None,
    )


def _read_odd(raw: bytes) -> Body:
    if raw.strip() in (b"null", b'""', b""):
        return Body(failure=Failure("no_answer", "HTTP 200 without a body"))
    try:
        found = _decode_odd(raw)
        usage = msgspec.convert(found.usage, _Usage) if isinstance(found.usage, dict) else None
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return Body()
    return Body(_tokens(usage) if usage is not None else {}, found.model if type(found.model) is str else None)


def _failure(body: _Known) -> Failure | None:
    if body.object == "response" or body.object == "video":
        status = body.status if isinstance(body.status, str) else ""
        if status == "failed" or (body.object == "response" and status in _UNANSWERED):
            return _failure_of(body.error, f"HTTP 200, and the status of the {body.object} is {status}", status)
        return None
    choices = body.choices
    if choices:
        for choice in choices:
            if choice.finish_reason != "error":
                return None
        return _failure_of(
            choices[0].error or body.error, "HTTP 200, and it ended with finish_reason error", "no_answer"
        )
    if body.data or body.results:
        return None
    if _is_error(body.error):
        return _failure_of(body.error, "HTTP 200, and its body is an error", "no_answer")
    empty = _empty_field(body)
    return Failure("no_answer", f"HTTP 200 without an answer: {empty} is empty or missing") if empty else None


def _empty_field(body: _Known) -> str | None:
    """The name of the field that should hold the answer but is empty or missing; None if there is an answer."""
    if body.choices == [] or (isinstance(body.object, str) and body.object in _CHAT):
        return "choices"
    if body.data == [] or (body.object == "list" and not body.data):
        return "data"
    return "results" if body.results == [] else None


def _is_error(error: Any) -> bool:
    if isinstance(error, dict):
        return any(error.get(name) not in (None, "") for name in ("code", "message", "type"))
    return isinstance(error, str) and error != ""


def _failure_of(error: Any, reason: str, otherwise: str) -> Failure:
    """The failure with the provider's code and message, if there are any."""
    code: Any = None
    message: Any = error
    if isinstance(error, dict):
        code, message = error.get("code") or error.get("type"), error.get("message")
    said = f": {message}" if isinstance(message, str) and message else ""
    known = isinstance(code, str | int) and not isinstance(code, bool)
    return Failure(str(code)[:100] if known else otherwise, (reason + said)[:2000])


def _incomplete(body: _Known) -> str | None:
    if body.choices:
        for choice in body.choices:
            if choice.finish_reason == "length" or choice.finish_reason == "content_filter":
                return str(choice.finish_reason)
    elif body.status == "incomplete" and body.object == "response":
        details = body.incomplete_details
        reason = details.get("reason") if isinstance(details, dict) else None
        return reason if isinstance(reason, str) and reason in _REASONS else "other"
    return None


def tokens_of(usage: Any) -> dict[str, int]:
    """The tokens of a decoded ``usage``; never raises."""
    try:
        return _tokens(msgspec.convert(usage, _Usage)) if isinstance(usage, dict) else {}
    except msgspec.ValidationError:
        return {}


def _tokens(usage: _Usage) -> dict[str, int]:
    """In the newer spelling, without zeros and missing values."""
    given, made = usage.input_tokens, usage.output_tokens
    found = {
        "input_tokens": usage.prompt_tokens if given is None else given,
        "output_tokens": usage.completion_tokens if made is None else made,
        "total_tokens": usage.total_tokens,
    }
    given_details = usage.input_tokens_details or usage.prompt_tokens_details
    if isinstance(given_details, dict):
        found["cached_tokens"] = given_details.get("cached_tokens")
        found["cache_write_tokens"] = given_details.get("cache_write_tokens")
        found["input_image_tokens"] = given_details.get("image_tokens")
    made_details = usage.output_tokens_details or usage.completion_tokens_details
    if isinstance(made_details, dict):
        found["reasoning_tokens"] = made_details.get("reasoning_tokens")
        found["output_image_tokens"] = made_details.get("image_tokens")
    return {name: count for name, count in found.items() if type(count) is int and 0 < count < _MOST_TOKENS}
