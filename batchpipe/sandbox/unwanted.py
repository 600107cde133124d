"""Answers that nobody wants, of a model that runs all the same: invalid, cut off, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REFUSAL = "I'm sorry, but I can't help with that."


def unwanted(body: Any, how: str) -> Any:
    """The body of a chat completion or of a response, changed. `how`: "cut", "refused"; anything else: "invalid"."""
    if not isinstance(body, dict):
        return body
    if body.get("object") == "response":
        return _response(body, how)
    choices = body.get("choices")
    if not isinstance(choices, list):
        return body
    return {**body, "choices": [_choice(choice, how) for choice in choices]}


def _choice(choice: dict[str, Any], how: str) -> dict[str, Any]:
    message = choice.get("message") or {}
    if how == "refused":
        return {**choice, "message": {**message, "content": None, "refusal": REFUSAL}}
    text = _TEXTS.get(how, _invalid)(str(message.get("content") or ""))
    reason = "length" if how == "cut" else choice.get("finish_reason")
    return {**choice, "message": {**message, "content": text}, "finish_reason": reason}


def _response(body: dict[str, Any], how: str) -> dict[str, Any]:
    output = [_item(item, how) if item.get("type") == "message" else item for item in body.get("output") or ()]
    if how == "cut":
        return {**body, "output": output, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return {**body, "output": output}


def _item(item: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "refused":
        return {**item, "content": [{"type": "refusal", "refusal": REFUSAL}]}
    change = _TEXTS.get(how, _invalid)
    content = [
        {**part, "text": change(str(part.get("text") or ""))} if part.get("type") == "output_text" else part
        for part in item.get("content") or ()
    ]
    return {**item, "content": content}


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _invalid(text: str) -> str:
    return f"Here is the answer: {text}"


_TEXTS: dict[str, Callable[[str], str]] = {"cut": _cut}
