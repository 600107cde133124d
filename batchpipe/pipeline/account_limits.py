"""How large a job's shards may be, and its ids: what its account's provider takes, as the settings say."""

from __future__ import annotations

from collections.abc import Callable

from batchpipe.config.settings import Settings
from batchpipe.errors import StoreUnavailable
from batchpipe.model.admission import RATIO_MARGIN
from batchpipe.model.records import JobRecord
from batchpipe.pipeline.sharding import Bounds
from batchpipe.store import Store

#: The part of a limit of tokens that one shard may need: with a whole one, the queue would be empty between two.
PART_OF_LIMIT = 0.25


def within_limits(job: JobRecord, settings: Settings) -> JobRecord:
    """The job, whose shards get no more rows and bytes than its account's provider takes, as the settings say."""
    account = settings.known_account(job.account)
    return job.evolve(
        max_rows=min(job.max_rows, account.max_rows or job.max_rows),
        max_bytes=min(job.max_bytes, account.max_bytes or job.max_bytes),
    )


def bounds_of(settings: Settings, account: str, store: Store | None = None) -> Bounds:
    """The bounds of a job of this account; with the ``store``, also as far as its limits of tokens are known."""
    longest = settings.known_account(account).longest_custom_id
    bounds = Bounds(settings.max_models, settings.max_shards, longest)
    return bounds if store is None else bounds._replace(model_bytes=model_bytes(store, settings, account))


def model_bytes(
    store: Store, settings: Settings, account: str, *, now: bool = False
) -> Callable[[str | None], int | None]:
    """The most bytes of a shard by its model, so that it fits into the provider's queue of tokens beside others.

    Read once for each model; ``now``: not what this process has read some seconds ago, for a refusal has just taught
    it. A limit that cannot be read cuts nothing: the shard is cut again if it is refused.
    """
    limits, known = settings.known_account(account), dict[str | None, int | None]()
    limit = store.admission.limit if now else store.admission.lately_limit

    def read(model: str | None) -> int | None:
        try:
            tokens = limit(account, model, limits.limits(model))
            ratio = store.admission.lately_ratio(model) if tokens is not None else 1.0
        except StoreUnavailable:
            return None
        return None if tokens is None else max(int(tokens / (ratio * RATIO_MARGIN) * PART_OF_LIMIT), 1)

    def most(model: str | None) -> int | None:
        if model not in known:
            known[model] = read(model)
        return known[model]

    return most
