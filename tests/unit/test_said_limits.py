"""The numbers in a provider's refusal: how much may be in its queue at once, and how often it may be called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.model.refusals import says_batch_limit
from batchpipe.model.said_limits import Rate, said_batch_limit, said_rate, said_token_limit, seconds_of

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


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("The limit of 50 unfinished batches is reached.", 50),
        ("Too many batches in progress. Limit: 100.", 100),
        ("Too many batches: at most 1,000 active batches are allowed", 1_000),
        ("You have reached the maximum number of concurrent batch jobs (limit=20)", 20),
        ("Too many unfinished batches", None),
        ("Too many batches. Limit: 2,000 batches per hour", None),
        ("Too many batches. Limit: 2,000,000 enqueued tokens", None),
        ("Too many batches; the limit of 24 hours has passed", None),
    ],
)
def test_the_number_of_unfinished_batches_is_read(message: str, limit: int | None) -> None:
    assert said_batch_limit(message) == limit


@pytest.mark.parametrize(
    ("code", "message", "says"),
    [
        ("too_many_batches", "no", True),
        ("ConcurrentBatchLimitExceeded", None, True),
        ("quotaExceeded", "The limit of 50 unfinished batches is reached.", True),
        (None, "You have reached the maximum number of concurrent batch jobs (limit=20)", True),
        (None, "Too many batches in progress", True),
        ("quotaExceeded", "too many files", False),
        ("rate_limit_exceeded", "Rate limit reached for batch creations. Limit: 2,000 per hour.", False),
        (None, "Too many batches created per hour", False),
        (None, "Too many batch requests", False),
        (None, "metadata.note: 'Too many batches' is no text", False),
        (None, None, False),
    ],
)
def test_too_many_batches_is_known_by_its_code_or_the_beginning_of_the_message(
    code: str | None, message: str | None, says: bool
) -> None:
    """What a tenant wrote may be quoted within a message, and lowers no limit."""
    assert says_batch_limit([code], message) is says


@pytest.mark.parametrize(
    ("message", "headers", "rate"),
    [
        ("Rate limit reached for batch creations. Limit: 2,000 per hour.", {}, Rate(2_000, 3_600)),
        ("Rate limit reached on requests per min (RPM): Limit 3, Used 3, Requested 1.", {}, Rate(3, 60)),
        ("Slow down: limit is 60 requests/min", {}, Rate(60, 60)),
        ("no", {"x-ratelimit-limit-requests": "500", "x-ratelimit-reset-requests": "59.2s"}, Rate(500, 60)),
        ("no", {"x-ratelimit-limit-requests": "500", "x-ratelimit-reset-requests": "6m0s"}, Rate(500, 3_600)),
        ("no", {"x-ratelimit-limit-requests": "500", "x-ratelimit-reset-requests": "7200"}, Rate(500, 86_400)),
        ("Limit: 9 per day", {"x-ratelimit-limit-requests": "5", "x-ratelimit-reset-requests": "1s"}, Rate(9, 86_400)),
        ("no", {"x-ratelimit-limit-requests": "500"}, None),
        ("no", {"x-ratelimit-limit-requests": "many", "x-ratelimit-reset-requests": "1s"}, None),
        ("no", {"x-ratelimit-limit-requests": "0", "x-ratelimit-reset-requests": "1s"}, None),
        ("no", {"x-ratelimit-limit-requests": "10", "x-ratelimit-reset-requests": "60ms"}, None),
        ("Upload limit is 1 GB per minute", {}, None),
        ("Limit: 40000 tokens per min", {}, None),
        ("Limit: 2,000,000 enqueued tokens", {}, None),
        (None, {}, None),
    ],
)
def test_a_rate_is_read_from_words_or_else_from_headers(
    message: str | None, headers: dict[str, str], rate: Rate | None
) -> None:
    assert said_rate(message, headers) == rate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("1h2m3.5s", 3_723.5),
        ("20ms", 0.02),
        ("59.5", 59.5),
        ("1d", 86_400.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("-1", None),
        ("1700000000", None),
    ],
)
def test_spans_of_headers_are_read_in_all_their_forms(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@given(st.text(max_size=300), st.text(max_size=40), st.text(max_size=40))
def test_any_headers_and_words_are_read_without_an_error(words: str, most: str, reset: str) -> None:
    headers = {"x-ratelimit-limit-requests": most, "x-ratelimit-reset-requests": reset}
    rate, batches = said_rate(f"limit {words}", headers), said_batch_limit(f"limit {words}")
    assert rate is None or (rate.most >= 1 and rate.seconds > 0)
    assert batches is None or batches >= 1
