"""Batch records: the state of each batch, how a client sees it, and where it lies on disk."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from batchpipe.sandbox.clock import Clock
from batchpipe.sandbox.errors import ApiError
from batchpipe.sandbox.files import write_json

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
WINDOW_SECONDS = 24 * 3600
#: Endpoints with batches that report token usage.
TOKEN_ENDPOINTS = frozenset({"/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"})


@dataclass
class Usage:
    """Tokens summed over the rows that were answered."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def add(self, other: Usage) -> None:
        """Add another row's tokens."""
        self.input += other.input
        self.cached += other.cached
        self.output += other.output
        self.reasoning += other.reasoning

    def public(self) -> dict[str, Any]:
        """The `usage` of a batch object."""
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        }


@dataclass
class Batch:
    """One batch. `times` holds its `*_at`; `position` counts the rows that have been run."""

    id: str
    seq: int
    endpoint: str
    azure: bool
    input_file_id: str
    metadata: dict[str, str] | None
    output_expires_after: int | None
    created: float
    status: str = "validating"
    model: str | None = None
    errors: list[dict[str, Any]] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    times: dict[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)
    position: int = 0
    tokens: int = 0  #: of its input, while the queue counts them: see `quotas`
    output_bytes: int = 0
    error_bytes: int = 0
    hidden_until: float = 0.0
    files_hidden_until: float = 0.0  #: it has ended, but does not yet name its files
    paced_from: float | None = None  #: when its rows began to run; None: from now on
    project: str = "proj_sandbox"
    told: bool = False  #: a webhook was sent before its end
    forced: str | None = None  #: the end that an admin call or a fault has ordered

    @property
    def expires(self) -> float:
        """When the completion window ends."""
        return self.created + WINDOW_SECONDS

    @property
    def is_final(self) -> bool:
        """Whether its state is final."""
        return self.status in FINAL

    @property
    def job(self) -> str:
        """The batchpipe job, if the metadata name one."""
        return (self.metadata or {}).get("batchpipe_job", "")

    def public(self, *, with_metadata: bool = True, with_files: bool = True) -> dict[str, Any]:
        """OpenAI's Batch object."""
        canonical = self.endpoint if self.endpoint.startswith("/v1/") else f"/v1{self.endpoint}"
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id if with_files else None,
            "error_file_id": self.error_file_id if with_files else None,
            "created_at": int(self.created),
            "in_progress_at": self.times.get("in_progress"),
            "expires_at": int(self.expires),
            "finalizing_at": self.times.get("finalizing"),
            "completed_at": self.times.get("completed"),
            "failed_at": self.times.get("failed"),
            "expired_at": self.times.get("expired"),
            "cancelling_at": self.times.get("cancelling"),
            "cancelled_at": self.times.get("cancelled"),
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": self.usage.public() if canonical in TOKEN_ENDPOINTS else None,
            "metadata": self.metadata if with_metadata else None,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Batch:
        """Read a record back."""
        return cls(**{**document, "usage": Usage(**document["usage"])})


class Batches:
    """All batches, oldest first. `lock` guards the records; hold it while changing one."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._seq = 0
        self._batches: dict[str, Batch] = {}
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self.poke: Callable[[str], None] = lambda batch_id: None  # set by the engine
        folder.mkdir(parents=True, exist_ok=True)
        self._load()

    def _load(self) -> None:
        found = [Batch.from_json(orjson.loads(path.read_bytes())) for path in self._folder.glob("*/batch.json")]
        self._batches = {batch.id: batch for batch in sorted(found, key=lambda batch: batch.seq)}
        self._seq = max((batch.seq for batch in found), default=0)

    def folder(self, batch_id: str) -> Path:
        """Where a batch keeps its input and its unfinished output."""
        return self._folder / batch_id

    def new(self, **values: Any) -> Batch:
        """A batch in `validating`; not yet known to anyone."""
        return Batch(id=f"batch_{uuid.uuid4().hex}", seq=0, created=self._clock.now(), **values)

    def add(self, batch: Batch) -> None:
        """Make a batch known, as the newest."""
        with self.lock:
            self._seq += 1  # here, so that numbers and places in the list agree: paging depends on it
            batch.seq = self._seq
            self._batches[batch.id] = batch
            self.save(batch)

    def save(self, batch: Batch) -> None:
        """Write a record to disk and wake threads that wait for it. Call with the lock held."""
        if batch.id in self._batches:  # else a reset has removed it
            write_json(self.folder(batch.id) / "batch.json", asdict(batch))
        self._changed.notify_all()

    def find(self, batch_id: str, project: str | None = None) -> Batch:
        """The record, or a 404, also if it belongs to another project."""
        with self.lock:
            batch = self._batches.get(batch_id)
        if batch is None or project not in (None, batch.project):
            raise ApiError(404, f"No batch found with id '{batch_id}'.")
        return batch

    def all(self) -> list[Batch]:
        """All records, oldest first."""
        with self.lock:
            return list(self._batches.values())

    def get(self, batch_id: str) -> dict[str, Any]:
        """The Batch object as a client sees it."""
        batch = self.find(batch_id)
        with self.lock:
            return batch.public()

    def page(self, after: str | None, limit: int, project: str | None = None) -> tuple[list[Batch], bool]:
        """A page of the list, newest first, and whether there is more."""
        now = self._clock.now()
        below = self.find(after).seq if after else None
        with self.lock:
            page: list[Batch] = []
            for batch in reversed(self._batches.values()):
                if (below is not None and batch.seq >= below) or batch.hidden_until > now:
                    continue
                if project not in (None, batch.project):
                    continue
                if len(page) == limit:
                    return page, True
                page.append(batch)
        return page, False

    def cancel(self, batch_id: str) -> Batch:
        """Ask a batch to stop. Asking twice is fine; a batch that has ended refuses with a 409.

        OpenAI does not document that refusal; status and code are our choice.
        """
        batch = self.find(batch_id)
        with self.lock:
            if batch.is_final:
                message = f"Cannot cancel a batch with status '{batch.status}'."
                raise ApiError(409, message, code="batch_not_cancellable")
            if batch.status != "cancelling":
                batch.status = "cancelling"
                batch.times["cancelling"] = int(self._clock.now())
                self.save(batch)
        self.poke(batch_id)
        return batch

    def end(self, batch_id: str, status: str, errors: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Bring a batch to this end now and return it: `completed` runs the remaining rows, the others do not."""
        if status not in FINAL:
            raise ValueError(f"a batch ends as one of {', '.join(sorted(FINAL))}, not {status!r}")
        batch = self.find(batch_id)
        with self.lock:
            if not batch.is_final:
                batch.forced = status
                batch.errors = errors if status == "failed" else None
        self.poke(batch_id)
        return self.wait(batch_id)

    def wait(self, batch_id: str, status: str | None = None, *, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until a batch has this status, or has ended, and return it."""
        batch = self.find(batch_id)
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (batch.status == status if status else batch.is_final):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{batch_id} is still {batch.status!r} after {timeout} s")
                self._changed.wait(left)
            return batch.public()

    def join_projects(self, project: str) -> None:
        """All batches belong to this project from now on."""
        with self.lock:
            for batch in self._batches.values():
                batch.project = project
                self.save(batch)

    def clear(self) -> None:
        """Remove all batches and their folders."""
        with self.lock:
            gone = list(self._batches)
            self._batches.clear()
        for batch_id in gone:
            shutil.rmtree(self.folder(batch_id), ignore_errors=True)
