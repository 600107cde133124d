"""How large a job's shards may be, and its ids: what its account's provider takes, as the settings say."""

from __future__ import annotations

from batchpipe.config.settings import Settings
from batchpipe.model.records import JobRecord
from batchpipe.pipeline.sharding import Bounds


def within_limits(job: JobRecord, settings: Settings) -> JobRecord:
    """The job, whose shards get no more rows and bytes than its account's provider takes, as the settings say."""
    account = settings.known_account(job.account)
    return job.evolve(
        max_rows=min(job.max_rows, account.max_rows or job.max_rows),
        max_bytes=min(job.max_bytes, account.max_bytes or job.max_bytes),
    )


def bounds_of(settings: Settings, account: str) -> Bounds:
    """The bounds of a job of this account."""
    return Bounds(settings.max_models, settings.max_shards, settings.known_account(account).longest_custom_id)
