"""Whether this Redis has lost something: jobs that this host has submitted to it, and that it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from batchpipe.config.settings import Settings
from batchpipe.errors import StorageTrouble
from batchpipe.recover.discovery import Trace, find_noted, is_of_a_sandbox
from batchpipe.store import Store
from batchpipe.store.redis_label import label_of

#: How many of the newest jobs are compared, and the folders of how many unknown ones are examined.
_COMPARED, _READ = 1_000, 200


def lost_jobs(settings: Settings, store: Store) -> list[str]:
    """Ids of the newest unfinished jobs of this host that their Redis does not know. Raises StoreUnavailable.

    Jobs older than the time for which ended jobs are kept are not included: their records may have expired normally.
    """
    label, since = label_of(settings), store.now() - settings.ttl_seconds
    ours = (trace for trace in find_noted(settings).values() if trace.redis == label and trace.submitted_at > since)
    newest = sorted(ours, key=lambda trace: trace.submitted_at, reverse=True)[:_COMPARED]
    unknown: Iterator[Trace] = (trace for trace in newest if store.jobs.account_of(trace.job) is None)
    return [trace.job for trace in islice(unknown, _READ) if _is_unfinished(settings, trace)]


def _is_unfinished(settings: Settings, trace: Trace) -> bool:
    """Whether it has not ended, and enough of it is left to assume that somebody still wants it."""
    with suppress(StorageTrouble):
        if trace.has_ended():
            return False
        found = trace.manifest() or trace.record
        return found is not None and not is_of_a_sandbox(settings, found)
    return False
