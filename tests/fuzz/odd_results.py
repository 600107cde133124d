"""Files of results that are odd in every way, and what they say of each row."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import strategies as st

from tests.fuzz.provider import Files

_ANY_JSON = [b"null", b"true", b"0", b"-1.5e300", b'"x"', b"[]", b"{}", b'[{"a":[null]}]', '{"ß":"\u2028😀"}'.encode()]
_STATUS = [
    b"200",
    b"200",
    b"200",
    b"400",
    b"429",
    b"500",
    b"0",
    b"null",
    b'"200"',
    b"200.0",
    b"true",
    b"[200]",
    b"-200",
]
_USAGE = [
    *(
        b"null",
        b"[]",
        b"7",
        b'{"total_tokens":3}',
        b'{"prompt_tokens":"3"}',
        b'{"input_tokens":-1,"output_tokens":1.5}',
    ),
    b'{"total_tokens":1' + b"0" * 30 + b"}",
]


@dataclass(frozen=True)
class Oddness:
    """How odd the results of a job are: each is a number for dice, so that a case can be told in one line."""

    seed: int
    odd_rows: float
    missing: float
    doubled: float
    strangers: int
    downloads_damaged: int


oddnesses = st.builds(
    Oddness,
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 3),
    st.integers(0, 3),
)


class Results:
    """Makes the files of each batch, and remembers what is in them."""

    def __init__(self, oddness: Oddness) -> None:
        self.oddness = oddness
        self.dice = random.Random(oddness.seed)
        self.lines: dict[str, list[bytes]] = {}  #: by custom_id, in the order in which they are read
        self.files = 0

    def __call__(self, requests: list[dict[str, Any]]) -> Files:
        dice, odd = self.dice, self.oddness
        lines: list[tuple[str, bytes]] = []
        for request in requests:
            if dice.random() < odd.missing * 0.8:
                continue
            name, times = request["custom_id"], 1 + (dice.random() < odd.doubled)
            lines += [(name, self._line(name)) for _ in range(times)]
        dice.shuffle(lines)
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        for _, made in lines:
            sides[dice.random() < 0.4].append(made)
        for name, made in lines:
            self.lines.setdefault(name, []).append(made)
        for _ in range(odd.strangers):
            side = dice.choice(sides)
            side.insert(dice.randint(0, len(side)), self._stranger())
        self.files += 2
        return Files(
            output=self._whole(sides[0]),
            error=self._whole(sides[1]),
            damaged=[self._damage] * odd.downloads_damaged,
            tells_size=dice.random() < 0.7,
            counts=dice.choice([{"total": len(requests), "completed": 0, "failed": 0}, None, {"completed": "x"}]),
        )

    def _line(self, name: str) -> bytes:
        dice, named = self.dice, b'"custom_id":%s' % orjson.dumps(name)
        if dice.random() >= self.oddness.odd_rows:
            response = b'{"status_code":200,"request_id":null,"body":{"usage":{"total_tokens":1}}}'
            return b'{"id":"batch_req_1",%s,"response":%s,"error":null}' % (named, response)
        status, error = dice.choice(_STATUS), dice.choice([b"null", b"null", *_ANY_JSON, b'{"code":"batch_expired"}'])
        body = dice.choice([*_ANY_JSON, b'{"usage":%s}' % dice.choice(_USAGE)])
        whole = b'{"status_code":%s,"body":%s,"request_id":null}' % (status, body)
        response = dice.choice([whole, whole, whole, whole, b"null", b'"no"', b"[1]"])
        parts = [named, b'"id":"batch_req_%d"' % dice.randint(0, 9)]
        parts += dice.choice([[b'"response":%s' % response], [b'"response":%s' % response], []])
        parts += dice.choice([[b'"error":%s' % error], [b'"error":%s' % error], []])
        dice.shuffle(parts)
        return b"{" + dice.choice([b",", b" , "]).join(parts) + b"}"

    def _stranger(self) -> bytes:
        names = [b'"nobody"', b"null", b"0", b'""', b"[]", '"ß"'.encode()]
        whole = b'{"custom_id":%s,"response":{"status_code":200,"body":{}},"error":null}' % self.dice.choice(names)
        return self.dice.choice([whole, whole, b"{}", b'{"error":"x"}', b"", b"  "])

    def _whole(self, lines: list[bytes]) -> bytes | None:
        if not lines:
            return self.dice.choice([None, None, b"", b"\n"])
        end = self.dice.choice([b"\n", b"\n", b"\r\n"])
        return end.join(lines) + self.dice.choice([b"", end, end + end])

    def _damage(self, data: bytes) -> bytes:
        at = self.dice.randint(0, len(data))
        return self.dice.choice([data[:at] + b'{"custom_id":"', data[:at] + b"\xff\xfe{", b"<html>", b"[1]\n" + data])


def is_ok(line: bytes) -> bool:
    """By the words of the docs: no error, status 200 as a number or a text, and a body that is not nothing."""
    found = orjson.loads(line)
    response = found.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    answered = isinstance(response, dict) and response.get("body") not in (None, "")
    return found.get("error") is None and answered and type(status) is not bool and status in (200, "200")


def expected(lines: list[bytes] | None) -> str:
    if not lines:
        return "missing"
    return "ok" if any(map(is_ok, lines)) else "failed"


PLAIN = Oddness(seed=0, odd_rows=0.0, missing=0.0, doubled=0.0, strangers=0, downloads_damaged=0)
