"""Jobs that have left files: which were submitted, where their workspaces lie, whether they ended, which are lost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import orjson

from batchpipe.config.account import SANDBOX_ACCOUNT
from batchpipe.config.settings import Settings
from batchpipe.errors import FILE_MISSING, InvalidInput, StorageTrouble
from batchpipe.model.views import EARLIER
from batchpipe.pipeline.manifest import MANIFEST, noted_workspaces, read_owner, submitted_at
from batchpipe.storage import Folder, local_path
from batchpipe.store import Store
from batchpipe.store.redis_label import label_of

#: The largest file that is read as a whole here.
_MOST_BYTES = 1 << 28
#: How many of the newest jobs are compared with Redis, and the folders of how many unknown ones are examined.
_COMPARED, _READ = 1_000, 200


@dataclass(frozen=True)
class FoundJob:
    """A job that was submitted, and where its files lie."""

    job: str
    workspace: str
    output: str
    record: dict[str, Any] | None = None  #: the submitted record, of a job that was not prepared on this host
    cancelled: bool = False  #: it was cancelled on this host
    redis: str | None = None  #: label of the Redis that it belongs to, as far as this tells
    taken: tuple[str, ...] = ()  #: labels of the Redis servers from which recover has taken it over

    def manifest(self) -> dict[str, Any] | None:
        """The manifest that prepare wrote; None if it did not get so far. Raises StorageTrouble."""
        return _manifest(self.workspace, self.job)

    @property
    def submitted_at(self) -> float:
        """From the id, for a job about which nothing else is known; 0 if the id does not tell."""
        return submitted_at(self.job)

    def has_ended(self) -> bool:
        """Whether its job.json, in its output or where that was moved, shows its end. Raises StorageTrouble."""
        for place in (self.output, _join(self.output, f"{EARLIER}/{self.job}"), _join(self.workspace, "results")):
            with suppress(InvalidInput):
                owner = read_owner(Folder(place))
                if owner is not None and owner.id == self.job and owner.ended:
                    return True
        return False

    def output_owner(self) -> str | None:
        """The job that the output's job.json names. Raises InvalidInput for one that is not ours, StorageTrouble."""
        owner = read_owner(Folder(self.output))
        return owner.id if owner is not None else None


def find_jobs(settings: Settings, folders: Sequence[str]) -> list[FoundJob]:
    """All jobs that have left traces in our home, under WORKSPACE or in ``folders``; each job once.

    Raises InvalidInput for a folder that is not there.
    """
    found = noted_jobs(settings)
    places = [*_below(settings.workspace)] if settings.workspace else []
    for folder in (str(settings.home / "jobs"), *folders):
        places += _workspaces_in(folder)
    for place in dict.fromkeys(places):
        with suppress(StorageTrouble):  # other people's folders may be there, too
            if (found_job := _found_at(place)) is not None:
                known = found.get(found_job.job, found_job)
                redis, taken = found_job.redis or known.redis, found_job.taken or known.taken
                found[found_job.job] = replace(found_job, cancelled=known.cancelled, redis=redis, taken=taken)
    return [found[job] for job in sorted(found)]


def check_folders(folders: Iterable[str]) -> None:
    """Raises InvalidInput for a local folder that is not there."""
    for folder in folders:
        path = local_path(folder)
        if path is not None and not os.path.isdir(path):
            raise InvalidInput(f"{folder}: no such folder", field="DIR", code="folder_missing")


def noted_jobs(settings: Settings) -> dict[str, FoundJob]:
    """The jobs that were submitted or prepared on this host, each once."""
    found: dict[str, FoundJob] = {}
    for noted in _noted(settings):
        found[noted.job] = _merged(found.get(noted.job), noted)
    return found


def lost_jobs(settings: Settings, store: Store) -> list[str]:
    """Ids of the newest unfinished jobs of this host that their Redis does not know. Raises StoreUnavailable.

    Jobs older than the time for which ended jobs are kept are not included: their records may have expired normally.
    """
    label, since = label_of(settings), store.now() - settings.ttl_seconds
    ours = (job for job in noted_jobs(settings).values() if job.redis == label and job.submitted_at > since)
    newest = sorted(ours, key=lambda job: job.submitted_at, reverse=True)[:_COMPARED]
    unknown = (job for job in newest if store.jobs.account_of(job.job) is None)
    return [job.job for job in islice(unknown, _READ) if _is_unfinished(settings, job)]


