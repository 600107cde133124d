"""Why rows are not ok: by status and code, never by words, in a bounded number of kinds."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.model.answers import OutcomeState, error_line, raw_error
from batchpipe.model.reasons import (
    MOST_KINDS,
    MOST_SAMPLE,
    Reason,
    Tally,
    add_reasons,
    final_ones,
    lasting,
    read_reason,
    reason_words,
    reasons_view,
    sample,
)

_KEY = re.compile(r"~?(-|\d{3}) (-|[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63})")


def line(response: Any = None, error: Any = None) -> bytes:
    return json.dumps(
        {"custom_id": "a", "outcome": "failed", "attempts": 1, "response": response, "error": error}
    ).encode()


@pytest.mark.parametrize(
    ("written", "key"),
    [
        (line({"status_code": 500, "body": {"error": {"code": "server_error", "message": "x"}}}), "500 server_error"),
        (line({"status_code": 400, "body": {"error": {"code": None, "type": "bad_request"}}}), "400 bad_request"),
        (line({"status_code": 429, "body": {"error": {"code": 429}}}), "429 -"),
        (line({"status_code": 503, "body": "<html>"}), "503 -"),
        (line({"status_code": "503", "body": {"error": "busy"}}), "503 -"),
        (line(None, {"code": "batch_expired", "message": "late"}), "- batch_expired"),
        (line({"status_code": 200, "body": {"choices": []}}, {"code": "content_filter"}), "- content_filter"),
        (line(None, {"code": "You said: my secret plan", "message": "x"}), "- other"),
        (line({"status_code": 400, "body": {"error": {"code": "the prompt 'x' is bad"}}}), "400 -"),
        (line(None, "no"), "- other"),
        (line(), "- no_answer"),
        (error_line("a", OutcomeState.MISSING, 1, None, raw_error("file_gone", "x")), "- file_gone"),
        (b"no json", "- other"),
    ],
)  # fmt: skip
def test_a_reason_is_a_status_and_a_code(written: bytes, key: str) -> None:
    """Of the row's own error, else of the one in its response. A code that is a sentence may quote the row."""
    assert read_reason(written).key == key


def test_rows_that_fail_again_as_they_are_are_told_from_those_that_may_pass() -> None:
    """A retry helps the latter. What nobody knows may pass."""
    last = [
        "400 bad_request",
        "404 model_not_found",
        "422 -",
        "- model_not_found",
        "- invalid_request",
        "- batch_refused",
    ]
    pass_ = ["500 server_error", "429 -", "401 -", "402 -", "- batch_expired", "- no_answer", "- other", "- file_gone"]
    assert {key: lasting({key: 3}) for key in last} == dict.fromkeys(last, 3)
    assert {key: lasting({key: 3}) for key in pass_} == dict.fromkeys(pass_, 0)
    assert lasting({"400 -": 2, "500 -": 5, "- content_filter": 1}) == 3


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["code", "type", "message", "error", "body", "status_code"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(_JSON, _JSON)
def test_whatever_a_provider_writes_a_reason_is_short_and_a_word(response: Any, error: Any) -> None:
    """It goes to Redis: nothing of a prompt or an answer may be in it, and it cannot grow."""
    assert _KEY.fullmatch(read_reason(line(response, error)).key)


def test_further_kinds_count_as_other_and_no_row_is_lost() -> None:
    tally = Tally()
    for number in range(500):
        tally.add(Reason(f"400 code_{number}", "m"))
    assert len(tally.counts) == MOST_KINDS + 1
    assert sum(tally.counts.values()) == 500
    total: dict[str, int] = {}
    for number in range(300):
        add_reasons(total, {f"400 code_{number}": 2})
    assert len(total) <= 2 * MOST_KINDS + 1
    assert sum(total.values()) == 600


def test_what_is_sent_again_goes_with_the_next_round() -> None:
    counted = {"~500 server_error": 3, "400 bad": 1}
    assert final_ones(counted) == {"400 bad": 1}
    assert reason_words(reasons_view(counted)) == "3 x 500 server_error, 1 x 400 bad"


def test_the_most_frequent_reason_comes_first_and_all_say_how_many() -> None:
    view = reasons_view({"500 server_error": 2, "- content_filter": 1_400, "503 -": 1}, {"503 -": "busy"})
    assert reason_words(view) == "1,400 x content_filter, 2 x 500 server_error, 1 x 503"
    assert view[2] == {"code": None, "status": 503, "count": 1, "sample": "busy"}
    assert view[0]["status"] is None


def test_a_sample_is_one_short_line_without_secrets() -> None:
    text = sample("see https://u:pass@host/x?token=abc\n\x1b]0;t\x07 " + "long " * 500)
    assert len(text) <= MOST_SAMPLE + 20
    assert "pass@" not in text
    assert "abc" not in text
    assert "\n" not in text
    assert "\x1b" not in text
