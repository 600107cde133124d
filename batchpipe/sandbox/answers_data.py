"""Answers that are data rather than text: moderations, images, videos."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from typing import Any

#: Categories of `omni-moderation-latest`, with words that trip them.
_CATEGORIES: dict[str, tuple[str, ...]] = {
    "harassment": ("idiot", "stupid", "loser"),
    "harassment/threatening": ("hurt you", "find you"),
    "hate": ("hate",),
    "hate/threatening": (),
    "illicit": ("counterfeit", "smuggle"),
    "illicit/violent": ("bomb",),
    "self-harm": ("suicide",),
    "self-harm/intent": (),
    "self-harm/instructions": (),
    "sexual": ("porn",),
    "sexual/minors": (),
    "violence": ("kill", "murder", "attack"),
    "violence/graphic": ("gore",),
}


def moderations(body: dict[str, Any], digest: str) -> dict[str, Any]:
    """The answer of `/v1/moderations`: one result per text; a list of content parts is one input."""
    source = body["input"]
    if isinstance(source, list) and all(isinstance(part, str) for part in source):
        texts = [str(part) for part in source]
    elif isinstance(source, list):
        texts = [" ".join(str(part.get("text", "")) for part in source if isinstance(part, dict))]
    else:
        texts = [str(source)]
    return {
        "id": f"modr-{digest[:29]}",
        "model": body.get("model") or "omni-moderation-latest",
        "results": [_moderation(text) for text in texts],
    }


def _moderation(text: str) -> dict[str, Any]:
    lower = text.lower()
    noise = hashlib.blake2b(lower.encode("utf-8", "surrogatepass"), digest_size=len(_CATEGORIES)).digest()
    flags = {name: any(word in lower for word in words) for name, words in _CATEGORIES.items()}
    scores = {
        name: round(0.8 + small / 1280, 6) if flags[name] else round(small / 25600, 6)
        for (name, small) in zip(_CATEGORIES, noise, strict=True)
    }
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }


def images(body: dict[str, Any], digest: str, created: int, count: int, prompt_tokens: int) -> dict[str, Any]:
    """The answer of the image endpoints: a plain square; its colour depends on the request."""
    pictures = [{"b64_json": _png(f"{digest}{index}")} for index in range(count)]
    spent = 272 * count
    return {
        "created": created,
        "data": pictures,
        "output_format": "png",
        "quality": body.get("quality") or "low",
        "size": body.get("size") or "1024x1024",
        "usage": {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"text_tokens": prompt_tokens, "image_tokens": 0},
            "output_tokens": spent,
            "total_tokens": prompt_tokens + spent,
        },
    }


def _png(seed: str) -> str:
    colour = hashlib.blake2b(seed.encode(), digest_size=3).digest()
    rows = (b"\0" + colour * 8) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def video(body: dict[str, Any], digest: str, created: int) -> dict[str, Any]:
    """The answer of `/v1/videos`: a finished video job. There is no film to download."""
    return {
        "id": f"video_{digest}",
        "object": "video",
        "model": body.get("model") or "sora-2",
        "status": "completed",
        "progress": 100,
        "created_at": created,
        "completed_at": created + 60,
        "expires_at": created + 86_400,
        "prompt": body["prompt"],
        "seconds": str(body.get("seconds") or "4"),
        "size": body.get("size") or "720x1280",
        "remixed_from_video_id": None,
        "error": None,
    }
