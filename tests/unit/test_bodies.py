"""HTTP 200 is not an answer; and what can be used is never called failed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.model.answers import Answer, read_answer
from batchpipe.model.bodies import read_body
from batchpipe.model.outcomes import FAILED, FAILED_FOR_NOW, OK, mark_of, names_quota

ERROR = {"code": "server_error", "message": "The model failed."}
USAGE = {"input_tokens": 7}


def response(status: Any, **changes: Any) -> dict[str, Any]:
    return {"object": "response", "status": status, "output": [], "usage": USAGE} | changes


def chat(*reasons: Any, **changes: Any) -> dict[str, Any]:
    choices = [{"index": 0, "message": {"content": "x"}, "finish_reason": reason} for reason in reasons]
    return {"object": "chat.completion", "choices": choices, "usage": {"prompt_tokens": 7}} | changes


def answered(body: Any, status: Any = 200, error: Any = None) -> Answer:
    line = {"custom_id": "a", "response": {"status_code": status, "body": body}, "error": error}
    return read_answer(json.dumps(line).encode())


#: case -> body, mark
NOT_ANSWERS: dict[str, tuple[Any, bytes]] = {
    "a failed response, its server's fault": (response("failed", error=ERROR), FAILED_FOR_NOW),
    "a failed response, too many": (response("failed", error={"code": "rate_limit_exceeded"}), FAILED_FOR_NOW),
    "a failed response, no money": (response("failed", error={"code": "insufficient_quota"}), FAILED_FOR_NOW),
    "a failed response, its own fault": (response("failed", error={"code": "invalid_prompt"}), FAILED),
    "a failed response that says nothing": (response("failed", error=None), FAILED),
    "a cancelled response": (response("cancelled"), FAILED),
    "a response in the background": (response("queued"), FAILED),
    "a response under way": (response("in_progress"), FAILED),
    "a failed video": ({"object": "video", "status": "failed", "error": ERROR}, FAILED_FOR_NOW),
    "a gateway's error": ({"error": {"code": 502, "message": "Provider returned error"}}, FAILED_FOR_NOW),
    "a gateway's limit": ({"error": {"code": "429", "message": "slow"}, "user_id": "u"}, FAILED_FOR_NOW),
    "a gateway's refusal": ({"error": {"code": 400, "message": "no"}}, FAILED),
    "an error with a type": ({"error": {"type": "server_error", "message": "x", "code": None}}, FAILED_FOR_NOW),
    "an error in a word": ({"error": "upstream"}, FAILED),
    "a chat's error": (chat(error=ERROR), FAILED_FOR_NOW),
    "no choices": (chat(), FAILED),
    "choices are null": (chat(choices=None), FAILED),
    "choices are missing": ({"object": "chat.completion", "usage": {}}, FAILED),
    "choices are empty, of no kind": ({"choices": []}, FAILED),
    "no completion": ({"object": "text_completion", "choices": []}, FAILED),
    "a choice with an error": ({"choices": [{"finish_reason": "error", "error": {"code": 503}}]}, FAILED_FOR_NOW),
    "a choice that ended with error": (chat("error"), FAILED),
    "no embeddings": ({"object": "list", "data": []}, FAILED),
    "embeddings are missing": ({"object": "list", "model": "m"}, FAILED),
    "no images": ({"created": 1, "data": []}, FAILED),
    "an error for images": ({"created": 1, "data": None, "error": ERROR}, FAILED_FOR_NOW),
    "no moderations": ({"id": "modr-1", "results": []}, FAILED),
    "no body": (None, FAILED),
    "an empty body": ("", FAILED),
}
#: Answers, or of a shape that nobody knows.
ANSWERS: dict[str, Any] = {
    "a response": response("completed", error=None),
    "a response with an error beside": response("completed", error=ERROR),
    "a response of a status nobody knows": response("archived"),
    "a response of an odd status": response(["x"]),
    "a response without a status": {"object": "response", "output": []},
    "a chat": chat("stop"),
    "a chat with an error beside": chat("stop", error=ERROR),
    "a chat of which one choice ended with error": chat("error", "stop"),
    "a chat that calls tools": chat("tool_calls"),
    "an unknown end": chat(None),
    "a batch's video": {"object": "video", "status": "queued"},
    "embeddings": {"object": "list", "data": [{"embedding": [0.1]}]},
    "images": {"created": 1, "data": [{"b64_json": "x"}]},
    "a moderation": {"results": [{"flagged": True}], "error": None},
    "nothing known": {"text": "fine"},
    "an empty object": {},
    "a text": "transcribed words",
    "a list": [1],
    "a number": 5,
    "choices of another shape": {"choices": {"a": 1}, "error": None},
    "no error": {"text": "fine", "error": None},
    "an empty error": {"text": "fine", "error": {}},
    "an error that says nothing": {"text": "fine", "error": {"code": None, "message": ""}},
    "an error that is false": {"text": "fine", "error": False},
    "usage of another shape": {"text": "fine", "usage": [1]},
    "data of another shape": {"data": {"x": 1}},
    "unhashable": {"object": [], "status": {}, "choices": [{"finish_reason": {}}]},
}


@pytest.mark.parametrize("case", NOT_ANSWERS)
def test_http_200_without_an_answer_is_failed(case: str) -> None:
    """With a reason in words; sent again only where the reason passes."""
    body, mark = NOT_ANSWERS[case]
    found = answered(body)
    assert (found.ok, mark_of(found)) == (False, mark)
    assert found.failure is not None
    assert found.failure.message.startswith("HTTP 200")
    assert found.failure.code
    assert found.response is not None
    assert json.loads(found.response)["body"] == body


@pytest.mark.parametrize("case", ANSWERS)
def test_what_may_be_an_answer_is_one(case: str) -> None:
    """A row that can be used must not become failed; shapes that are not known stay ok."""
    found = answered(ANSWERS[case])
    assert (found.ok, found.failure, mark_of(found)) == (True, None, OK)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (response("incomplete", incomplete_details={"reason": "max_output_tokens"}), "max_output_tokens"),
        (response("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
        (response("incomplete", incomplete_details={"reason": "x" * 5000}), "other"),
        (response("incomplete", incomplete_details=None), "other"),
        (chat("length"), "length"),
        (chat("stop", "content_filter"), "content_filter"),
        (chat("stop"), None),
        (response("completed"), None),
    ],
)
def test_an_answer_that_ended_early_is_ok_and_says_why(body: Any, reason: str | None) -> None:
    """Of a few reasons: records count them."""
    found = answered(body)
    assert (found.ok, found.incomplete) == (True, reason)


@pytest.mark.parametrize(
    ("raw", "status", "ok"),
    [
        ("200", 200, True),
        (200.0, 200, True),
        ("500", 500, False),
        (True, None, False),
        ("ok", None, False),
        (0, 0, False),
    ],
)
def test_a_status_may_be_a_text(raw: Any, status: int | None, ok: bool) -> None:
    """As some gateways have it; the row was answered and paid for."""
    found = answered({"text": "fine"}, raw)
    assert (found.status_code, found.ok) == (status, ok)


def test_the_body_is_judged_only_where_nothing_else_says_what_came_of_the_row() -> None:
    """Another status, or an error of the line, is the reason already."""
    assert answered({"error": ERROR}, 400).failure is None
    assert answered(response("failed"), 200, {"code": "batch_expired"}).failure is None
    assert answered(response("incomplete"), 500).incomplete is None


def test_tokens_of_a_row_that_failed_with_http_200_count() -> None:
    assert answered(response("failed", error=ERROR)).usage == {"input_tokens": 7}


def test_only_the_reason_says_that_the_quota_is_used_up() -> None:
    """A failed response repeats the request, which may speak of anything."""
    assert names_quota(answered(response("failed", error={"code": "insufficient_quota"})))
    assert not names_quota(answered(response("failed", error=ERROR, instructions="explain insufficient_quota")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["object", "status", "error", "choices", "data", "results", "usage", "finish_reason", "x"]),
            inner,
            max_size=4,
        )
    ),
)


@given(JSON)
def test_no_body_is_too_odd_to_be_read(body: Any) -> None:
    found = read_body(json.dumps(body).encode())
    assert found.failure is None or found.failure.code
