"""Checks an input as a worker would, without sending anything. Needs no Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchpipe.config.settings import Settings
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import DEFAULT_ACCOUNT
from batchpipe.pipeline.account_limits import bounds_of
from batchpipe.pipeline.manifest import input_rules
from batchpipe.pipeline.steps.prepare import validate


@dataclass(frozen=True)
class Validated:
    """What is in an input, and how many shards it would make."""

    rows: int
    bytes: int
    shards: int
    models: dict[str, int]  #: model -> rows; "" for rows that name none


def validate_input(
    inputs: str | Sequence[str],
    settings: Settings,
    *,
    endpoint: str | None = None,
    max_rows: int | None = None,
    max_bytes: int | None = None,
    account: str = DEFAULT_ACCOUNT,
    recipe: Recipe | None = None,
) -> Validated:
    """``inputs``: a person's own files, which may lie anywhere. ``max_rows``, ``max_bytes`` of a shard: else the
    settings.

    Raises InvalidInput that names the line, StorageTrouble; SettingsError for an account that is not in the settings.
    """
    settings.check_known(account)  # else the limits of no account would count
    rules = replace(input_rules(settings), roots=())
    limits = settings.known_account(account)
    rows, size = max_rows or settings.max_rows, max_bytes or settings.max_bytes
    most = (min(rows, limits.max_rows or rows), min(size, limits.max_bytes or size))
    bounds = bounds_of(settings, account)
    found = validate(inputs, endpoint or "", *most, bounds=bounds, rules=rules, recipe=recipe)
    models = {model or "": rows for model, rows in found.models.items()}
    return Validated(found.rows, found.bytes, len(found.shards), models)
