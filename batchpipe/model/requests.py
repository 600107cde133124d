"""One request line: parsed and checked as by a strict server, so that what passes here is not refused there. Pure."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any, Literal

import msgspec

from batchpipe.errors import InvalidInput, shortened

#: Inputs that one batch of embeddings may hold, over all its rows.
MAX_EMBEDDING_INPUTS = 50_000
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"

#: Endpoints for which the body may leave the model to the provider.
_MODEL_OPTIONAL = ("/v1/moderations", "/v1/images/", "/v1/videos")
#: How similar an address must be to count as a typing error; Azure's are ours without the /v1, and are none.
_SLIP = 0.93
_BOM = b"\xef\xbb\xbf"


class Request(msgspec.Struct, frozen=True):
    """What batchpipe wants to know of one request. ``inputs``: embedding inputs, 1 elsewhere."""

    custom_id: str
    model: str | None
    inputs: int


class _Body(msgspec.Struct):
    model: Any = None
    stream: Any = None


class _Line(msgspec.Struct):
    custom_id: str
    method: Literal["POST"]
    url: str
    body: _Body


class _EmbeddingBody(msgspec.Struct):
    input: str | list[msgspec.Raw]
    model: Any = None
    stream: Any = None


class _EmbeddingLine(msgspec.Struct):
    custom_id: str
    method: Literal["POST"]
    url: str
    body: _EmbeddingBody


class _Named(msgspec.Struct):
    custom_id: str


class _Addressed(msgspec.Struct):
    url: str | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_embedding = msgspec.json.Decoder(_EmbeddingLine).decode
_decode_url = msgspec.json.Decoder(_Addressed).decode
_decode_named = msgspec.json.Decoder(_Named).decode


#: Characters of a model's name.
MAX_MODEL = 200


def url_of(line: bytes) -> str | None:
    """The endpoint that a line names; None where it names none."""
    try:
        return _decode_url(line).url or None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def check_request(line: bytes, number: int, endpoint: str, *, in_words: bool = True) -> Request:
    r"""Check one line of the input, with or without its ``\n``; ``number`` counts from 1.

    Raises InvalidInput, which says the line, the field, what is wrong and what to do; not ``in_words``, only the line.
    """
    try:
        return _checked(line, number, endpoint)
    except InvalidInput:
        raise
    except _NotARequest as error:
        if not in_words:
            raise InvalidInput("is no request", line=number) from None
        raise _explain(line, number, endpoint, str(error)) from None


class _NotARequest(Exception):
    """The reason of the decoder, if that has one."""


def _checked(line: bytes, number: int, endpoint: str) -> Request:
    try:
        if not line.isascii():
            str(line, "utf-8")  # msgspec does not check the values that it skips
        found: _Line | _EmbeddingLine
        found = _decode_embedding(line) if endpoint == EMBEDDINGS else _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _NotARequest(str(error)) from None
    body = found.body
    model = body.model
    if type(model) is not str and not (model is None and endpoint.startswith(_MODEL_OPTIONAL)):
        raise _NotARequest
    if not found.custom_id or found.url != endpoint or model == "" or body.stream is True:
        raise _NotARequest
    if model is not None and len(model) > MAX_MODEL:
        raise _NotARequest
    inputs = _count_inputs(body.input, number) if isinstance(body, _EmbeddingBody) else 1
    return Request(found.custom_id, model, inputs)


def custom_id(line: bytes) -> str:
    """The ``custom_id`` of a request line that has been checked."""
    return _decode_named(line).custom_id


def embedding_inputs(line: bytes) -> int:
    """The number of inputs of a checked line for ``/v1/embeddings``."""
    return _count_inputs(_decode_embedding(line).body.input, 0)


def _count_inputs(value: str | list[msgspec.Raw], number: int) -> int:
    if isinstance(value, str):
        return 1
    if not value:
        raise InvalidInput("is an empty list; give at least one text", line=number, field="body.input")
    first = bytes(value[0])[:1]
    if len(value) > MAX_EMBEDDING_INPUTS and first in (b'"', b"["):
        message = f"has {len(value)} inputs, and one batch takes {MAX_EMBEDDING_INPUTS}; split the row"
        raise InvalidInput(message, line=number, field="body.input")
    return len(value) if first in (b'"', b"[") else 1


def _explain(line: bytes, number: int, endpoint: str, reason: str) -> InvalidInput:
    """Why a line was refused, in words; it may be slow, because it is called once."""
    try:
        row = parse_object(line, number)
        _explain_fields(row, number, endpoint)
    except InvalidInput as error:
        return error
    return InvalidInput(f"cannot be read: {shortened(reason, 300)}", line=number)


def parse_object(line: bytes, number: int) -> dict[str, Any]:
    if number == 1:
        if line.startswith(_BOM):
            raise InvalidInput("starts with a byte order mark; save the file as UTF-8 without BOM", line=number)
        if (looks := _looks_like(line)) is not None:
            raise InvalidInput(looks, line=number, code="input_format")
    if not line.strip():
        raise InvalidInput("is blank; remove it", line=number)
    try:
        text = str(line, "utf-8")
    except UnicodeDecodeError as error:
        message = f"is not valid UTF-8 (byte {error.start + 1}); save the file as UTF-8"
        raise InvalidInput(message, line=number) from None
    try:
        row = json.loads(text, parse_constant=_no_constant)
        json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            at = len(text.rstrip())
            message = f"is truncated: the row ends within its JSON, after {at} characters; is the file cut off here?"
        else:
            message = f"is not JSON: {error.msg} (column {error.colno})"
        raise InvalidInput(message, line=number) from None
    except UnicodeEncodeError:
        message = "has half of a surrogate pair (\\ud800 to \\udfff), which is not Unicode; remove it"
        raise InvalidInput(message, line=number) from None
    except RecursionError:
        raise InvalidInput("is nested too deeply", line=number) from None
    except ValueError as error:
        raise InvalidInput(f"is not JSON: {error}", line=number) from None
    if not isinstance(row, dict):
        message = f"is {_kind(row)}, not an object; give one request per line, as a JSON object"
        raise InvalidInput(message, line=number)
    return row


#: How files begin that are neither requests nor a table, and what to do about it.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xfd7zXZ", "this file is xz: unpack it first (unxz)"),
    (b"PK\x03\x04", "this file is a zip archive or an Excel sheet; unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "this file is an Excel sheet; save it as CSV"),
    (b"SQLite format", "this file is a database; export a table as CSV"),
    (b"%PDF", "this file is a PDF; give JSONL, CSV or Parquet"),
    (b"[", "this file is a JSON array; give JSONL, one object per line, without brackets and commas around them"),
    (b"<", "this file is XML or HTML; give JSONL, CSV or Parquet"),
)
#: The same of tables, which need a prompt.
_TABLES: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "this file is Parquet"),
    (b"ARROW1", "this file is Arrow"),
    (b"\xff\xff\xff\xff", "this file is Arrow"),
    (b"\xff\xfe", "this is a UTF-16 file, a table perhaps"),
    (b"\xfe\xff", "this is a UTF-16 file, a table perhaps"),
)
_GIVE_PROMPT = "give --prompt to make a request of each row; or JSONL, one request per line"


def what_it_looks_like(beginning: bytes) -> str | None:
    """What a file is by its first bytes, if it is neither JSONL nor a table, and what to do about it."""
    for start, says in _BEGINNINGS:
        if beginning.lstrip().startswith(start):
            return says
    if beginning.split(b"\n", 1)[0].strip() == b"{":
        return "this file has a JSON object over several lines; give JSONL, each object on a line of its own"
    return None


def _looks_like(line: bytes) -> str | None:
    """What a file is by its first line, if it is something else than requests, and what to do about it."""
    if (says := what_it_looks_like(line)) is not None:
        return says
    for start, kind in _TABLES:
        if line.startswith(start):
            return f"{kind}: {_GIVE_PROMPT}"
    head = line[:2_000].strip()
    if head[:1] in (b"{", b"") or b"\0" in head:
        return None
    for mark, name in ((b"\t", "TSV"), (b",", "CSV"), (b";", "CSV with semicolons")):
        if mark in head:
            return f"this looks like {name}: {_GIVE_PROMPT}"
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value; use null or a number")


def _other_endpoint(url: Any, endpoint: str) -> str:
    """What to do if a row has another address than the job: most likely a typing error, or rows of another kind."""
    if not isinstance(url, str) or not 0 < len(url) <= 100:
        return ""
    if get_close_matches(url, [endpoint], cutoff=_SLIP):
        return "; one of the two is mistyped"
    return f"; correct the row, or give --endpoint {url}"


def _explain_fields(row: dict[str, Any], number: int, endpoint: str) -> None:
    def refuse(field: str, message: str) -> None:
        raise InvalidInput(message, line=number, field=field)

    name, url, body = row.get("custom_id"), row.get("url"), row.get("body")
    if "custom_id" not in row:
        refuse("custom_id", "is missing; give each row a string of its own")
    if not isinstance(name, str):
        refuse("custom_id", f"is {_kind(name)}; it must be a string")
    if not name:
        refuse("custom_id", "is empty; give each row a string of its own")
    if row.get("method") != "POST":
        refuse("method", f'is {_shown(row, "method")}; it must be "POST"')
    if url != endpoint:
        message = f'is {_shown(row, "url")}, and the job\'s endpoint is "{endpoint}"'
        refuse("url", message + _other_endpoint(url, endpoint))
    if not isinstance(body, dict):
        refuse("body", f"is {_shown(row, 'body')}; it must be an object")
    else:
        _explain_body(body, endpoint, refuse)


def _explain_body(body: dict[str, Any], endpoint: str, refuse: Any) -> None:
    model = body.get("model")
    if model is None and not endpoint.startswith(_MODEL_OPTIONAL):
        refuse("body.model", "is missing; name the model")
    if model is not None and (not isinstance(model, str) or not model):
        refuse("body.model", f"is {_shown(body, 'model')}; it must name a model")
    if isinstance(model, str) and len(model) > MAX_MODEL:
        refuse("body.model", f"has {len(model)} characters; the name of a model has at most {MAX_MODEL}")
    if body.get("stream") is True:
        refuse("body.stream", "is true, and a batch cannot stream; remove it")
    if endpoint == EMBEDDINGS and not isinstance(body.get("input"), str | list):
        refuse("body.input", f"is {_shown(body, 'input')}; it must be a text or a list")


def _shown(row: dict[str, Any], field: str) -> str:
    """A wrong value as shown in a message: short, and without text that may be private."""
    if field not in row:
        return "missing"
    value = row[field]
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else value[:60] + "...", ensure_ascii=False)
    return _kind(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")
