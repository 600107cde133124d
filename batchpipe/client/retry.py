"""The rows of an ended job that are not ok, as the input and the options of a new job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from batchpipe.client.options import SubmitOptions, options_of
from batchpipe.config.settings import Settings
from batchpipe.errors import PermanentError
from batchpipe.model.records import JobRecord, State, new_job_id
from batchpipe.pipeline.manifest import workspace_of
from batchpipe.pipeline.results import INDEX, iter_failed_requests
from batchpipe.store import Store


def check_retriable(job: JobRecord) -> None:
    """Raises PermanentError (``not_ended``, ``nothing_to_retry``)."""
    if not job.state.ended:
        raise PermanentError(f"job {job.id} has not ended; its rows may still come", code="not_ended")
    if not job.failed and not job.missing:
        raise PermanentError(f"job {job.id} has no rows to retry: {_why_none(job)}", code="nothing_to_retry")


def _why_none(job: JobRecord) -> str:
    """And what helps instead."""
    if job.ok:
        return "all of them are ok"
    if job.state is State.FAILED:
        error = f" ({job.error.code})" if job.error is not None else ""
        return f"it failed before any was sent{error}; correct that, and submit its input again"
    return "none was sent; submit its input again"


def retry_options(
    old: JobRecord, *, output: str | Path | None, queue: str | None, max_rows: int | None, max_bytes: int | None
) -> SubmitOptions:
    """The old job's options, but for these; its key is the same at each call, so that the rows are paid for once."""
    options = options_of(old)
    options["output"] = output or f"{old.output.rstrip('/')}/retry-{new_job_id().removeprefix('job_')}"
    options["tags"] = {**old.tags, "retry_of": old.id}
    options["key"] = f"retry-{old.id}"
    options["queue"] = queue
    options["max_rows"] = old.max_rows if max_rows is None else max_rows
    options["max_bytes"] = old.max_bytes if max_bytes is None else max_bytes
    return options


def failed_requests(store: Store, job: JobRecord, settings: Settings) -> Iterator[bytes]:
    """Request lines of the rows that are not ok, in input order, from the job's workspace."""
    workspace = workspace_of(job, settings)
    shards = store.shards.of_job(job, fields=("round", "file"))
    files = {shard.index: shard.file for shard in shards if shard.round == 1}
    with workspace.reader(job.order_files[0]) as order, workspace.reader(INDEX) as index:
        yield from iter_failed_requests(order, workspace, files, index)


def check_sizes(old: JobRecord, new: JobRecord, **sizes: int | None) -> None:
    """Raises PermanentError (``retried``) if the retry was made by an earlier call, with other sizes than asked for."""
    for name, size in sizes.items():
        if size is not None and getattr(new, name) != size:
            message = (
                f"job {old.id} was retried as {new.id}, with {name} {getattr(new, name)}: "
                f"when that has ended, retry it with the size you want"
            )
            raise PermanentError(message, code="retried")
