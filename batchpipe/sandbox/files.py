"""The file store: contents on disk, each with a small JSON file next to it."""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from batchpipe.sandbox.clock import Clock
from batchpipe.sandbox.errors import ApiError

#: Purposes an upload may name.
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_EXPIRY, MAX_EXPIRY = 3600, 2_592_000


@dataclass(frozen=True)
class FileRecord:
    """One stored file, with the fields of OpenAI's object."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None
    seq: int
    part: int = 0  #: so many bytes are there until `whole_at`
    whole_at: float = 0.0
    project: str = "proj_sandbox"
    ready_at: float = 0.0  #: until then no batch may use it

    def size(self, now: float) -> int:
        """How many of its bytes are visible at this time of the sandbox clock."""
        return self.bytes if now >= self.whole_at else self.part

    def public(self, now: float | None = None) -> dict[str, Any]:
        """OpenAI's File object, as seen at `now` (None: when it is complete)."""
        fields = asdict(self)
        for name in ("seq", "part", "whole_at", "project", "ready_at"):
            del fields[name]
        fields["bytes"] = self.bytes if now is None else self.size(now)
        status = "processed" if now is None or now >= self.ready_at else "pending"
        return {"object": "file", **fields, "status": status, "status_details": None}


class FileStore:
    """Files by id, in the order of their creation. Expired ones are gone."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, FileRecord] = {}
        self._seq = 0
        #: Files that a key of another project asked for, or did not find in its list.
        self.hidden: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._load()

    def _load(self) -> None:
        for leftover in self._folder.glob("*.part"):
            leftover.unlink(missing_ok=True)
        found = [FileRecord(**orjson.loads(path.read_bytes())) for path in self._folder.glob("*.json")]
        self._files = {record.id: record for record in sorted(found, key=lambda record: record.seq)}
        self._seq = max((record.seq for record in found), default=0)

    def new_part(self) -> Path:
        """A path for an unfinished upload."""
        return self._folder / f"{uuid.uuid4().hex}.part"

    def adopt(
        self,
        source: Path,
        *,
        filename: str,
        purpose: str,
        expires_after: int | None,
        part: int = 0,
        whole_at: float = 0.0,
        project: str = "proj_sandbox",
        ready_after: float = 0.0,
    ) -> FileRecord:
        """Store a finished file. The source is moved, not copied.

        Until `whole_at` only its first `part` bytes are visible.
        """
        now = int(self._clock.now())
        # Batch files live for 30 days unless told otherwise; others until they are deleted.
        keep = expires_after if expires_after is not None else MAX_EXPIRY if purpose.startswith("batch") else None
        with self._lock:
            self._seq += 1
            record = FileRecord(
                id=f"file-{uuid.uuid4().hex[:24]}",
                bytes=source.stat().st_size,
                created_at=now,
                filename=filename,
                purpose=purpose,
                expires_at=None if keep is None else now + keep,
                seq=self._seq,
                part=part,
                whole_at=whole_at,
                project=project,
                ready_at=self._clock.now() + ready_after if ready_after else 0.0,
            )
            os.replace(source, self._data(record.id))
            write_json(self._folder / f"{record.id}.json", asdict(record))
            self._files[record.id] = record
        return record

    def get(self, file_id: str, project: str | None = None) -> FileRecord:
        """The record, or a 404, also if it belongs to another project."""
        with self._lock:
            record = self._files.get(file_id)
        if record is None or self._expired(record):
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        if project not in (None, record.project):
            self.hidden.add(file_id)
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return record

    def find(self, file_id: str) -> FileRecord | None:
        """The record, or None."""
        try:
            return self.get(file_id)
        except ApiError:
            return None

    def path(self, file_id: str) -> Path:
        """Where the content of a file lies, or a 404."""
        return self._data(self.get(file_id).id)

    def content(self, file_id: str) -> bytes:
        """The whole content, for tests."""
        return self.path(file_id).read_bytes()

    def all(self) -> list[FileRecord]:
        """All files that have not expired, oldest first."""
        with self._lock:
            records = list(self._files.values())
        for record in records:
            if self._expired(record):
                self._remove(record.id)
        return [record for record in records if not self._expired(record)]

    def of_project(self, project: str) -> list[FileRecord]:
        """The files that keys of this project see, oldest first."""
        records = self.all()
        self.hidden.update(record.id for record in records if record.project != project)
        return [record for record in records if record.project == project]

    def delete(self, file_id: str) -> None:
        """Remove a file, or a 404. A batch that reads it goes on: it holds a link of its own."""
        self.get(file_id)
        self._remove(file_id)

    def join_projects(self, project: str) -> None:
        """All files belong to this project from now on."""
        with self._lock:
            self._files = {file_id: replace(file, project=project) for file_id, file in self._files.items()}

    def clear(self) -> None:
        """Remove all files."""
        with self._lock:
            ids = list(self._files)
        for file_id in ids:
            self._remove(file_id)

    def _remove(self, file_id: str) -> None:
        with self._lock:
            self._files.pop(file_id, None)
        self.hidden.discard(file_id)
        self._data(file_id).unlink(missing_ok=True)
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)

    def _data(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.data"

    def _expired(self, record: FileRecord) -> bool:
        return record.expires_at is not None and self._clock.now() >= record.expires_at


def check_expiry(anchor: object, seconds: object, param: str) -> int:
    """Check an `expires_after` object and return its seconds."""
    if anchor != "created_at":
        raise ApiError(400, f"Invalid value: {anchor!r}. Supported values are: 'created_at'.", param=f"{param}.anchor")
    try:
        value = int(seconds) if isinstance(seconds, str | int) and not isinstance(seconds, bool) else None
    except ValueError:
        value = None
    if value is None or not MIN_EXPIRY <= value <= MAX_EXPIRY:
        raise ApiError(
            400,
            f"Invalid '{param}.seconds': expected an integer from {MIN_EXPIRY} to {MAX_EXPIRY}.",
            param=f"{param}.seconds",
        )
    return value


def write_json(path: Path, value: object) -> None:
    """Write so that a reader, even after a kill, sees the old or the new content, never a part of it."""
    part = path.with_suffix(".part")
    part.write_bytes(orjson.dumps(value))
    os.replace(part, path)
