"""Deterministic, plausible answers: the same request body always gives the same response body."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from typing import Any

import orjson

from batchpipe.sandbox import answers_data
from batchpipe.sandbox.errors import ApiError
from batchpipe.sandbox.schema import instance
from batchpipe.sandbox.vectors import embeddings

_WORD = re.compile(r"\w{4,}", re.ASCII)
# The time in an answer is made up, so that answers depend only on the request.
_EPOCH = 1_750_000_000
_DULL = frozenset(
    _WORD.findall(
        "about answer briefly does from give have into only please short some tell that their then there these they"
        " this what when where which will with word words would write your"
    )
)
_SENTENCES = (
    "Here is a short answer about {0}.",
    "In brief, {0} is best understood together with {1}.",
    "The main point about {0} is how it relates to {1}.",
    "Most sources agree that {0} matters more than {1} here.",
    "To sum up: {0} first, then {1}.",
    "A common example of {0} is found wherever {1} is discussed.",
    "Note that {0} may differ from case to case.",
)


@dataclass(frozen=True)
class Ask:
    """A request, and the random generator that its digest seeds."""

    body: dict[str, Any]
    digest: str
    dice: random.Random

    @property
    def created(self) -> int:
        """A time that depends on the request alone."""
        return _EPOCH + int(self.digest[:6], 16)


def answer(endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """The response body for a request body. Raises `ApiError` if OpenAI would refuse it."""
    required = _REQUIRED[endpoint]
    for param in required:
        if body.get(param) in (None, "", []):
            if param == "model":
                raise ApiError(400, "you must provide a model parameter")
            raise ApiError(
                400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
            )
    try:
        canonical = orjson.dumps([endpoint, body], option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, f"The request cannot be read: {error}") from None
    digest = hashlib.blake2b(canonical, digest_size=16).hexdigest()
    return _ANSWERS[endpoint](Ask(body, digest, random.Random(digest)))


def tokens(text: str) -> int:
    """About how many tokens a text has."""
    return (len(text) + 3) // 4


def input_tokens(body: dict[str, Any]) -> int:
    """About how many input tokens a row has, as the provider counts them before it runs one."""
    messages = body.get("messages")
    if isinstance(messages, list):
        return tokens(_text_of(messages)) + 4 * len(messages)
    source = body.get("input", body.get("prompt"))
    return tokens(_text_of(source)) + tokens(_text_of(body.get("instructions"))) + 4


def _text_of(value: object) -> str:
    """All text in a prompt, a message, a list of parts, or an `input`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(filter(None, map(_text_of, value)))
    if isinstance(value, dict):
        return _text_of(value.get("text") or value.get("content") or "")
    return str(value) if isinstance(value, int) else ""


def _words(text: str) -> list[str]:
    # The question is at the end of a prompt; a few words of it are enough.
    words = dict.fromkeys(word for word in _WORD.findall(text[-2000:]) if word.lower() not in _DULL)
    return list(words)[-12:] or ["this"]


def _prose(text: str, dice: random.Random) -> str:
    words = _words(text)
    picked = dice.sample(_SENTENCES, dice.randint(1, 3))
    return " ".join(sentence.format(dice.choice(words), dice.choice(words)) for sentence in picked)


def _content(prompt: str, form: object, dice: random.Random) -> str:
    """The answer's text: JSON if `response_format` (or `text.format`) asks for it, else prose."""
    form = form if isinstance(form, dict) else {}
    if form.get("type") == "json_schema":
        schema = form.get("schema") or (form.get("json_schema") or {}).get("schema")
        if not isinstance(schema, dict):
            raise ApiError(
                400,
                "Missing required parameter: 'response_format.json_schema.schema'.",
                param="response_format",
            )
        return orjson.dumps(instance(schema, _words(prompt), dice)).decode()
    if form.get("type") == "json_object":
        return orjson.dumps({"answer": _prose(prompt, dice), "keywords": _words(prompt)[:5]}).decode()
    return _prose(prompt, dice)


def _limit(ask: Ask, *names: str) -> int | None:
    for name in names:
        value = ask.body.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ApiError(400, f"Invalid '{name}': integer below minimum value.", param=name, code="invalid_value")
            return value
    return None


def _count(ask: Ask) -> int:
    n = ask.body.get("n")
    if n is None:
        return 1
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 128:
        raise ApiError(400, "Invalid 'n': expected an integer from 1 to 128.", param="n", code="invalid_value")
    return n


def _cut(text: str, limit: int | None) -> tuple[str, bool]:
    return (text[: limit * 4], True) if limit is not None and tokens(text) > limit else (text, False)


