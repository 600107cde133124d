"""What a model said in the body of a response: of chat completions, of responses, of embeddings; whatever else it may
be. Pure, and never raises for an odd body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec


class Said(msgspec.Struct, frozen=True):
    """The useful parts of a body. ``text``: of all its parts, in order; None if there is none."""

    text: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None

    @property
    def is_cut(self) -> bool:
        """It ended at a limit of tokens."""
        return self.finish_reason in ("length", "max_output_tokens", "max_tokens")

    @property
    def is_filtered(self) -> bool:
        return self.finish_reason == "content_filter"


NOTHING = Said()


def said_in(body: Any) -> Said:
    """What the decoded body of a response says."""
    if not isinstance(body, Mapping):
        return NOTHING
    choices = body.get("choices")
    if isinstance(choices, Sequence) and not isinstance(choices, str) and choices:
        return _of_choice(choices[0])
    if isinstance(body.get("output"), list):
        return _of_output(body)
    return NOTHING


def _of_choice(choice: Any) -> Said:
    if not isinstance(choice, Mapping):
        return NOTHING
    reason = _word(choice.get("finish_reason"))
    message = choice.get("message")
    if not isinstance(message, Mapping):
        text = choice.get("text")  # of /v1/completions
        return Said(text if isinstance(text, str) else None, None, reason)
    return Said(_joined(_texts(message.get("content"))), _word(message.get("refusal")), reason)


def _of_output(body: Mapping[str, Any]) -> Said:
    texts: list[str] = []
    refusals: list[str] = []
    for item in body["output"]:
        if not isinstance(item, Mapping) or item.get("type") != "message":
            continue
        texts += _texts(item.get("content"))
        refusals += _refusals(item.get("content"))
    details = body.get("incomplete_details")
    reason = _word(details.get("reason")) if isinstance(details, Mapping) else None
    return Said(_joined(texts), _joined(refusals), reason or _word(body.get("status")))


def _texts(content: Any) -> list[str]:
    """The texts of a message: one, or several parts."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in _parts(content) if isinstance(part.get("text"), str)]


def _refusals(content: Any) -> list[str]:
    return [part["refusal"] for part in _parts(content) if isinstance(part.get("refusal"), str)]


def _parts(content: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, list):
        yield from (part for part in content if isinstance(part, Mapping))


def _joined(texts: Sequence[str]) -> str | None:
    return "".join(texts) if texts else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
