"""Faults that can be switched on: what goes wrong, where, how often."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

#: Faults of one HTTP call; hits are calls of the route.
HTTP_KINDS = frozenset(
    {
        "status",
        "delay",
        "delay_after",
        "drop_before",
        "drop_after",
        "truncate",
        "malformed",
        "replace",
        "no_metadata",
        "no_range",
        "drip",
        "slow_upload",
        "other_project",
    }
)
#: Faults of uploads; hits are uploads.
FILE_KINDS = frozenset({"file_quota", "file_not_ready"})
#: Those that answer instead of the sandbox: at most one of them applies to a call.
ANSWER_KINDS = frozenset({"status", "drop_before", "drop_after", "malformed", "replace"})
#: Faults of a whole batch; hits are batches.
BATCH_KINDS = frozenset(
    {
        "hide_from_list",
        "unknown_status",
        "token_limit",
        "fail_batch",
        "expire",
        "stuck",
        "file_id_lags",
        "file_lags",
        "webhook_lost",
        "webhook_delay",
        "webhook_twice",
        "webhook_early",
        "webhook_forged",
    }
)
#: Faults of single rows; hits are rows.
ROW_KINDS = frozenset({"row_fails", "row_missing", "row_body", "row_answer"})
KINDS = HTTP_KINDS | FILE_KINDS | BATCH_KINDS | ROW_KINDS


_NUMBERS = (
    "probability",
    "times",
    "after",
    "row_times",
    "status",
    "retry_after",
    "seconds",
    "bytes",
    "most",
    "fraction",
)


@dataclass(frozen=True, kw_only=True)
class _Common:
    route: str = "*"  #: e.g. `POST /v1/batches`, `GET /v1/files/{id}/content`; `*` matches anything
    probability: float = 1.0
    times: int | None = None  #: at most so many hits; None: for ever
    after: int = 0  #: let the first N pass
    where: Mapping[str, str] = field(default_factory=dict)  #: only batches with this metadata
    custom_id: str | None = None  #: only rows with a custom_id that matches this regular expression
    row_times: int | None = None  #: each row (job, custom_id) at most so often
    status: int | None = None
    code: str | None = None
    message: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  #: of a `status` answer
    body: str | None = None  #: raw body of a `status` answer, JSON or not
    json: Any = None  #: the document of `replace`; for `row_body`: fields of the answer's body, or the body
    processed: bool | None = None  #: `status`, `malformed`, `replace`: is the request carried out?
    seconds: float = 1.0
    #: `truncate`: "short" breaks off, "clean" looks whole; `row_answer`: "invalid" (as without one), "cut", "refused"
    mode: str = "short"
    bytes: int | None = None  #: `truncate`: how much is sent; `drip`, `slow_upload`: how much in `seconds`
    most: int = 0  #: `file_quota`: files that a project may hold
    fraction: float | None = None  #: share kept (`truncate`, `file_lags`), hit (rows), or done before (`expire`)
    shape: str = "validation"  #: `token_limit`: "validation" or "create"
    errors: list[dict[str, Any]] | None = None  #: `fail_batch`: its `errors.data`
    billed: bool = False  #: faults of rows: was the row paid for all the same?


@dataclass(frozen=True)
class Fault(_Common):
    """Something that goes wrong. `kind` says what; the other fields are its arguments."""

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault kind {self.kind!r}; known: {', '.join(sorted(KINDS))}")
        modes = ("invalid", "cut", "refused") if self.kind == "row_answer" else ("short", "clean")
        if self.mode not in modes and (self.kind, self.mode) != ("row_answer", "short"):
            raise ValueError(f"unknown {self.kind} mode {self.mode!r}; known: {', '.join(modes)}")
        if self.shape not in ("validation", "create"):
            raise ValueError(f"unknown token_limit shape {self.shape!r}; known: validation, create")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or value < 0):
                raise ValueError(f"{name} must be a number that is not negative, not {value!r}")
        if not isinstance(self.where, Mapping) or not isinstance(self.route, str):
            raise ValueError("where must be an object, route a text")
        if not isinstance(self.headers, Mapping) or not all(
            isinstance(part, str) and re.fullmatch(r"[ -~]*", part) for pair in self.headers.items() for part in pair
        ):
            raise ValueError("headers must be an object of texts in ASCII")
        if self.custom_id is not None:
            try:
                re.compile(self.custom_id)
            except (re.error, TypeError) as error:
                raise ValueError(f"custom_id is not a regular expression: {error}") from None

    @classmethod
    def from_json(cls, document: object) -> Fault:
        """Build a fault from the JSON of the admin route or the command line."""
        known = {entry.name for entry in fields(cls)}
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise ValueError('a fault is a JSON object with a "kind"')
        if unknown := sorted(set(document) - known):
            raise ValueError(f"unknown fault arguments: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**document)


class ActiveFault:
    """A fault that is switched on, and how often it was considered (`seen`) and applied (`hits`)."""

    def __init__(self, fault: Fault) -> None:
        self.id = f"fault_{uuid.uuid4().hex[:12]}"
        self.fault = fault
        self.seen = 0
        self.hits = 0
        self.rows: Counter[tuple[str, str]] = Counter()

    def as_json(self) -> dict[str, Any]:
        """Its description for the admin route."""
        return {"id": self.id, "seen": self.seen, "hits": self.hits, **asdict(self.fault)}


class Faults:
    """The faults that are switched on. Safe to use from any thread."""

    def __init__(self, seed: str | None = None) -> None:
        self._lock = threading.Lock()
        self._seed = seed or "sandbox"
        self._dice = random.Random(self._seed)
        self._active: list[ActiveFault] = []
        self._has_row_faults = False
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change (a batch that was stuck may go on)."""
        self._listeners.append(listener)

    def add(self, fault: Fault | str, **arguments: Any) -> ActiveFault:
        """Switch a fault on: `add(Fault("status", status=503))` or `add("status", status=503)`."""
        active = ActiveFault(Fault(fault, **arguments) if isinstance(fault, str) else fault)
        with self._lock:
            self._active.append(active)
        self._changed()
        return active

    def remove(self, fault: ActiveFault | str) -> bool:
        """Switch one fault off, by id or object. False if it was not on."""
        wanted = fault if isinstance(fault, str) else fault.id
        with self._lock:
            kept = [active for active in self._active if active.id != wanted]
            found = len(kept) < len(self._active)
            self._active = kept
        self._changed()
        return found

    def clear(self) -> None:
        """Switch all faults off."""
        with self._lock:
            self._active = []
            self._dice = random.Random(self._seed)
        self._changed()

    @property
    def active(self) -> list[ActiveFault]:
        """All faults that are on, in the order in which they were added."""
        with self._lock:
            return list(self._active)

    def is_on(self, fault_id: str) -> bool:
        """Whether this fault has not been switched off."""
        return any(active.id == fault_id for active in self.active)

    def for_call(self, route: str, path: str) -> list[Fault]:
        """The faults that apply to this HTTP call; of those that answer it, only the first."""
        struck: list[Fault] = []
        answered = False
        with self._lock:
            for active in self._active:
                fault = active.fault
                if fault.kind not in HTTP_KINDS or fault.kind in ("no_metadata", "other_project"):
                    continue
                if (answered and fault.kind in ANSWER_KINDS) or not _route_matches(_route(fault), route, path):
                    continue
                if self._strike(active):
                    struck.append(fault)
                    answered = answered or fault.kind in ANSWER_KINDS
        return struck

    def hides_metadata(self, route: str, path: str) -> bool:
        """Whether this call returns batches without their metadata."""
        return self._strikes_call("no_metadata", route, path)

    def changes_project(self, route: str, path: str) -> bool:
        """Whether this call is answered as if its key were another project's."""
        return self._strikes_call("other_project", route, path)

    def _strikes_call(self, kind: str, route: str, path: str) -> bool:
        with self._lock:
            return any(
                self._strike(active)
                for active in self._active
                if active.fault.kind == kind and _route_matches(active.fault.route, route, path)
            )

    def for_upload(self, kind: str, files: int) -> Fault | None:
        """The first fault of this kind that applies to an upload to a project with so many files."""
        with self._lock:
            for active in self._active:
                if active.fault.kind == kind and files >= active.fault.most and self._strike(active):
                    return active.fault
        return None

    def for_batch(self, kind: str, metadata: Mapping[str, str], shape: str | None = None) -> ActiveFault | None:
        """The first fault of this kind that applies to a batch."""
        with self._lock:
            for active in self._active:
                fault = active.fault
                if fault.kind != kind or (shape is not None and fault.shape != shape):
                    continue
                if _where_matches(fault, metadata) and self._strike(active):
                    return active
        return None

    def for_row(self, metadata: Mapping[str, str], custom_id: str) -> Fault | None:
        """The first fault that applies to a row."""
        if not self._has_row_faults:  # the usual case, asked for each row
            return None
        row = (metadata.get("batchpipe_job", ""), custom_id)
        with self._lock:
            for active in self._active:
                if active.fault.kind not in ROW_KINDS or not self._row_matches(active, metadata, row):
                    continue
                if self._strike(active):
                    active.rows[row] += 1
                    return active.fault
        return None

    def _row_matches(self, active: ActiveFault, metadata: Mapping[str, str], row: tuple[str, str]) -> bool:
        fault = active.fault
        if fault.custom_id is not None and re.search(fault.custom_id, row[1]) is None:
            return False
        if fault.row_times is not None and active.rows[row] >= fault.row_times:
            return False
        # Which rows make up the fraction depends on their ids alone, so a test can rely on it.
        if fault.fraction is not None and _share(self._seed, fault.kind, row[1]) >= fault.fraction:
            return False
        return _where_matches(fault, metadata)

    def _strike(self, active: ActiveFault) -> bool:
        fault = active.fault
        active.seen += 1
        if active.seen <= fault.after or (fault.times is not None and active.hits >= fault.times):
            return False
        if fault.probability < 1 and self._dice.random() >= fault.probability:
            return False
        active.hits += 1
        return True

    def _changed(self) -> None:
        with self._lock:
            self._has_row_faults = any(active.fault.kind in ROW_KINDS for active in self._active)
        for listener in self._listeners:
            listener()


def _route(fault: Fault) -> str:
    """Only transfers are worth cutting or slowing down, unless a route is named."""
    if fault.route == "*" and fault.kind in ("truncate", "no_range", "drip"):
        return "GET /v1/files/{id}/content"
    return "POST /v1/files" if fault.route == "*" and fault.kind == "slow_upload" else fault.route


def _route_matches(pattern: str, route: str, path: str) -> bool:
    """`route` has `{id}` for ids, `path` (method and path) has the ids themselves."""
    return fnmatchcase(route, pattern) or fnmatchcase(path, pattern)


def _where_matches(fault: Fault, metadata: Mapping[str, str]) -> bool:
    return all(metadata.get(key) == value for key, value in fault.where.items())


def _share(*parts: str) -> float:
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
