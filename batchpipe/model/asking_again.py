"""The request of a row whose answer was not what was asked for: with that answer and the complaint, or with more room.
Pure.
"""

from __future__ import annotations

import json
from typing import Any

from batchpipe.model.answer_text import Said, said_in
from batchpipe.model.recipe import Recipe
from batchpipe.model.rendering import CHAT, RESPONSES

#: Characters of the answer that is sent back: enough to see what is wrong with it.
MOST_ANSWER = 20_000
#: The most tokens that a limit is raised to.
MOST_TOKENS = 128_000
#: The fields that limit an answer, by endpoint.
_LIMITS = {CHAT: ("max_completion_tokens", "max_tokens"), RESPONSES: ("max_output_tokens",)}


def asked_again(request: bytes, refused: bytes, recipe: Recipe, endpoint: str, most: int) -> bytes:
    r"""The request line for the next round, with its ``\n``. ``request``: that of this round; ``refused``: the line of
    ``errors.jsonl`` for its answer; ``most``: bytes of a line.

    The request as it was, if nothing can be added: of an endpoint without messages, or where it would be too long.
    """
    try:
        row, told = json.loads(request), json.loads(refused)
        body, answer = row["body"], told["response"]["body"]
        changed = _changed(body, said_in(answer), str(told["error"]["message"]), recipe, endpoint)
        line = json.dumps({**row, "body": changed}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return request
    return line if len(line) <= most else request


def _changed(body: dict[str, Any], said: Said, complaint: str, recipe: Recipe, endpoint: str) -> dict[str, Any]:
    if said.is_cut and recipe.grow_tokens:
        for name in _LIMITS.get(endpoint, ()):
            if isinstance(limit := body.get(name), int) and not isinstance(limit, bool) and limit < MOST_TOKENS:
                return {**body, name: min(2 * limit, MOST_TOKENS)}
    answer = (said.text or said.refusal or "")[:MOST_ANSWER]
    what = "Answer the request again, with JSON that fits the schema." if recipe.answer else "Answer the request again."
    messages = [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": f"That answer cannot be used: {complaint}. {what}"},
    ]
    if not answer:
        messages = messages[1:]
    if endpoint == CHAT:
        return {**body, "messages": [*body["messages"], *messages]}
    if endpoint == RESPONSES:
        given = body["input"]
        before = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        return {**body, "input": [*before, *messages]}
    return body
