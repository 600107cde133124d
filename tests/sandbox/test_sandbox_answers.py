"""What the sandbox answers to a row: deterministic, plausible, and in each endpoint's own shape."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import openai
import pytest

ASK = [{"role": "user", "content": "Explain photosynthesis to gardeners"}]


def row_for(endpoint, body, custom_id="a"):
    return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}


BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"model": "gpt-5", "input": "Explain rivers"},
    "/v1/chat/completions": {"model": "gpt-4o", "messages": ASK},
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": "rivers"},
    "/v1/completions": {"model": "gpt-3.5-turbo-instruct", "prompt": "Rivers are"},
    "/v1/moderations": {"model": "omni-moderation-latest", "input": "rivers"},
    "/v1/images/generations": {"model": "gpt-image-1", "prompt": "a river"},
    "/v1/images/edits": {"model": "gpt-image-1", "prompt": "a river", "images": []},
    "/v1/videos": {"model": "sora-2", "prompt": "a river"},
}


@pytest.mark.parametrize("endpoint", BODIES)
def test_every_endpoint_is_run_and_checked(api, endpoint):
    """A good body is answered, the same each time; one without its required part is that row's 400."""
    good, empty = row_for(endpoint, BODIES[endpoint]), row_for(endpoint, {"model": BODIES[endpoint]["model"]}, "b")

    batch = api.run([good, empty], endpoint)
    again = api.run([good], endpoint)

    assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
    [ok], [bad] = api.lines(batch.output_file_id), api.lines(batch.error_file_id)
    assert bad["response"]["body"]["error"]["code"] == "missing_required_parameter"
    assert ok["response"]["body"] == api.lines(again.output_file_id)[0]["response"]["body"]
    counted = endpoint in ("/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions")
    assert (again.usage is not None and again.usage.total_tokens > 0) is counted


def test_chat_speaks_of_what_it_was_asked(client):
    """The model is echoed, the answer uses the prompt's words, and usage adds up."""
    answer = client.chat.completions.create(model="my-model", messages=ASK)

    text = answer.choices[0].message.content
    assert "photosynthesis" in text or "gardeners" in text or "Explain" in text
    assert (answer.model, answer.choices[0].finish_reason) == ("my-model", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert client.chat.completions.create(model="my-model", messages=ASK) == answer
    assert client.chat.completions.create(model="other", messages=ASK).id != answer.id


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_chat_honours_n_and_the_token_limit(client, name):
    """n choices, each cut at the limit and saying so."""
    answer = client.chat.completions.create(model="m", messages=ASK, n=3, **{name: 2})

    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3
    assert answer.usage.completion_tokens == 6


def test_chat_reads_messages_made_of_parts(client):
    """Text parts count, pictures do no harm."""
    parts = [{"type": "text", "text": "volcanoes"}, {"type": "image_url", "image_url": {"url": "http://x/y"}}]

    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}])

    assert "volcanoes" in answer.choices[0].message.content


def test_json_mode_gives_json(client):
    """response_format json_object."""
    answer = client.chat.completions.create(model="m", messages=ASK, response_format={"type": "json_object"})

    assert isinstance(json.loads(answer.choices[0].message.content), dict)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 8},
        "age": {"type": "integer", "minimum": 18, "maximum": 20},
        "score": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        "day": {"type": "string", "format": "date"},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "where": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "score", "kind", "tags", "day", "next", "where"],
    "$defs": {"place": {"type": "object", "properties": {"city": {"const": "Rome"}}, "required": ["city"]}},
}


def assert_fits(value):
    assert list(value) == SCHEMA["required"]
    assert 3 <= len(value["name"]) <= 8
    assert 18 <= value["age"] <= 20
    assert isinstance(value["age"], int)
    assert value["score"] is None or 0 < value["score"] <= 1
    assert value["kind"] in ("cat", "dog")
    assert 2 <= len(value["tags"]) <= 3
    assert all(isinstance(tag, bool) for tag in value["tags"])
    assert value["day"] == "2025-01-15"
    assert value["where"] == {"city": "Rome"}