def _chat_usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _tool_call(ask: Ask, prompt: str) -> dict[str, Any] | None:
    """A call of the tool that the request requires. Optional tools are not used."""
    choice, tools = ask.body.get("tool_choice"), ask.body.get("tools")
    if not isinstance(tools, list) or not tools or choice in (None, "auto", "none"):
        return None
    functions = [tool.get("function", {}) for tool in tools if isinstance(tool, dict)]
    wanted = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    function = next((entry for entry in functions if entry.get("name") == wanted), functions[0])
    arguments = instance(function.get("parameters") or {"type": "object"}, _words(prompt), ask.dice)
    return {
        "id": f"call_{ask.digest[:24]}",
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": orjson.dumps(arguments).decode()},
    }


def _chat(ask: Ask) -> dict[str, Any]:
    messages = ask.body["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and m.get("role") for m in messages):
        raise ApiError(400, "Invalid 'messages': expected an array of objects with a role.", param="messages")
    prompt = _text_of(messages)
    question = _text_of(messages[-1]) or prompt
    limit = _limit(ask, "max_completion_tokens", "max_tokens")
    choices: list[dict[str, Any]] = []
    spent = 0
    for index in range(_count(ask)):
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
        call = _tool_call(ask, question)
        if call is not None:
            message["tool_calls"], reason = [call], "tool_calls"
            spent += tokens(call["function"]["arguments"])
        else:
            text, cut = _cut(_content(question, ask.body.get("response_format"), ask.dice), limit)
            message["content"], reason = text, "length" if cut else "stop"
            spent += tokens(text)
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": reason})
    return {
        "id": f"chatcmpl-{ask.digest[:29]}",
        "object": "chat.completion",
        "created": ask.created,
        "model": ask.body["model"],
        "choices": choices,
        "usage": _chat_usage(tokens(prompt) + 4 * len(messages), spent),
        "service_tier": "default",
        "system_fingerprint": f"fp_{ask.digest[:10]}",
    }


def _completions(ask: Ask) -> dict[str, Any]:
    prompt = ask.body["prompt"]
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    prompts = [_text_of(part) for part in prompt] if several else [_text_of(prompt)]
    limit = _limit(ask, "max_tokens") or 16  # the default of this old endpoint
    choices: list[dict[str, Any]] = []
    spent = 0
    for text in prompts:
        for _ in range(_count(ask)):
            reply, cut = _cut(_prose(text, ask.dice), limit)
            spent += tokens(reply)
            reason = "length" if cut else "stop"
            choices.append({"text": reply, "index": len(choices), "logprobs": None, "finish_reason": reason})
    return {
        "id": f"cmpl-{ask.digest[:29]}",
        "object": "text_completion",
        "created": ask.created,
        "model": ask.body["model"],
        "choices": choices,
        "usage": _chat_usage(sum(map(tokens, prompts)), spent),
    }


def _responses(ask: Ask) -> dict[str, Any]:
    body = ask.body
    source = body["input"]
    question = _text_of(source[-1] if isinstance(source, list) and source else source)
    form = body["text"].get("format") if isinstance(body.get("text"), dict) else None
    text, cut = _cut(_content(question, form, ask.dice), _limit(ask, "max_output_tokens"))
    status = "incomplete" if cut else "completed"
    spent_in, spent_out = (
        tokens(_text_of(source)) + tokens(_text_of(body.get("instructions"))) + 4,
        tokens(text),
    )
    return {
        "id": f"resp_{ask.digest}",
        "object": "response",
        "created_at": ask.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": body["model"],
        "output": [
            {
                "id": f"msg_{ask.digest}",
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
            }
        ],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "temperature": body.get("temperature", 1.0),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "metadata": body.get("metadata") or {},
        "usage": {
            "input_tokens": spent_in,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": spent_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": spent_in + spent_out,
        },
    }


def _embeddings(ask: Ask) -> dict[str, Any]:
    return embeddings(ask.body)


def _moderations(ask: Ask) -> dict[str, Any]:
    return answers_data.moderations(ask.body, ask.digest)


def _images(ask: Ask) -> dict[str, Any]:
    return answers_data.images(ask.body, ask.digest, ask.created, _count(ask), tokens(_text_of(ask.body["prompt"])))


def _videos(ask: Ask) -> dict[str, Any]:
    return answers_data.video(ask.body, ask.digest, ask.created)


_REQUIRED: dict[str, tuple[str, ...]] = {
    "/v1/responses": ("model", "input"),
    "/v1/chat/completions": ("model", "messages"),
    "/v1/embeddings": ("model", "input"),
    "/v1/completions": ("model", "prompt"),
    "/v1/moderations": ("input",),
    "/v1/images/generations": ("prompt",),
    "/v1/images/edits": ("prompt",),
    "/v1/videos": ("prompt",),
}
_ANSWERS = {
    "/v1/responses": _responses,
    "/v1/chat/completions": _chat,
    "/v1/embeddings": _embeddings,
    "/v1/completions": _completions,
    "/v1/moderations": _moderations,
    "/v1/images/generations": _images,
    "/v1/images/edits": _images,
    "/v1/videos": _videos,
}
