"""Whose an output is, where results lie, and what a Redis that lost everything must find in files."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import orjson

from batchpipe.errors import Never, StorageTrouble
from batchpipe.jobs import ENDED, JobRecord, ShardRecord
from batchpipe.labels import label_of
from batchpipe.settings import Settings
from batchpipe.splitting import Prepared
from batchpipe.storage import Folder
from batchpipe.views import EARLIER, ERROR_FILE, JOB_FILE, OUTPUT_FILE

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WORKSPACES = "workspaces.jsonl"


def manifest(job: JobRecord, done: list[ShardRecord], prepared: Prepared, redis: str) -> dict[str, Any]:
    """What recover needs to know of a job whose next round begins: nothing of it is secret.

    ``done`` are the shards of the rounds before, whole; of the new ones only what the provider cannot tell. ``redis``
    is the label of the Redis whose the job is.
    """
    return {
        **basics(job),
        "redis": redis,
        "round": job.round + 1,
        "order_files": [*job.order_files, prepared.order_file],
        "rows": prepared.rows if job.total is None else job.total,
        "shards": [
            *(msgspec.to_builtins(shard) for shard in done),
            *({"round": job.round + 1, **msgspec.to_builtins(plan)} for plan in prepared.shards),
        ],
    }


def basics(job: JobRecord) -> dict[str, Any]:
    """What a job is, whatever becomes of it: nothing of it changes."""
    fields = (
        *("v", "id", "name", "account", "endpoint", "completion_window", "metadata", "extra", "tags", "key", "queue"),
        *("input", "input_here", "spooled", "output", "workspace", "max_rows", "max_bytes", "attempts"),
        *("on_done", "hears", "created_at"),
    )
    return {name: getattr(job, name) for name in fields}


def note_workspace(settings: Settings, job: JobRecord, **more: Any) -> None:
    """Remember on this host where the job's workspace lies, and whose it is: recover reads it when Redis has forgotten.

    ``more``: its ``record`` while it has no manifest, ``cancel`` when it is to end, ``taken``: from which Redis recover
    has taken it over.
    """
    line = {"job": job.id, "workspace": job.workspace, "output": job.output, "redis": label_of(settings), **more}
    try:
        Folder(str(settings.home), private=True).append_line(WORKSPACES, orjson.dumps(line))
    except (StorageTrouble, OSError) as error:  # a read-only home must not stop a job
        logger.warning("workspace not noted: %s", error, extra={"event": "workspace_not_noted", "job": job.id})


def put_aside(job: JobRecord) -> str | None:
    """Results of an earlier job in the same output are paid for: they are moved, not overwritten. Answers its id."""
    output = Folder(job.output)
    owner, _, _ = output_owner(output)
    if owner is None or owner == job.id or not owner.isidentifier():  # it becomes a name, so it must be one of ours
        return None
    for name in (OUTPUT_FILE, ERROR_FILE, JOB_FILE):  # job.json last: until then this can be done again
        output.move(name, f"{EARLIER}/{owner}/{name}")
    return owner


def output_owner(output: Folder) -> tuple[str | None, str, bool]:
    """The id of the job that an output's job.json names, if there is one, its account, and whether it has ended."""
    try:
        with output.reader(JOB_FILE) as file:
            view = orjson.loads(file.read(1 << 24))
    except (StorageTrouble, orjson.JSONDecodeError):
        return None, "", True
    owner = view.get("id") if isinstance(view, dict) else None
    if not isinstance(owner, str):
        return None, "", True
    return owner, str(view.get("account")), view.get("state") in {state.value for state in ENDED}


def results_place(job: JobRecord) -> Folder:
    """Where an ended job's results lie now. Raises Never if another job's have taken their place."""
    output, earlier = Folder(job.output), Folder(f"{job.output.rstrip('/')}/{EARLIER}/{job.id}")
    if output_owner(output)[0] in (None, job.id):
        return output
    if earlier.exists(OUTPUT_FILE):
        return earlier
    raise Never(f"the results of job {job.id} are no longer in {job.output}", code="results_gone")


def pretty(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"
