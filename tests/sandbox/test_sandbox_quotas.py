"""The limits of the sandbox's one organization, refused as the real provider refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import openai
import pytest

from batchpipe.sandbox import Sandbox
from batchpipe.sandbox.options import OptionArgs, token_limits

Limited = Callable[..., Any]


@pytest.fixture
def limited(request: pytest.FixtureRequest, api: Any) -> Limited:
    """A sandbox with these limits; its batches run until they are told to end."""

    def start(**options: Unpack[OptionArgs]) -> Any:
        sandbox = Sandbox(**options)
        sandbox.start()
        request.addfinalizer(sandbox.stop)
        sandbox.faults.add("stuck")
        return type(api)(sandbox)

    return start


def chat_row(custom_id: str, model: str = "gpt-4o-mini") -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": f"Tell of {custom_id}"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


ROWS = [chat_row(f"r{number}") for number in range(10)]


def started(api: Any, rows: list[dict[str, Any]] = ROWS) -> str:
    batch = api.create(rows)
    api.sandbox.batches.wait(batch.id, "in_progress")
    return str(batch.id)


def test_a_batch_that_finds_the_queue_of_its_model_full_fails_validation_with_the_providers_words(
    limited: Limited,
) -> None:
    api = limited(enqueued_tokens={"gpt-4o-mini": 100})
    started(api)
    held = api.sandbox.quotas.enqueued()["gpt-4o-mini"]
    assert 50 < held <= 100
    refused = api.run(ROWS)
    assert refused.status == "failed"
    error = refused.errors.data[0]
    assert error.code == "token_limit_exceeded"
    assert error.message == (
        "Enqueued token limit reached for gpt-4o-mini in organization org-sandbox. Limit: 100 enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    )
    assert api.sandbox.quotas.refused == 1
    assert api.sandbox.quotas.enqueued() == {"gpt-4o-mini": held}


def test_another_model_has_a_queue_of_its_own_and_the_end_of_a_batch_frees_its_tokens(limited: Limited) -> None:
    api = limited(enqueued_tokens={"*": 100})
    first = started(api)
    started(api, [chat_row("a", model="gpt-4o")])
    api.sandbox.batches.end(first, "completed")
    assert list(api.sandbox.quotas.enqueued()) == ["gpt-4o"]
    started(api)


def test_the_tokens_that_the_queue_counts_are_those_of_the_usage(limited: Limited) -> None:
    api = limited(enqueued_tokens={"*": 10_000})
    batch = started(api)
    held = api.sandbox.quotas.enqueued()["gpt-4o-mini"]
    api.sandbox.faults.clear()
    usage = api.wait(api.client.batches.retrieve(batch)).usage
    assert usage.input_tokens == held


def test_one_unfinished_batch_too_many_is_refused_at_its_creation(limited: Limited) -> None:
    api = limited(batches_in_flight=1)
    first = started(api)
    with pytest.raises(openai.BadRequestError, match="limit of 1 unfinished batches") as refusal:
        api.create(ROWS)
    assert refusal.value.code == "quotaExceeded"
    api.sandbox.batches.end(first, "completed")
    started(api)


def test_one_creation_too_many_in_an_hour_gets_429_with_the_time_to_wait(limited: Limited) -> None:
    api = limited(creations_per_hour=2)
    started(api)
    started(api)
    with pytest.raises(openai.RateLimitError, match="Limit: 2 per hour") as refusal:
        api.create(ROWS)
    headers = refusal.value.response.headers
    assert 3_500 < float(headers["retry-after"]) <= 3_600
    assert headers["x-ratelimit-limit-requests"] == "2"
    api.sandbox.clock.advance(3_601)
    started(api)


def test_one_upload_too_many_in_a_minute_gets_429(limited: Limited) -> None:
    api = limited(uploads_per_minute=1)
    api.upload(ROWS)
    with pytest.raises(openai.RateLimitError):
        api.upload(ROWS)
    api.sandbox.clock.advance(61)
    api.upload(ROWS)


def test_a_sandbox_that_starts_again_still_counts_what_is_in_its_queue(limited: Limited, tmp_path: Path) -> None:
    api = limited(data_dir=tmp_path, enqueued_tokens={"*": 100})
    started(api)
    held = api.sandbox.quotas.enqueued()
    api.sandbox.stop()
    with Sandbox(data_dir=tmp_path, enqueued_tokens={"*": 100}, rows_per_second=0.01) as again:
        assert again.quotas.enqueued() == held


def test_limits_are_given_to_commands_for_a_model_or_for_all() -> None:
    assert token_limits(["2000", "gpt-4o=90"]) == {"*": 2000, "gpt-4o": 90}
    assert token_limits([]) is None
    for wrong in ("x", "gpt-4o=", "=", "-1", "1e6"):
        with pytest.raises(ValueError, match="tokens"):
            token_limits([wrong])
    with pytest.raises(ValueError, match="at least 1"):
        Sandbox(enqueued_tokens={"*": 0})
