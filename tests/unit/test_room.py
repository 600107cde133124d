"""Limits of an account, a job's priority, and how shards wait for room at the provider."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from batchpipe.config.account import Account


def test_an_account_limits_tokens_by_model_and_versions_of_a_model_share_its_limit() -> None:
    account = Account(enqueued_tokens={"gpt-5-mini": 5_000_000, "gpt-5-2025-08-07": 7}, enqueued_tokens_default=90_000)
    assert account.limits("gpt-5-mini")["tokens"] == 5_000_000
    assert account.limits("gpt-5-mini-2025-08-07")["tokens"] == 5_000_000
    assert account.limits("gpt-5-2025-08-07")["tokens"] == 7
    assert account.limits("gpt-5")["tokens"] == 90_000
    assert account.limits(None)["tokens"] == 90_000


def test_what_the_settings_do_not_say_is_learned_but_for_the_documented_creations_per_hour() -> None:
    assert Account().limits("gpt-5") == {"creations": 2_000}
    assert Account(creations_per_hour=0).limits("gpt-5") == {}
    limits = Account(batches_in_flight=5, uploads_per_minute=60, creations_per_hour=10).limits("gpt-5")
    assert limits == {"batches": 5, "uploads": 60, "creations": 10}


def test_a_limit_that_would_stop_everything_is_refused_with_its_model() -> None:
    with pytest.raises(ValidationError, match="gpt-5: give a number of tokens above 0"):
        Account(enqueued_tokens={"gpt-5": 0})
