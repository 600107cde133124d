"""What a submit writes down: the record and its message, and on this host where its workspace lies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from batchpipe.config.settings import Settings
from batchpipe.errors import PermanentError, StoreUnavailable
from batchpipe.masking import without_secrets
from batchpipe.model.records import JOB, JobRecord, State
from batchpipe.pipeline.copied_inputs import forget_copy, remove_copy, remove_unrecorded_at_times
from batchpipe.pipeline.manifest import basics, note_workspace, prune_workspaces
from batchpipe.pipeline.messages import Message
from batchpipe.store import Store
from batchpipe.telemetry.logs import log_event

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewJob:
    """A job that was recorded."""

    record: JobRecord
    is_heard: bool  #: a worker listens on its queue


def record_job(
    settings: Settings,
    store: Store,
    publish: Callable[[Message], None],
    record: JobRecord,
    *,
    replace_job: str = "",
    alias: bool = False,
) -> NewJob | str:
    """Record a job and publish its first message: one script, one message, one fsync. ``replace_job``, ``alias``: see
    ``Jobs.submit``.

    Returns the id of the first job with its key, if there is one. Raises OutputInUse, StoreUnavailable.
    """
    event = {"input": without_secrets(record.input), "queue": record.queue}
    try:
        recorded = store.jobs.record(record, replace_job=replace_job, alias=alias, event=event)
    except PermanentError:
        remove_copy(settings, record)
        raise
    if not recorded.is_new:
        remove_copy(settings, record)
        return recorded.id
    record = record.evolve(created_at=recorded.at, next_at=recorded.at)
    note_workspace(settings, record, record=basics(record))
    if record.has_copies:
        forget_copy(settings, record.id)
    prune_workspaces(settings, store.jobs.closed, recorded.at)
    log_event(logger, "submitted", event, job=record.id)
    publish(Message(record.id, JOB, record.epoch, State.PENDING, record.task_ids, record.queue))
    with suppress(StoreUnavailable):  # on a host without workers nobody else does it
        remove_unrecorded_at_times(settings, store, recorded.at)
    return NewJob(record, recorded.is_heard)
