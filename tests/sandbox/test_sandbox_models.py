"""The sandbox knows the names of OpenAI's models, so that a mistyped one fails here and not with the first real run."""

from __future__ import annotations

import pytest

from batchpipe.sandbox import Sandbox
from batchpipe.sandbox.models import is_slip, nearest


@pytest.mark.parametrize(
    "name",
    [
        *("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4-0613", "o3", "text-embedding-3-small", "gpt-5.4-nano"),
        *(
            "ft:gpt-4o-mini-2024-07-18:org::abc",
            "omni-moderation-latest",
            "m",
            "my-deployment",
            "llama-3.3-70b",
            "qwen3",
        ),
    ],
)
def test_a_name_that_exists_or_is_of_another_provider_is_no_slip(name: str) -> None:
    assert not is_slip(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("gpt-4o-mni", "gpt-4o-mini"), ("gpt4o-mini", "gpt-4o-mini")),
        *(("text-embeding-3-small", "text-embedding-3-small"), ("gpt-5.4-nanoo", "gpt-5.4-nano")),
    ],
)
def test_a_mistyped_name_is_known_as_one(name: str, meant: str) -> None:
    assert (is_slip(name), nearest(name)) == (True, meant)


def test_a_batch_of_a_mistyped_model_fails_and_costs_nothing(api, sandbox, row):
    batch = api.run([row("r0", model="gpt-4o-mni"), row("r1", model="gpt-4o-mni")])
    (error,) = batch.errors.data
    assert (batch.status, error.code, error.line, error.param) == ("failed", "model_not_found", 1, "body.model")
    assert "did you mean `gpt-4o-mini`?" in error.message
    assert sandbox.ledger.rows() == []


def test_any_model_is_taken_where_that_is_asked_for(api_for, row):
    with Sandbox(validating_seconds=0, any_model=True) as sandbox:
        batch = api_for(sandbox).run([row("r0", model="gpt-4o-mni")])
        assert batch.status == "completed"
