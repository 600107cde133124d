"""The rows of an ended job that are not ok, as the input and the options of a new job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from batchpipe.client.options import SubmitOptions, options_of
from batchpipe.config.settings import Settings
from batchpipe.errors import JobNotFound, PermanentError
from batchpipe.model.answers import OutcomeState
from batchpipe.model.outcome import Outcome
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import JobRecord, State, new_job_id
from batchpipe.pipeline.manifest import workspace_of
from batchpipe.pipeline.recipes import read_recipe
from batchpipe.pipeline.results import ShardReader, iter_in_order
from batchpipe.pipeline.retried import MOST_DEEP, results_of
from batchpipe.storage import place_name
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
    old: JobRecord,
    *,
    output: str | Path | None,
    queue: str | None,
    max_rows: int | None,
    max_bytes: int | None,
    only: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> SubmitOptions:
    """The old job's options, but for these; its key is the same at each call, so that the rows are paid for once."""
    options = options_of(old)
    options["output"] = output or f"{old.output.rstrip('/')}/retry-{new_job_id().removeprefix('job_')}"
    options["tags"] = {**old.tags, "retry_of": old.id}
    told = orjson.dumps([sorted(only), changes or {}], option=orjson.OPT_SORT_KEYS)
    which = f"-{blake2b(told, digest_size=8).hexdigest()}" if only or changes else ""
    options["key"] = f"retry-{old.id}{which}"
    options["queue"] = queue
    options["max_rows"] = old.max_rows if max_rows is None else max_rows
    options["max_bytes"] = old.max_bytes if max_bytes is None else max_bytes
    return options


def check_retries(store: Store, job: JobRecord) -> None:
    """Raises PermanentError (``retried``) if a retry of the job has not ended: its rows may still come."""
    for job_id in job.retries:
        try:
            retry = store.jobs.get(job_id)
        except JobNotFound:
            continue
        if not retry.closed:
            raise PermanentError(f"the retry {job_id} of job {job.id} has not ended: wait for that", code="retried")


def failed_requests(
    store: Store, job: JobRecord, settings: Settings, only: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> Iterator[bytes]:
    """Request lines of the rows that are not ok, also not in a retry, in input order, from the job's workspace.

    ``only`` with these error codes or statuses; ``changes``: fields of their bodies. Raises PermanentError
    (``nothing_to_retry``) if there is none.
    """
    workspace = workspace_of(job, settings)
    shards = store.shards.of_job(job, fields=("round", "file"))
    files = {shard.index: shard.file for shard in shards if shard.round == 1}
    found = False
    with workspace.reader(job.order_files[0]) as order, ShardReader(workspace, files) as reader:
        rows = iter_in_order(order, reader)
        for (_, line), row in zip(rows, results_of(job, store, settings), strict=True):
            if row.state is OutcomeState.OK or (only and not _is_one_of(row, only)):
                continue
            found = True
            yield _changed(line, changes) if changes else line
    if not found:
        which = f" with {', '.join(only)}" if only else ""
        raise PermanentError(f"job {job.id} has no rows to retry{which}", code="nothing_to_retry")


def _is_one_of(row: Outcome, only: Sequence[str]) -> bool:
    status = row.response.get("status_code") if isinstance(row.response, Mapping) else None
    return row.reason in only or (status is not None and str(status) in only)


def _changed(line: bytes, changes: Mapping[str, Any]) -> bytes:
    request = json.loads(line)
    body = {**request["body"], **changes}
    return json.dumps({**request, "body": body}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def retry_recipe(job: JobRecord, settings: Settings) -> Recipe | None:
    """What the answers of a retry must be, whose rows are requests already."""
    recipe = read_recipe(job, workspace_of(job, settings))
    if recipe is None or (recipe.answer is None and recipe.on_invalid is None):
        return None
    return Recipe(
        endpoint=recipe.endpoint,
        answer=recipe.answer,
        answer_name=recipe.answer_name,
        on_invalid=recipe.on_invalid,
        grow_tokens=recipe.grow_tokens,
    )


def owned_by_retry(job: JobRecord, store: Store) -> list[str]:
    """What a retry of this job owns until it is closed, beside its output: the outputs that will show its rows, of the
    job and those that it retries itself, as far as their results are still there; and the right to send rows of the
    first of them, which only one job has at a time.
    """
    found: list[str] = []
    root, current, deep = job.id, job, 0
    while deep < MOST_DEEP:
        if current.results == current.output and current.closed:
            found.append(place_name(current.output))
        if not current.retry_of:
            break
        root, deep = current.retry_of, deep + 1
        try:
            current = store.jobs.get(root)
        except JobNotFound:
            break
    return [*found, f"retries of {root}"]


def check_sizes(old: JobRecord, new: JobRecord, **sizes: int | None) -> None:
    """Raises PermanentError (``retried``) if the retry was made by an earlier call, with other sizes than asked for."""
    for name, size in sizes.items():
        if size is not None and getattr(new, name) != size:
            message = (
                f"job {old.id} was retried as {new.id}, with {name} {getattr(new, name)}: "
                f"when that has ended, retry it with the size you want"
            )
            raise PermanentError(message, code="retried")
