"""The number in a provider's refusal: how much may be in its queue at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.model.said_limits import said_token_limit

OPENAI = (
    "Enqueued token limit reached for {model} in organization org-abc123. Limit: {limit} enqueued tokens. Please try "
    "again once some in_progress batches have been completed."
)


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (OPENAI.format(model="gpt-4o-mini", limit="2,000,000"), 2_000_000),
        (OPENAI.format(model="gpt-4o", limit="90,000"), 90_000),
        (OPENAI.format(model="gpt-4.1-2025-04-14", limit="900000"), 900_000),
        (OPENAI.format(model="gpt-5", limit="500"), 500),
        (OPENAI.format(model="gpt-5", limit="2.000.000"), 2_000_000),
        (OPENAI.format(model="gpt-5", limit="2 000 000"), 2_000_000),
        (OPENAI.format(model="gpt-5", limit="2\u202f000\u202f000"), 2_000_000),
        (OPENAI.format(model="gpt-5", limit="2'000'000"), 2_000_000),
        (OPENAI.format(model="gpt-5", limit="1_500_000"), 1_500_000),
        ("token_limit_exceeded: the limit of 5 million tokens is reached", 5_000_000),
        ("Enqueued token limit reached: requested 70000, limit 90k", 90_000),
        ("Enqueued token limit reached. Limit: 2.5M, used: 2.4M", 2_500_000),
        ("The deployment allows at most 1,000,000 enqueued tokens at once", 1_000_000),
        ("limit=30000000000 (30B)", 30_000_000_000),
    ],
)
def test_the_limit_is_read_whatever_the_separators(message: str, limit: int) -> None:
    assert said_token_limit(message) == limit


@pytest.mark.parametrize(
    "message",
    [
        None,
        "",
        "Enqueued token limit reached",
        "Enqueued token limit reached for gpt-4o-mini; try again in 60 seconds",
        "Limit: 2,000 batches per hour",
        "the limit of 24 hours has passed",
        "Limit: 0 enqueued tokens",
        "limit: 99999999999999999999999",
        "limit: 7",
    ],
)
def test_a_message_that_says_no_such_number_sets_no_limit(message: str | None) -> None:
    assert said_token_limit(message) is None


@given(st.text(max_size=3_000))
def test_any_text_is_read_without_an_error_and_gives_a_sensible_number(text: str) -> None:
    found = said_token_limit("Limit: " + text)
    assert found is None or 0 < found <= 10**13