def _is_unfinished(settings: Settings, job: FoundJob) -> bool:
    """Whether it has not ended, and enough of it is left to assume that somebody still wants it."""
    with suppress(StorageTrouble):
        if job.has_ended():
            return False
        found = job.manifest() or job.record
        return found is not None and not is_of_a_sandbox(settings, found)
    return False


def _merged(known: FoundJob | None, noted: FoundJob) -> FoundJob:
    """Merges the lines of one job: the later one counts."""
    if known is None:
        return noted
    # a later line without a record comes from its prepare
    record = known.record if noted.cancelled or noted.taken else None
    cancelled, taken = known.cancelled or noted.cancelled, known.taken + noted.taken
    return replace(noted, record=record, cancelled=cancelled, redis=noted.redis or known.redis, taken=taken)


def _noted(settings: Settings) -> Iterator[FoundJob]:
    """From the list that each submit and prepare on this host adds to: one for each line."""
    try:
        yield from _parsed(noted_workspaces(settings))
    except StorageTrouble as error:
        if error.code != FILE_MISSING:
            raise


def _parsed(lines: Iterable[bytes]) -> Iterator[FoundJob]:
    for line in lines:
        with suppress(orjson.JSONDecodeError, KeyError, TypeError):  # a crash may have cut a line
            noted = orjson.loads(line)
            if _is_id(noted["job"]):
                record = noted.get("record")
                yield FoundJob(
                    noted["job"],
                    str(noted["workspace"]),
                    str(noted["output"]),
                    record if isinstance(record, dict) else None,
                    noted.get("cancel") is True,
                    **_labels(noted),
                )


def _workspaces_in(folder: str) -> list[str]:
    """Where workspaces may lie in a folder: the folder itself, the one of an output, and the same one level deeper."""
    deeper = [*_below(folder)]
    return [folder, *_below(_join(folder, EARLIER)), *deeper, *(p for d in deeper for p in _below(_join(d, EARLIER)))]


def _below(folder: str) -> list[str]:
    try:
        return [_join(folder, name) for name in Folder(folder).names()]
    except StorageTrouble:  # a file, or a folder that we may not read
        return []


def _join(folder: str, name: str) -> str:
    return Folder(folder).path(name)


def _found_at(place: str) -> FoundJob | None:
    """The job of the workspace that lies here. If the whole output was moved, its new place counts."""
    manifest = _manifest(place)
    if manifest is None:
        return None
    job, stated, output = manifest["id"], str(manifest.get("workspace")), str(manifest.get("output"))
    if stated.rstrip("/") != place.rstrip("/") and _manifest(stated, job) is None:
        if stated.rstrip("/") == f"{output.rstrip('/')}/{EARLIER}/{job}":
            output = place.rstrip("/").removesuffix(f"/{EARLIER}/{job}")
        return FoundJob(job, place, output, **_labels(manifest))
    return FoundJob(job, stated, output, **_labels(manifest))


def redis_of(manifest: dict[str, Any]) -> str | None:
    """The label in a manifest, of the Redis that its worker used; None if it was written before there were labels."""
    label = manifest.get("redis")
    return label if isinstance(label, str) and label else None


def is_of_a_sandbox(settings: Settings, found: dict[str, Any] | None) -> bool:
    """Whether a manifest or record has the account that exists only during ``run --sandbox``."""
    return found is not None and found.get("account") == SANDBOX_ACCOUNT and SANDBOX_ACCOUNT not in settings.accounts


def _labels(found: dict[str, Any]) -> dict[str, Any]:
    taken = found.get("taken")
    labels = taken if isinstance(taken, list) else []
    return {"redis": redis_of(found), "taken": tuple(label for label in labels if isinstance(label, str))}


def _manifest(workspace: str, job: str | None = None) -> dict[str, Any] | None:
    """A manifest of ours: other programs also use this file name."""
    found = _json_object(workspace, MANIFEST)
    if found is None or not _is_id(found.get("id")) or not isinstance(found.get("shards"), list):
        return None
    return found if job in (None, found["id"]) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()  # it becomes part of file names and keys


def _json_object(folder: str, name: str) -> dict[str, Any] | None:
    """A JSON file; None if it is not there or holds something else. Raises StorageTrouble if it cannot be read."""
    try:
        with Folder(folder).reader(name) as file:
            value = orjson.loads(file.read(_MOST_BYTES))
    except StorageTrouble as error:
        if error.code != FILE_MISSING and not isinstance(error.__cause__, NotADirectoryError):
            raise
        return None
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
