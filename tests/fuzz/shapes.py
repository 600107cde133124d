"""Strategies of bad answers: JSON of any shape, true objects with something broken, lies of headers, cut messages."""

from __future__ import annotations

import gzip
import os
import zlib
from typing import Any

import orjson
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.fuzz.wire import Answer
from tests.size import scaled

#: Other cases, and more of them: FUZZ_RANDOM=1 TEST_SCALE=20 pytest tests/fuzz (--hypothesis-seed=N repeats a run).
RANDOM = bool(os.environ.get("FUZZ_RANDOM"))


def fuzzed(examples: int, *, shrink: bool = True) -> settings:
    """So many cases, the same ones in every run unless asked otherwise."""
    return settings(
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        max_examples=scaled(examples),
        deadline=None,
        derandomize=not RANDOM,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# -- the true objects ----------------------------------------------------------------------------------------------

FILE: dict[str, Any] = {
    "id": "file-1",
    "object": "file",
    "bytes": 120,
    "created_at": 1_700_000_000,
    "filename": "batchpipe-job_x-0-1.jsonl",
    "purpose": "batch",
    "status": "processed",
    "expires_at": None,
}
BATCH: dict[str, Any] = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": {"object": "list", "data": [{"code": "invalid", "message": "no", "line": 1, "param": None}]},
    "input_file_id": "file-1",
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": "file-2",
    "error_file_id": None,
    "created_at": 1_700_000_000,
    "in_progress_at": None,
    "request_counts": {"total": 3, "completed": 2, "failed": 1},
    "metadata": {"batchpipe_key": "job_x:0:1"},
    "usage": {"input_tokens": 3, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 0}, "total_tokens": 7},
}
LIST: dict[str, Any] = {
    "object": "list",
    "data": [{**BATCH, "id": f"batch_{number}", "created_at": 1_700_000_000 - number} for number in range(3)],
    "first_id": "batch_0",
    "last_id": "batch_2",
    "has_more": False,
}
DELETED: dict[str, Any] = {"id": "file-1", "object": "file", "deleted": True}
ERROR: dict[str, Any] = {"error": {"message": "Nonsense.", "type": "invalid_request_error", "param": None, "code": "x"}}
TRUE_OBJECTS = {"file": FILE, "batch": BATCH, "list": LIST, "deleted": DELETED, "error": ERROR}

# -- values --------------------------------------------------------------------------------------------------------

#: Raw JSON that no encoder writes, or that few decoders take alike. Stands in for ``_Raw`` below.
_RAW = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"-0", b"0.1e-999", b"01", b"1.", b".5", b"0x10"),
    *(b"1" + b"0" * 30, b"9" * 400, b"-" + b"9" * 30, b"18446744073709551615", b"-9223372036854775809"),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b'"\\u0000nil"', b'"\xff\xfe"', b'"\xed\xa0\x80"'),
    *(b"[" * 2000, b"[" * 600 + b"]" * 600, b'{"a":' * 900 + b"1" + b"}" * 900, b'{"id":"x","id":"y"}'),
    *(b"undefined", b"'x'", b"{id:1}", b"[1,]", b"// no\n1", b"true false", b"", b"\xef\xbb\xbf1", b'"unended'),
]
_ODD_TEXT = [
    *(
        "",
        " ",
        ".",
        "..",
        "../files/x",
        "a/b",
        "a?b#c",
        "%2e%2e",
        "\n",
        "\r\nX: y",
        "\x00",
        "\x7f",
        "\u202e",
        "😀",
        "ß" * 9,
    ),
    *("batch_1", "batch_2", "file-1", "file-2", "null", "None", "0", "COMPLETED", "Canceled", "expired", "failed"),
    *("insufficient_quota", "token_limit_exceeded", "Cannot find file", "billing_hard_limit_reached", "expires_after"),
    *("x" * 300, "x" * 70_000),
]
_ODD_NUMBERS = [0, -1, 1, 3, 200, 2**31, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 1e308, -1e308, 0.5, 1e-320, -0.0]

_MARK = "\ue000raw"  # marks a place where raw JSON goes


_leaves = (
    st.none()
    | st.booleans()
    | st.sampled_from(_ODD_NUMBERS)
    | st.sampled_from(_ODD_TEXT)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.integers(0, len(_RAW) - 1).map(lambda number: f"{_MARK}{number}")
)
_names = st.sampled_from(
    ["id", "object", "data", "errors", "error", "code", "message", "status", "has_more", "bytes", "line", "total"]
) | st.text(max_size=4)
any_value: st.SearchStrategy[Any] = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=5),
    max_leaves=8,
)


def encoded(value: Any) -> bytes:
    """JSON of a value with the raw pieces put in."""
    text = orjson.dumps(value)
    if _MARK.encode() in text:
        for number in reversed(range(len(_RAW))):
            text = text.replace(f'"{_MARK}{number}"'.encode(), _RAW[number])
    return text


