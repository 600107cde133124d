"""Embeddings: unit vectors in which texts that share words lie near each other."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import sys
from array import array
from typing import Any

from batchpipe.sandbox.errors import ApiError

_WORDS = re.compile(r"\w+")
_MAX_DIMENSIONS = 3072
_MAX_INPUTS = 2048


def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    """The answer of `/v1/embeddings`."""
    size, texts = _dimensions(body), _inputs(body["input"])
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise ApiError(400, f"Invalid value: '{encoding}'.", param="encoding_format", code="invalid_value")
    data = []
    for index, text in enumerate(texts):
        value = vector(text, size)
        data.append(
            {
                "object": "embedding",
                "index": index,
                "embedding": value if encoding == "float" else _base64(value),
            }
        )
    spent = sum((len(text) + 3) // 4 for text in texts)
    usage = {"prompt_tokens": spent, "total_tokens": spent}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def vector(text: str, size: int) -> list[float]:
    """A unit vector: a little noise of the whole text, and a few strong places for each word."""
    seed = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    noise = array("h")
    noise.frombytes(hashlib.shake_128(seed).digest(2 * size))
    values = [float(number) for number in noise]
    # The words together weigh about as much as the noise (32768 / sqrt(3) is its size per place).
    strong = 18918.0 * math.sqrt(size) / 2
    for word in _WORDS.findall(text[:8000].lower()):
        digest = hashlib.blake2b(word.encode(), digest_size=16).digest()
        for place in range(0, 16, 4):
            number = int.from_bytes(digest[place : place + 4], "little")
            values[(number >> 1) % size] += strong if number & 1 else -strong
    norm = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / norm for value in values]


def _base64(values: list[float]) -> str:
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def _dimensions(body: dict[str, Any]) -> int:
    size = body.get("dimensions")
    if size is None:
        return _MAX_DIMENSIONS if "large" in str(body["model"]) else 1536
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _MAX_DIMENSIONS:
        message = f"Invalid 'dimensions': expected an integer from 1 to {_MAX_DIMENSIONS}."
        raise ApiError(400, message, param="dimensions", code="invalid_value")
    return size


def _inputs(value: object) -> list[str]:
    if isinstance(value, list):
        if all(isinstance(part, int) for part in value):
            return [" ".join(map(str, value))]  # one text, given as tokens
        texts = [" ".join(map(str, part)) if isinstance(part, list) else part for part in value]
    else:
        texts = [value]
    if len(texts) > _MAX_INPUTS or not all(isinstance(text, str) and text for text in texts):
        raise ApiError(400, "'$.input' is invalid: expected up to 2048 texts, none of them empty.", param="input")
    return [str(text) for text in texts]
