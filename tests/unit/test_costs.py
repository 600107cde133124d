"""Prices: each row by its own length, in whole pico-dollars, and what is not known is not zero."""

from __future__ import annotations

import itertools
import json
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo

from batchpipe.model.records import Counts, JobRecord, Move, ShardRecord
from batchpipe.model.views import metrics_view
from batchpipe.pipeline.steps.download import download
from batchpipe.storage import Folder
from batchpipe.telemetry.prices import MAX_COST, PICO_PER_DOLLAR, Pricer, free, openai_prices, unknown
from tests.unit.test_download import FilesFake, nothing

DAY = date(2026, 11, 20)
AT = datetime.combine(DAY, time(12), tzinfo=UTC)
BATCH = {"processing": "batch"}
OPENAI = next(provider for provider in get_snapshot().providers if provider.id == "openai")


def _name(model: ModelInfo) -> str:
    """One that finds it: ids of fine-tuned models are beginnings of names."""
    return next(name for name in (model.id, f"{model.id}-2024-07-18:org::1") if OPENAI.find_model(name) is model)


#: Models with a batch price.
MODELS = sorted(_name(model) for model in OPENAI.models if any(v.when == BATCH for v in model.price_variants or ()))
LONG = 272_000


def slow(model: str, usage: dict[str, int]) -> Decimal:
    """Dollars for one row, by genai-prices' own calculation."""
    names = {
        "cached_tokens": "cache_read_tokens",
        "cache_write_tokens": "cache_write_tokens",
        "input_image_tokens": "input_image_tokens",
        "output_image_tokens": "output_image_tokens",
        "input_tokens": "input_tokens",
        "output_tokens": "output_tokens",
    }
    tokens = Usage(**{names[name]: count for name, count in usage.items()})
    return calc_price(tokens, model, provider_id="openai", genai_request_timestamp=AT, price_context=BATCH).total_price


