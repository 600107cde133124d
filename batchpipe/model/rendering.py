"""Makes a request of a data row, as the recipe says. Pure, but for images, which the caller reads.

The body is laid out once with marks where values go, and cut into pieces at these: a row costs the writing of its
values only.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from batchpipe.errors import InvalidInput
from batchpipe.model.recipe import Recipe
from batchpipe.model.requests import EMBEDDINGS, MODERATIONS, Request, check_request
from batchpipe.model.templates import Template, unknown_column

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
#: Endpoints for which prompts, images and schemas are understood; any other needs a template of its body.
KNOWN = (CHAT, RESPONSES, EMBEDDINGS, MODERATIONS)
#: Characters of a ``custom_id``; providers take some hundred.
MAX_ID = 512

#: Gives an image as a URL: ``http(s)://`` and ``data:`` ones as they are, a file as ``data:``. Raises InvalidInput.
ImageUrl = Callable[[str], str]


def check_recipe(recipe: Recipe) -> None:
    """Raises InvalidInput that names the option: one that is wrong, that does not go with another, or that lacks."""
    if recipe.makes_requests:
        Renderer(recipe, _no_image)
    else:
        for name in ("model", "system", "id"):
            if getattr(recipe, name) is not None:
                raise InvalidInput(
                    "is for inputs that are tables: give a prompt (or text, image, body) too", field=name
                )
        if recipe.params:
            raise InvalidInput(
                "are for inputs that are tables: give a prompt (or text, image, body) too", field="params"
            )


def _no_image(source: str) -> str:
    return source


class Renderer:
    """Makes the request lines of one recipe."""

    def __init__(self, recipe: Recipe, image_url: ImageUrl) -> None:
        """Raises InvalidInput as ``check_recipe`` does."""
        self.recipe = recipe
        self._image_url = image_url
        self._prompt = Template(recipe.prompt, "prompt") if recipe.prompt is not None else None
        self._system = Template(recipe.system, "system") if recipe.system is not None else None
        self._body = Template(recipe.body, "body", makes_json=True) if recipe.body is not None else None
        _check_together(recipe)
        self._tag = f"value-{secrets.token_hex(8)}"
        self._pieces, self._slots = self._lay_out() if self._body is None else ([], [])

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises InvalidInput (``column_unknown``) for a column that the input does not have."""
        for template in (self._prompt, self._system, self._body):
            if template is not None:
                template.check_columns(columns)
        for field in ("id", "image", "text"):
            name = getattr(self.recipe, field)
            if name is not None and name not in columns:
                raise unknown_column(name, columns, field)

    def line(self, number: int, values: Mapping[str, Any]) -> tuple[Request, bytes]:
        r"""The request of a row, and its line with ``\n``. ``number``: of the row, from 1. Raises InvalidInput, without
        the row's number.
        """
        name = self._custom_id(number, values)
        if self._body is not None:
            return self._templated(name, values)
        parts = [self._pieces[0]]
        for slot, piece in zip(self._slots, self._pieces[1:], strict=True):
            parts += (orjson.dumps(name if slot == "custom_id" else self._value(slot, values)), piece)
        return Request(name, self.recipe.model, 1), b"".join(parts)

    def _custom_id(self, number: int, values: Mapping[str, Any]) -> str:
        column = self.recipe.id
        if column is None:
            return str(number)
        value = values.get(column)
        name = value if isinstance(value, str) else "" if value is None else str(value)
        if not name:
            raise InvalidInput("is empty; each row needs an id of its own", field=column)
        if len(name) > MAX_ID:
            raise InvalidInput(f"has {len(name)} characters; an id has at most {MAX_ID}", field=column)
        return name

    def _value(self, slot: str, values: Mapping[str, Any]) -> str:
        if slot == "prompt":
            assert self._prompt is not None
            text = self._prompt.render(values)
            if not text.strip():
                raise InvalidInput("is empty for this row", field="prompt")
            return text
        if slot == "system":
            assert self._system is not None
            return self._system.render(values)
        column = getattr(self.recipe, slot)
        value = values.get(column)
        if value is None or value == "":
            raise InvalidInput("is empty for this row", field=column)
        if slot == "image":
            return self._image_url(str(value))
        return value if isinstance(value, str) else str(value)

    def _lay_out(self) -> tuple[list[bytes], list[str]]:
        """The pieces of the line between its values, and which value comes after each but the last."""
        recipe = self.recipe
        body: dict[str, Any] = {} if recipe.model is None else {"model": recipe.model}
        body |= _LAYOUTS[recipe.endpoint](recipe, lambda slot: f"{self._tag}-{slot}")
        body |= recipe.params
        add_schema(body, recipe)
        line = {"custom_id": f"{self._tag}-custom_id", "method": "POST", "url": recipe.endpoint, "body": body}
        pieces: list[bytes] = []
        slots: list[str] = []
        for part in (orjson.dumps(line) + b"\n").split(f'"{self._tag}-'.encode()):
            if not pieces:
                pieces.append(part)
                continue
            slot, _, rest = part.partition(b'"')
            slots.append(slot.decode())
            pieces.append(rest)
        return pieces, slots

    def _templated(self, name: str, values: Mapping[str, Any]) -> tuple[Request, bytes]:
        assert self._body is not None
        text = self._body.render(values)
        try:
            body = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            message = f"is not JSON for this row: {error.msg} (line {error.lineno} of the body, column {error.colno})"
            raise InvalidInput(message, field="body") from None
        if not isinstance(body, dict):
            raise InvalidInput("must be a JSON object", field="body")
        if self.recipe.model is not None:
            body["model"] = self.recipe.model
        body |= self.recipe.params
        add_schema(body, self.recipe)
        line = orjson.dumps({"custom_id": name, "method": "POST", "url": self.recipe.endpoint, "body": body}) + b"\n"
        try:
            return check_request(line, 1, self.recipe.endpoint), line
        except InvalidInput as error:
            raise InvalidInput(error.message.removeprefix("line 1: "), code=error.code) from None