def test_a_json_schema_is_satisfied_in_chat(client):
    """Also one that refers to itself."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}

    value = json.loads(
        client.chat.completions.create(model="m", messages=ASK, response_format=form).choices[0].message.content
    )

    depth = 0
    while value is not None:
        assert_fits(value)
        value, depth = value["next"], depth + 1
    assert depth < 10


def test_a_json_schema_is_satisfied_in_responses(client):
    """There it stands under text.format."""
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA}

    answer = client.responses.create(model="m", input="hi", text={"format": form})

    assert_fits(json.loads(answer.output_text))


def test_a_tool_that_must_be_called_is_called(client):
    """tool_choice names it; its arguments fit its schema."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    choice = {"type": "function", "function": {"name": "look"}}

    answer = client.chat.completions.create(model="m", messages=ASK, tools=tools, tool_choice=choice)

    [call] = answer.choices[0].message.tool_calls
    assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "look")
    assert_fits(json.loads(call.function.arguments))


def test_responses_are_cut_at_their_limit(client):
    """A cut answer is incomplete and says why."""
    whole = client.responses.create(model="m", input="Explain rivers")
    cut = client.responses.create(model="m", input="Explain rivers", max_output_tokens=2)

    assert (whole.status, cut.status) == ("completed", "incomplete")
    assert whole.output_text
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage.output_tokens == 2


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_embeddings_are_unit_vectors_with_a_sense_of_likeness(client):
    """One per input, of length 1; texts that share words are nearer than those that do not."""
    texts = ["the cat sat on a mat", "a cat sat on the sofa", "quantum field theory"]

    answer = client.embeddings.create(model="text-embedding-3-small", input=texts, encoding_format="float")
    cat, sofa, quantum = (entry.embedding for entry in answer.data)

    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert {len(vector) for vector in (cat, sofa, quantum)} == {1536}
    assert math.isclose(cosine(cat, cat), 1)
    assert cosine(cat, sofa) > 0.3 > cosine(cat, quantum)
    assert answer.usage.total_tokens > 0


def test_embeddings_honour_dimensions_and_base64(client):
    """Both encodings hold the same numbers; the large model has 3072 by default."""
    floats = client.embeddings.create(model="m", input="x", dimensions=8, encoding_format="float").data[0].embedding
    packed = client.embeddings.create(model="m", input="x", dimensions=8, encoding_format="base64").data[0].embedding
    large = client.embeddings.create(model="text-embedding-3-large", input="x").data[0].embedding

    assert len(base64.b64decode(packed)) == 4 * len(floats) == 32
    assert client.embeddings.create(model="m", input="x", dimensions=8).data[0].embedding == pytest.approx(floats)
    assert len(large) == 3072


@pytest.mark.parametrize("options", [{"dimensions": 0}, {"dimensions": 4000}, {"input": ["a", ""]}])
def test_bad_embedding_requests_are_refused(client, options):
    """As OpenAI does."""
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(**{"model": "m", "input": "x", **options})


def test_moderation_flags_bad_words(client):
    """One result per input."""
    kind, rude = client.moderations.create(input=["a lovely day", "I will kill you"]).results

    assert (kind.flagged, rude.flagged, rude.categories.violence) == (False, True, True)
    assert rude.category_scores.violence > 0.5 > kind.category_scores.violence


def test_completions_answer_each_prompt_n_times(client):
    """A list of prompts gives a list of choices."""
    answer = client.completions.create(model="m", prompt=["one", "two"], n=2)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_images_are_real_pictures(client):
    """PNG data in base64, n of them."""
    answer = client.images.generate(model="gpt-image-1", prompt="a river", n=2)

    assert [base64.b64decode(image.b64_json)[:8] for image in answer.data] == [b"\x89PNG\r\n\x1a\n"] * 2


def test_models_can_be_listed(client):
    """So that a client may check its key."""
    assert client.models.list().data


def test_streaming_is_refused(client):
    """The sandbox does not stream."""
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="m", messages=ASK, stream=True)