def usages() -> list[dict[str, int]]:
    lengths = (1, 117, 128_000, 200_000, LONG, LONG + 1, 1_000_003)
    plain = [
        {"input_tokens": given, "output_tokens": made, "cached_tokens": given * share // 4}
        for given, made, share in itertools.product(lengths, (0, 93, 16_384), (0, 3))
    ]
    return [{name: count for name, count in usage.items() if count} for usage in plain]


def collected(rows: list[dict[str, Any]], prices: Pricer, endpoint: str = "/v1/responses", **shard: Any) -> Move:
    """What comes of a download of these response bodies."""
    workspace = Folder(f"memory://{uuid.uuid4().hex}")
    names = [f"r{number}" for number in range(len(rows))]
    with workspace.writer("shards/x.jsonl") as file:
        for name in names:
            file.write(json.dumps({"custom_id": name, "method": "POST"}).encode() + b"\n")
    out = b"".join(
        json.dumps({"custom_id": name, "response": {"status_code": 200, "body": body}}).encode() + b"\n"
        for name, body in zip(names, rows, strict=True)
    )
    record = ShardRecord(job="job_x", index=0, rows=len(rows), file="shards/x.jsonl", output_file_id="out", **shard)
    job = JobRecord(id="job_x", endpoint=endpoint)
    return download(
        job, record, workspace, FilesFake(out=out), "t", prices=prices, now=0.0, files_patience=0.0, check=nothing
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_jobs_cost_is_the_sum_of_its_rows_at_their_own_prices(model: str) -> None:
    """For each model with a batch price, over all its tiers: equal to a slow calculation row by row."""
    bodies = [{"model": model, "usage": chat_spelling(usage)} for usage in usages()]
    bodies += [{"model": model, "usage": usage_of_responses(usage)} for usage in usages()]
    found = collected(bodies, openai_prices(DAY), model=model).changes["cost"]
    wanted = 2 * sum(Fraction(slow(model, usage)) for usage in usages())
    assert abs(Fraction(found, PICO_PER_DOLLAR) - wanted) < Fraction(1, 10**6)


def chat_spelling(usage: dict[str, int]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage.get("output_tokens", 0),
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
    }


def usage_of_responses(usage: dict[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage.get("output_tokens", 0),
        "input_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
    }


@pytest.mark.parametrize("model", [name for name in MODELS if name.startswith(("gpt-5.6", "gpt-6", "gpt-image"))])
@pytest.mark.parametrize("kind", ["cache_write_tokens", "input_image_tokens", "output_image_tokens"])
def test_tokens_of_a_price_of_their_own_are_priced_so(model: str, kind: str) -> None:
    usage = {"input_tokens": LONG + 5, "output_tokens": 70_000, kind: 65_000}
    found = openai_prices(DAY)(model, usage)
    assert found is not None
    assert abs(Fraction(found, PICO_PER_DOLLAR) - Fraction(slow(model, usage))) < Fraction(1, 10**6)


def test_many_short_rows_do_not_cost_what_a_long_one_does() -> None:
    """The sum of their tokens is beyond the threshold of the long-context tier; none of them is."""
    usage = {"input_tokens": 1000, "output_tokens": 100}
    rows = [{"model": "gpt-6-sol", "usage": usage}] * 1000
    assert collected(rows, openai_prices(DAY)).changes["cost"] == 1000 * (1000 * 1_000_000 + 100 * 5_000_000)
    whole = slow("gpt-6-sol", {name: 1000 * count for name, count in usage.items()})
    assert whole > Decimal("1.7") * 1000 * slow("gpt-6-sol", usage)


def test_a_row_is_priced_by_the_model_that_answered() -> None:
    """A dated one; where it has no price, by the one that was asked."""
    usage = {"input_tokens": 1000}
    price = openai_prices(DAY)
    dated = collected([{"model": "gpt-4o-2024-11-20", "usage": usage}], price, model="gpt-6-sol").changes["cost"]
    assert dated == price("gpt-4o", usage) != price("gpt-6-sol", usage)
    other = collected([{"model": "not-known-yet", "usage": usage}], price, model="gpt-6-sol").changes["cost"]
    assert other == price("gpt-6-sol", usage)
    assert collected([{"usage": usage}], price, model="gpt-6-sol").changes["cost"] == other


@pytest.mark.parametrize("model", [None, "", "no-such-model", "text-embedding-3-small", "gpt-4o-realtime-preview"])
def test_a_price_that_is_not_known_is_not_zero(model: str | None) -> None:
    """Nor the usual price, which is twice too much: some models have none for batches."""
    good: dict[str, Any] = {"model": "gpt-6-sol", "usage": {"input_tokens": 7}}
    rows = [good, {"model": model, "usage": {"input_tokens": 7}}, good]
    assert collected(rows, openai_prices(DAY), model=model).changes["cost"] is None
    assert collected([good], unknown).changes["cost"] is None
    assert collected(rows, free).changes["cost"] == 0


def test_an_answer_without_usage_makes_the_cost_unknown_but_a_moderation_is_free() -> None:
    price = openai_prices(DAY)
    assert collected([{"text": "fine"}], price, model="gpt-6-sol").changes["cost"] is None
    body = {"model": "omni-moderation", "results": [{"flagged": False}]}
    assert collected([body], price, "/v1/moderations").changes["cost"] == 0
    failed = {"object": "response", "status": "failed", "error": {"code": "server_error"}, "usage": None}
    assert collected([failed], price).changes["cost"] == 0


def test_answers_that_were_counted_and_did_not_come_make_the_cost_unknown() -> None:
    rows = [{"model": "gpt-6-sol", "usage": {"input_tokens": 7}}]
    found = collected(rows, openai_prices(DAY), counts=Counts(completed=2))
    assert found.changes["cost"] is None


def test_a_cost_that_a_record_cannot_hold_is_unknown() -> None:
    rows = [{"model": "gpt-6-sol", "usage": {"output_tokens": 9 * 10**9}}] * 500
    assert collected(rows, openai_prices(DAY)).changes["cost"] is None
    assert MAX_COST == 2**63 - 1


def test_what_is_shown_is_the_sum_of_what_is_collected_or_null() -> None:
    """So far: a shard that runs has no cost yet."""

    def shown(*costs: int | None) -> float | None:
        shards = [ShardRecord(job="j", index=i, stage="collected", cost=cost) for i, cost in enumerate(costs)]
        shards.append(ShardRecord(job="j", index=99, stage="created"))
        found: float | None = metrics_view(JobRecord(id="j"), shards, 0.0)["cost_usd"]
        return found

    assert shown() == 0
    assert shown(1_500_000_000_000, 25_000_000) == 1.500025
    assert shown(1_500_000_000_000, None) is None
