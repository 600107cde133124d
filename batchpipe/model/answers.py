"""One line of a provider's output or error file: parsed and classified; and the lines of ``errors.jsonl``. Pure.

Answers are read leniently where that costs nothing, because their bodies are up to the provider.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from enum import StrEnum
from typing import Any

import msgspec
import orjson

from batchpipe.model.bodies import Body, Failure, read_body

#: The first one that is not inside a string: there a quote has a backslash.
_ID_IN_LINE = re.compile(rb'(?<!\\)"custom_id"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)*")')


class OutcomeState(StrEnum):
    """The outcome of one row."""

    OK = "ok"  #: no error, status 200, and no body that is known not to be an answer (see ``bodies``)
    FAILED = "failed"  #: a line came, and it is not ok
    MISSING = "missing"  #: no line came


class Answer(msgspec.Struct, frozen=True):
    """What batchpipe wants to know of one line of a provider's output or error file.

    ``response`` and ``error`` are the provider's raw JSON, None where null or absent. ``failure``: why a body that
    came with HTTP 200 is not an answer. ``incomplete``: why an answer that is ok ended early. ``items``: the length of
    its ``data``.
    """

    custom_id: str
    ok: bool
    response: bytes | None
    error: bytes | None
    status_code: int | None
    usage: dict[str, int]
    model: str | None = None
    failure: Failure | None = None
    incomplete: str | None = None
    items: int | None = None


class _AnswerLine(msgspec.Struct):
    custom_id: str
    response: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Response(msgspec.Struct):
    status_code: Any = None
    body: msgspec.Raw = msgspec.Raw(b"null")


_decode_answer = msgspec.json.Decoder(_AnswerLine).decode
_decode_response = msgspec.json.Decoder(_Response).decode


def read_answer(line: bytes) -> Answer:
    """Read one line of a provider's output or error file.

    Raises ValueError if it is not a JSON object with a string ``custom_id``: then the file is damaged.
    """
    try:
        if not line.isascii():
            str(line, "utf-8")
        found = _decode_answer(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        lenient = strict_json(line)
        if lenient is None:
            raise ValueError(f"not a line of a batch's result: {error}") from None
        return read_answer(lenient)
    response, error_ = bytes(found.response), bytes(found.error)
    status, body = _look_into(response)
    no_error = error_ == b"null"
    answered = no_error and status == 200
    ok = answered and body.failure is None
    return Answer(
        found.custom_id,
        ok,
        None if response == b"null" else response,
        None if no_error else error_,
        status,
        body.usage,
        body.model,
        body.failure if answered else None,
        body.incomplete if ok else None,
        body.items if ok else None,
    )


def readable_id(line: bytes) -> str | None:
    """The ``custom_id`` of a line that is not complete JSON, if the line contains it."""
    found = _ID_IN_LINE.search(line)
    try:
        name = json.loads(found[1]) if found else None
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def is_object(line: bytes) -> bool:
    """Whether a line is a complete JSON object of any kind."""
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return strict_json(line) is not None


def strict_json(line: bytes) -> bytes | None:
    """Makes valid JSON of what some Python servers write, with NaN, Infinity or half a surrogate pair: these become
    null and ``?``. None if it is already JSON, or not a complete object.
    """
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        msgspec.json.decode(line)
        return None
    try:
        whole = json.dumps(json.loads(line), ensure_ascii=False).encode(errors="replace")
        value = json.loads(whole)
        return orjson.dumps(value) if isinstance(value, dict) else None
    except (ValueError, TypeError, RecursionError):
        return None


_NO_BODY = Body()


def _look_into(response: bytes) -> tuple[int | None, Body]:
    """Status code and body of a raw ``response``; None and empty bytes if it has none."""
    try:
        found = _decode_response(response)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, _NO_BODY
    status = found.status_code
    if type(status) is not int:
        status = _as_status(status)
    return status, read_body(found.body)


def _as_status(value: Any) -> int | None:
    """Some gateways write it as a text, or as 200.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit() else None


def add_usage(total: dict[str, int], usage: dict[str, int]) -> None:
    """Add the tokens of one row, or of many, to a sum."""
    for name, count in usage.items():
        total[name] = total.get(name, 0) + count


def error_line(
    custom_id: str,
    outcome: OutcomeState,
    attempts: int,
    response: bytes | None = None,
    error: bytes | None = None,
) -> bytes:
    """The line of ``errors.jsonl`` for a row that is not ok, without a newline.

    ``response`` and ``error`` are raw JSON, the provider's own if a line came; None becomes null.
    """
    return b'{"custom_id":%s,"outcome":"%s","attempts":%d,"response":%s,"error":%s}' % (
        msgspec.json.encode(custom_id),
        outcome.value.encode(),
        attempts,
        response or b"null",
        error or b"null",
    )


def failed_line(answer: Answer, attempts: int) -> bytes:
    """The line of ``errors.jsonl`` for a row with an answer that is not ok, without a newline."""
    error = answer.error if answer.failure is None else raw_error(answer.failure.code, answer.failure.message)
    return error_line(answer.custom_id, OutcomeState.FAILED, attempts, answer.response, error)


def raw_error(code: str | None, message: str | None) -> bytes:
    """An ``error`` in the provider's shape, for ``error_line``."""
    return msgspec.json.encode({"code": code, "message": message})
