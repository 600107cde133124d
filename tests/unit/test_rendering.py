"""Requests that are made of data rows: templates see data only, bodies are JSON whatever the data are."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.errors import InvalidInput
from batchpipe.model.recipe import Recipe
from batchpipe.model.rendering import CHAT, RESPONSES, Renderer, check_recipe
from batchpipe.model.requests import EMBEDDINGS, MODERATIONS, check_request
from batchpipe.model.strict_schema import check_strict, made_strict
from batchpipe.model.templates import Template

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def body_of(values: dict[str, Any], **recipe: Any) -> dict[str, Any]:
    recipe = {"endpoint": CHAT, "model": "m", **recipe}
    request, line = Renderer(Recipe(**recipe), lambda source: f"data:{source}").line(1, values)
    assert check_request(line, 1, recipe["endpoint"]) == request
    found: dict[str, Any] = orjson.loads(line)["body"]
    return found


def refusal(template: str, values: dict[str, Any]) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        Template(template, "prompt").render(values)
    return caught.value


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_in_a_cell_comes_through_as_it_is(name: str, more: str) -> None:
    """In a prompt and within a template of JSON, also where it looks like either."""
    values = {"name": name, "more": more}
    content = body_of(values, prompt="x {{ name }} {{ more }}")["messages"][0]["content"]
    assert content == f"x {name} {more}"
    body = '{"model": "m", "messages": [{"role": "user", "content": "x {{ name }}"}], "user": {{ more | tojson }}}'
    found = body_of(values, body=body, model=None)
    assert (found["messages"][0]["content"], found["user"]) == (f"x {name}", more)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_a_custom_id(name: str) -> None:
    if len(name) <= 512:
        request, line = Renderer(Recipe(endpoint=CHAT, model="m", prompt="p", id="key"), str).line(1, {"key": name})
        assert request.custom_id == orjson.loads(line)["custom_id"] == name


def test_a_row_without_an_id_has_its_number() -> None:
    assert Renderer(Recipe(endpoint=CHAT, model="m", prompt="p"), str).line(17, {})[0].custom_id == "17"


def test_a_chat_has_system_image_params_and_schema() -> None:
    found = body_of(
        {"n": "x", "pic": "a.png"},
        prompt="P {{ n }}",
        system="S {{ n }}",
        image="pic",
        params={"temperature": 0},
        answer=SCHEMA,
    )
    user = [{"type": "text", "text": "P x"}, {"type": "image_url", "image_url": {"url": "data:a.png"}}]
    assert found["messages"] == [{"role": "system", "content": "S x"}, {"role": "user", "content": user}]
    assert found["temperature"] == 0
    assert found["response_format"]["json_schema"] == {"name": "answer", "schema": SCHEMA, "strict": True}


def test_a_response_has_its_own_fields() -> None:
    found = body_of({"n": "x"}, endpoint=RESPONSES, prompt="P {{ n }}", system="S", answer=SCHEMA)
    assert (found["input"], found["instructions"]) == ("P x", "S")
    assert found["text"]["format"] == {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}


def test_embeddings_and_moderations_take_a_column() -> None:
    assert body_of({"t": "x"}, endpoint=EMBEDDINGS, text="t") == {"model": "m", "input": "x"}
    assert body_of({"t": "x"}, endpoint=MODERATIONS, text="t", model=None) == {"input": "x"}


@pytest.mark.parametrize(
    "template",
    [
        "{{ name.__class__ }}",
        "{{ name | attr('__class__') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ row.__init__.__globals__ }}",
        "{{ name.format.__globals__ }}",
    ],
)
def test_a_template_cannot_read_attributes(template: str) -> None:
    assert "must not" in refusal(template, {"name": "x"}).message


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**8 * 100 }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 10 ** 10 ** 10 }}",
    ],
)
def test_a_template_cannot_fill_the_memory(template: str) -> None:
    assert "too large" in refusal(template, {}).message


@pytest.mark.parametrize("template", ["{{ name.ljust(3000000000) }}", "{{ name|center(3000000000) }}"])
def test_a_template_cannot_pad_a_text_beyond_measure(template: str) -> None:
    with pytest.raises(InvalidInput, match=r"must not|no template"):
        Template(template, "prompt").render({"name": "x"})


def test_templates_are_more_than_names_of_columns() -> None:
    template = Template("{% if n|int > 2 %}many {{ name.upper() }}{% else %}{{ row['a b'] }}{% endif %}", "prompt")
    assert template.render({"n": "3", "name": "x", "a b": "y"}) == "many X"
    assert template.render({"n": "1", "name": "x", "a b": "y"}) == "y"


def test_an_empty_cell_is_an_empty_text() -> None:
    assert Template("<{{ a }}>", "prompt").render({"a": None}) == "<>"
    assert Template("<{{ a|lower if a else a }}>", "prompt").render({"a": None}) == "<>"


def test_an_unknown_column_is_refused_with_those_that_there_are() -> None:
    renderer = Renderer(Recipe(endpoint=CHAT, model="m", prompt="{{ nme }}"), str)
    with pytest.raises(InvalidInput) as caught:
        renderer.check_columns(["id", "name"])
    message = "prompt: there is no column 'nme' (did you mean 'name'?); the columns are: id, name"
    assert (str(caught.value), caught.value.code) == (message, "column_unknown")


def test_a_body_that_is_not_json_for_a_row_says_so_without_its_text() -> None:
    """The row is data, and the message is recorded."""
    with pytest.raises(InvalidInput, match="body: is not JSON for this row") as caught:
        body_of({"n": '3, "model": "secret"'}, body='{"model": "m", "max_tokens": {{ n }}}', model=None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"prompt": "  ", "model": "m"}, "prompt: must not be empty"),
        ({"prompt": "{{ a", "model": "m"}, "prompt: is no template"),
        ({"prompt": "p"}, "model: is missing"),
        ({"prompt": "p", "model": "m", "text": "t"}, "text: is for /v1/embeddings"),
        ({"prompt": "p", "model": "m", "body": "{}"}, "prompt: does not go with body"),
        ({"prompt": "p", "model": "m", "params": {"messages": []}}, "params: messages has an option of its own"),
        ({"prompt": "p", "model": "m", "endpoint": "/v1/other"}, "for /v1/other give a body"),
        ({"model": "m"}, "model: is for inputs that are tables"),
        ({"text": "t", "model": "m", "endpoint": EMBEDDINGS, "system": "s"}, "system: does not go with"),
    ],
)
def test_options_that_do_not_fit_are_refused(recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_recipe(Recipe(**{"endpoint": CHAT, **recipe}))
    assert says in str(caught.value)


# -- strict mode -------------------------------------------------------------------------------------------------------


def of(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": part}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "where", "keyword"),
    [
        ({"type": "array", "items": {"type": "string"}}, "#", "type"),
        ({"anyOf": [SCHEMA]}, "#", "anyOf"),
        ({**SCHEMA, "additionalProperties": True}, "#", "additionalProperties"),
        ({**SCHEMA, "required": []}, "#", "required"),
        (of({"type": "string", "minLength": 1}), "#/properties/a", "minLength"),
        (of({"type": "array", "items": {"type": "string", "format": "uri"}}), "#/properties/a/items", "format"),
        (of({"oneOf": [{"type": "string"}]}), "#/properties/a", "oneOf"),
        (of({"type": "object", "properties": {}}), "#/properties/a", "additionalProperties"),
        (of({"description": "d"}), "#/properties/a", "type"),
        (of({"type": "text"}), "#/properties/a", "type"),
        (of({"$ref": "#/$defs/x", "description": "d"}), "#/properties/a", "description"),
    ],
)
def test_a_schema_that_strict_mode_does_not_take_is_refused_by_keyword_and_place(
    schema: dict[str, Any], where: str, keyword: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_strict(schema)
    assert f"{where}: {keyword} " in str(caught.value)
    assert caught.value.code == "schema_not_strict"


def test_nesting_is_bounded() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(11):
        schema = of(schema)
    with pytest.raises(InvalidInput, match="deeper than 10 levels"):
        check_strict(schema)


def test_a_pydantic_model_becomes_a_strict_schema() -> None:
    """With defaults, bounds, optional parts, enums and models within models."""
    from enum import Enum

    from pydantic import BaseModel, Field

    class Color(Enum):
        RED = "red"

    class Part(BaseModel):
        size: int = Field(3, description="cm")
        word: str = Field(max_length=3)

    class Thing(BaseModel):
        name: str | None = None
        parts: list[Part] = []
        best: Part = Field(description="the best")
        color: Color

    schema = made_strict(Thing.model_json_schema())
    check_strict(schema)
    assert schema["required"] == ["name", "parts", "best", "color"]
    assert schema["properties"]["best"]["description"] == "the best"