@st.composite
def broken(draw: st.DrawFn, true: Any) -> Any:
    """A true object in which one to three places are dropped, replaced, renamed, doubled or wrapped."""
    value = _copy(true)
    for _ in range(draw(st.integers(1, 3))):
        spots = list(_spots(value))
        if not spots:
            return value
        holder, key = draw(st.sampled_from(spots))
        what = draw(st.sampled_from(["drop", "replace", "replace", "wrap", "text", "rename", "double"]))
        if what == "drop":
            del holder[key]
        elif what == "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"value": holder[key]}, [[]], {}]))
        elif what == "text":
            holder[key] = str(holder[key])
        elif what == "rename" and isinstance(holder, dict):
            holder[draw(_names)] = holder.pop(key)
        elif what == "double" and isinstance(holder, list):
            holder.append(_copy(holder[key]))
        else:
            holder[key] = draw(any_value)
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _spots(value: Any) -> Any:
    """Every place of a value that can be changed, as (holder, key)."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _spots(inner)


# -- bodies --------------------------------------------------------------------------------------------------------


def _bodies(true: Any) -> st.SearchStrategy[bytes]:
    whole = st.just(encoded(true))
    mutated = broken(true).map(encoded)
    wrong = st.sampled_from(list(TRUE_OBJECTS.values())).flatmap(broken).map(encoded)
    cut = st.tuples(whole | mutated, st.floats(0, 1)).map(lambda drawn: drawn[0][: int(len(drawn[0]) * drawn[1])])
    words = st.sampled_from([b"<html><h1>502</h1>", b"null", b"[]", b"{}", b'""', b"0", b"true", b" \n", b"ok"])
    other = st.tuples(whole, st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "cp037"])).map(
        lambda drawn: drawn[0].decode().encode(drawn[1])
    )
    return st.one_of(
        mutated, mutated, mutated, wrong, any_value.map(encoded), cut, words, st.binary(max_size=60), other
    )


# -- headers -------------------------------------------------------------------------------------------------------

#: 127.0.0.1:1 refuses; nothing outside this machine is ever named.
_LOCATIONS = [
    *(
        b"",
        b"/v1/batches",
        b"/v1/files/file-1",
        b"?x",
        b"#",
        b"http://127.0.0.1:1/v1",
        b"ftp://127.0.0.1/x",
        b"file:///x",
    ),
    *(b"http://[::1", b"http://127.0.0.1:99999/", b"http://127.0.0.1:x/", b"\xff\xfe", b"x y", b"http:", b"mailto:a"),
    *(b"data:,x", b"http://127.0.0.1:1\\@x/", b"/" + b"x" * 66_000),
]
_AFTER = [
    *(
        b"0",
        b"3",
        b"-5",
        b"1e400",
        b"NaN",
        b"nan",
        b"inf",
        b"1e9",
        b"soon",
        b"",
        b"1_0",
        b"0x10",
        b"\xff",
        b"3, 4",
        b"\xb2",
    ),
    *(b"Mon, 01 Jan 2001 00:00:00 GMT", b"Fri, 31 Dec 9999 23:59:59 GMT", b"Fri, 31 Dec 9999 23:59:59 -2359"),
    *(b"Mon, 01 Jan 0001 00:00:00 +1400", b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT", b"1 Jan", b"Mon, 32 Foo 1"),
    *(b"Mon, 01 Jan 2020 00:00:00 +99999999999999", b"Mon, 01 Jan 2020 99:99:99 GMT", b"Mon, 01 Jan 2020 00:00:00"),
]
_TYPES = [
    *(
        b"application/json",
        b"text/html",
        b"",
        b";;;",
        b"application/json; charset=utf-16",
        b"text/html; charset=undefined",
    ),
    *(
        b"text/html; charset=hex",
        b"text/html; charset=idna",
        b"text/plain; charset=rot13",
        b"text/html; charset=punycode",
    ),
    *(b"x; charset=utf-7", b"x; charset=unicode_escape", b"x; charset=\xff", b"x; charset=\x01", b"text/event-stream"),
    *(b"x; charset=base64", b"x; charset=zip", b"application/octet-stream", b'x; charset="', b"multipart/form-data"),
]
_CODINGS = [b"gzip", b"deflate", b"br", b"zstd", b"identity", b"gzip, gzip", b"gzip, br", b"unheard-of", b"", b"\xff"]
_headers = st.lists(
    st.one_of(
        st.tuples(st.just(b"Retry-After"), st.sampled_from(_AFTER)),
        st.tuples(st.just(b"Content-Type"), st.sampled_from(_TYPES)),
        st.tuples(st.just(b"Content-Encoding"), st.sampled_from(_CODINGS)),
        st.tuples(st.just(b"Location"), st.sampled_from(_LOCATIONS)),
        st.sampled_from(
            [
                (b"X-Should-Retry", b"true"),
                (b"Retry-After-Ms", b"1e400"),
                (b"X-Request-Id", b"\xe9\xff"),
                (b"Date", b"never"),
                (b"Connection", b"close"),
                (b"Connection", b"upgrade"),
                (b"Upgrade", b"h2c"),
                (b"Trailer", b"x"),
                (b"Set-Cookie", b"a=b; expires=never"),
                (b"Link", b"<>;;rel="),
                (b"WWW-Authenticate", b"Digest"),
                (b"X-Long", b"x" * 9_000),
                (b"X-Long", b"x" * 200_000),
                (b"Content-Length", b"5"),
                (b"Content-Length", b"x"),
                (b"Transfer-Encoding", b"gzip"),
                (b"bad name", b"x"),
            ]
        ),
    ),
    max_size=3,
).map(tuple)

_STATUSES = (
    st.sampled_from([200] * 8 + [201, 202, 204, 205, 206, 299])
    | st.sampled_from([300, 301, 302, 303, 304, 305, 307, 308, 399])
    | st.sampled_from([400, 401, 402, 403, 404, 404, 405, 408, 409, 409, 410, 413, 418, 422, 425, 429, 429, 451, 499])
    | st.sampled_from([500, 500, 501, 502, 503, 504, 520, 529, 599])
    | st.integers(100, 599)
    | st.sampled_from([0, 99, 600, 999, 1000, 101, 100, 103])
)

_RAW_MESSAGES = [
    *(b"", b"\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n", b"SSH-2.0-x\r\n"),
    *(b"HTTP/1.0 200 OK\r\n\r\n{}", b"<html>", b"\x16\x03\x01\x02", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    *(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
        b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 429 \xff\xfe\r\nContent-Length: 0\r\n\r\n",
    ),
]


def _compressed(drawn: tuple[Answer, Any, bytes, int | None]) -> Answer:
    answer, pack, name, cut = drawn
    body = pack(answer.body)
    headers = (*(pair for pair in answer.headers if pair[0] != b"Content-Encoding"), (b"Content-Encoding", name))
    return Answer(answer.status, headers, body[:cut])


def _tidy(answer: Answer) -> Answer:
    """A header that lies of the length would let the client wait: then the connection ends with the message."""
    claims = (b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"bad name", b"X-Long")
    if answer.is_proper and (answer.status < 200 or any(name in claims for name, _ in answer.headers)):
        return Answer(answer.status, answer.headers, answer.body, raw=answer.message())
    return answer


def answers(true: Any) -> st.SearchStrategy[Answer]:
    """Bad answers to a call that is properly answered with ``true``; a few of them are good."""
    bodies = _bodies(true)
    plain = st.builds(Answer, st.just(200), st.just(()), bodies)
    errors = st.builds(Answer, st.integers(400, 599), st.just(()), broken(ERROR).map(encoded))
    special = st.builds(Answer, _STATUSES, _headers, _special.map(encoded))
    usual = st.builds(Answer, _STATUSES, _headers, bodies)
    cut = st.builds(Answer, _STATUSES, _headers, bodies, cut=st.integers(0, 400), reset=st.booleans())
    lies = st.builds(Answer, _STATUSES, _headers, bodies, length=st.sampled_from([-1, 0, 1, 10**6, 10**30]))
    packed = st.tuples(
        usual | plain,
        st.sampled_from([gzip.compress, zlib.compress, bytes]),
        st.sampled_from(_CODINGS),
        st.none() | st.integers(0, 60),
    ).map(_compressed)
    redirects = st.builds(
        Answer,
        st.sampled_from([300, 301, 302, 303, 304, 307, 308]),
        st.sampled_from(_LOCATIONS).map(lambda location: ((b"Location", location),)),
        bodies,
    )
    raw = st.sampled_from(_RAW_MESSAGES) | st.binary(max_size=80)
    raws = st.builds(Answer, raw=raw, reset=st.booleans())
    return st.one_of(plain, plain, plain, errors, special, usual, usual, usual, cut, lies, packed, raws, redirects).map(
        _tidy
    )


_special = st.builds(
    lambda code, message, kind: {"error": {"code": code, "message": message, "type": kind}},
    st.sampled_from(["insufficient_quota", "token_limit_exceeded", "invalid_api_key", "file_not_found", None, 7, ["x"]])
    | any_value,
    st.sampled_from(
        ["Cannot find file file-1.", "enqueued token limit reached", "No batch found", "expires_after", None]
    )
    | any_value,
    st.sampled_from(["insufficient_quota", "server_error", None]),
)