def _check_together(recipe: Recipe) -> None:
    if recipe.endpoint not in KNOWN and recipe.body is None:
        known = ", ".join(KNOWN)
        raise InvalidInput(
            f"rows are made into requests for {known}; for {recipe.endpoint} give a body", field="endpoint"
        )
    if recipe.body is not None:
        for name in ("prompt", "system", "image", "text"):
            if getattr(recipe, name) is not None:
                raise InvalidInput("does not go with body; put {{ column }} into the body's template", field=name)
        return
    if recipe.model is None and recipe.endpoint != MODERATIONS:
        raise InvalidInput("is missing: name the model, such as gpt-4o-mini", field="model")
    takes_text = recipe.endpoint in (EMBEDDINGS, MODERATIONS)
    if takes_text:
        for name in ("system", "image", "answer"):
            if getattr(recipe, name) is not None:
                raise InvalidInput(f"does not go with {recipe.endpoint}", field=name)
        if (recipe.text is None) == (recipe.prompt is None):
            raise InvalidInput(f"{recipe.endpoint} needs a text column, or a prompt; not both", field="text")
    else:
        if recipe.text is not None:
            raise InvalidInput(f"is for {EMBEDDINGS} and {MODERATIONS}; here give a prompt", field="text")
        if recipe.prompt is None:
            raise InvalidInput("is missing", field="prompt")
    if taken := [name for name in recipe.params if name in _OURS]:
        raise InvalidInput(f"{taken[0]} has an option of its own", field="params")


_OURS = frozenset({"model", "messages", "input", "instructions", "stream"})


def _chat(recipe: Recipe, slot: Callable[[str], str]) -> dict[str, Any]:
    content: Any = slot("prompt")
    if recipe.image is not None:
        image = {"type": "image_url", "image_url": {"url": slot("image")}}
        content = [{"type": "text", "text": content}, image]
    system = [{"role": "system", "content": slot("system")}] if recipe.system is not None else []
    return {"messages": [*system, {"role": "user", "content": content}]}


def _responses(recipe: Recipe, slot: Callable[[str], str]) -> dict[str, Any]:
    content: Any = slot("prompt")
    if recipe.image is not None:
        parts = [{"type": "input_text", "text": content}, {"type": "input_image", "image_url": slot("image")}]
        content = [{"role": "user", "content": parts}]
    system = {"instructions": slot("system")} if recipe.system is not None else {}
    return {**system, "input": content}


def _input(recipe: Recipe, slot: Callable[[str], str]) -> dict[str, Any]:
    return {"input": slot("text" if recipe.text is not None else "prompt")}


_LAYOUTS: dict[str, Callable[[Recipe, Callable[[str], str]], dict[str, Any]]] = {
    CHAT: _chat,
    RESPONSES: _responses,
    EMBEDDINGS: _input,
    MODERATIONS: _input,
}


def add_schema(body: dict[str, Any], recipe: Recipe) -> None:
    """Let the body ask for an answer of the recipe's schema, unless it says itself of which kind."""
    if recipe.answer is None:
        return
    named = {"name": recipe.answer_name, "schema": recipe.answer, "strict": True}
    if recipe.endpoint == RESPONSES:
        body["text"] = {"format": {"type": "json_schema", **named}} | (body.get("text") or {})
    else:
        body.setdefault("response_format", {"type": "json_schema", "json_schema": named})
