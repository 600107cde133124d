"""Copies of inputs that ``submit`` has made. A copy without a recorded job is removed after a day.

While a copy belongs to no recorded job, a note of it lies in HOME. So a sweep on this host can tell it from the input
of a job that its Redis has lost, which has no note: that one is kept for ``recover``.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import orjson

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import BatchpipeError
from batchpipe.model.records import JobRecord
from batchpipe.model.views import EARLIER
from batchpipe.pipeline.data_rows import SUBMIT, rows_file_of
from batchpipe.pipeline.manifest import submitted_at
from batchpipe.pipeline.recipes import RECIPE
from batchpipe.storage import Folder
from batchpipe.store import Store
from batchpipe.store.redis_label import label_of

logger = logging.getLogger(__name__)

#: The name of a copy in the workspace of its job.
COPIED_INPUT = "input.jsonl"
#: The folder of the notes in HOME: one for each copy, with the name of its job.
NOTES = "unrecorded"
#: How long the job of a copy may still be recorded: by a transaction that has not ended.
UNRECORDED_SECONDS = 86_400.0
#: How often a process looks through the notes.
LOOK_SECONDS = 60.0


def note_copy(settings: Settings, job: JobRecord) -> None:
    """Note that an input is about to be copied for a job that is not recorded yet."""
    note = {"workspace": job.workspace, "output": job.output, "redis": label_of(settings)}
    try:
        with _notes(settings).writer(job.id) as file:
            file.write(orjson.dumps(note))
    except (BatchpipeError, OSError) as error:  # a read-only home must not stop a job
        logger.warning("copied input not noted: %s", error, extra={"event": "copy_not_noted", "job": job.id})


def forget_copy(settings: Settings, job_id: str) -> None:
    """Remove the note: the job is recorded, or its copy has been removed. A note that stays is forgotten by a sweep."""
    with suppress(BatchpipeError, OSError):
        _notes(settings).remove(job_id)


def remove_copy(settings: Settings, job: JobRecord) -> None:
    """Remove what was copied for a job that is not recorded. Raises nothing: the caller is handling an error."""
    if job.has_copies:
        _remove(job.id, job.workspace, job.output)
        forget_copy(settings, job.id)


def remove_unrecorded_at_times(settings: Settings, store: Store, now: float) -> None:
    """``remove_unrecorded``, once a minute at most: each young note costs a question to Redis."""
    if current_site().is_first_time("copied inputs", settings.home, seconds=LOOK_SECONDS):
        remove_unrecorded(settings, store, now)


def remove_unrecorded(settings: Settings, store: Store, now: float) -> None:
    """Remove the copies noted on this host, if this Redis has not recorded their jobs within a day. Raises
    StoreUnavailable. ``now``: unix seconds.
    """
    try:
        jobs = _notes(settings).names()
    except (BatchpipeError, OSError) as error:
        logger.warning("notes of copied inputs not read: %s", error, extra={"event": "copies_not_read"})
        return
    for job_id in jobs:
        note = _read(settings, job_id)
        if note.get("redis") != label_of(settings):
            continue  # of another Redis, or a draft of a note
        if store.jobs.account_of(job_id) is not None:
            forget_copy(settings, job_id)
        elif 0 < submitted_at(job_id) < now - UNRECORDED_SECONDS:
            _remove(job_id, note["workspace"], note["output"])
            forget_copy(settings, job_id)


def _notes(settings: Settings) -> Folder:
    return Folder(str(settings.home / NOTES), private=True)


def _read(settings: Settings, job_id: str) -> dict[str, str]:
    """The note; {} if it is gone by now, or damaged."""
    try:
        with _notes(settings).reader(job_id) as file:
            note = orjson.loads(file.read())
    except (BatchpipeError, OSError, orjson.JSONDecodeError):
        return {}
    return note if isinstance(note, dict) and {"workspace", "output"} <= note.keys() else {}


def _remove(job_id: str, workspace: str, output: str) -> None:
    """Remove the workspace if there is nothing in it but the copy, and an output folder that was made for it alone."""
    folder = Folder(workspace, private=True)
    try:
        copies = (COPIED_INPUT, RECIPE, rows_file_of(SUBMIT))
        others = [name for name in folder.names() if name not in copies and not name.endswith(".part")]
        if others:  # the job was recorded somewhere and prepared
            logger.warning("the workspace %s of job %s is kept: it has %s", workspace, job_id, ", ".join(others[:3]))
            return
        folder.remove("")
        made = Folder(output, private=True)
        if output.rstrip("/").endswith(f"/{job_id}") and set(made.names()) <= {EARLIER}:
            made.remove("")
    except (BatchpipeError, OSError) as error:
        logger.warning("the copied input of job %s is left in %s: %s", job_id, workspace, error)
