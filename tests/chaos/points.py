"""Where a worker can be stopped: before and after every door it goes through.

The doors are wrapped in the processes of these tests only; the product has no code for this. ``CHAOS_POINT`` arms some:
``after:store.advance#2=kill`` is kill -9 of the whole process group right after the second ``advance``, ``=stop``
freezes the process there; several stand with commas between them. ``CHAOS_MARKER.kill`` (or ``.stop``) is a file that
is made when a point strikes: it strikes once over all processes.
``CHAOS_RECORD`` is a file that gets the name of each point that is passed.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

_POINT = re.compile(r"(?P<name>(?:before|after):[^#=]+)(?:#(?P<nth>\d+))?=(?P<act>kill|stop)")
#: What differs from run to run in the name of a file: numbers, tokens.
_UNIQUE = re.compile(r"batchpipe-[0-9a-f]{8}|[0-9a-f]{16,64}|job_\w+|job\d+-\d+|\d+")


@dataclass(frozen=True)
class Point:
    """Where to strike, at which pass, and how: ``kill`` or ``stop``."""

    name: str
    nth: int = 1
    act: str = "kill"

    @classmethod
    def parse(cls, text: str) -> Point:
        found = _POINT.fullmatch(text)
        if found is None:
            raise ValueError(f"not a point: {text!r}")
        return cls(found["name"], int(found["nth"] or 1), found["act"])

    def __str__(self) -> str:
        return f"{self.name}#{self.nth}={self.act}"


class Guard:
    """Sees every pass of a point in this process; strikes at the armed ones, and records."""

    def __init__(self, armed: Sequence[Point], marker: str, record: str | None) -> None:
        self._armed, self._marker = armed, marker
        self._lock = threading.Lock()
        self._passes: Counter[Point] = Counter()
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if record else None

    def passed(self, name: str) -> None:
        if self._record is not None:
            os.write(self._record, f"{name}\n".encode())
        for point in self._armed:
            if point.name == name and self._is_due(point):
                self._strike(point.act)

    def _is_due(self, point: Point) -> bool:
        with self._lock:
            self._passes[point] += 1
            if self._passes[point] != point.nth:
                return False
        try:
            os.close(os.open(f"{self._marker}.{point.act}", os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True

    @staticmethod
    def _strike(act: str) -> None:
        if act == "kill":
            os.killpg(os.getpgrp(), signal.SIGKILL)
        else:
            os.kill(os.getpid(), signal.SIGSTOP)


def install_from_environment() -> None:
    """Wrap what the variables of this process ask for. Call it before any part of the pipeline is built."""
    point, record = os.environ.get("CHAOS_POINT"), os.environ.get("CHAOS_RECORD")
    if paying := os.environ.get("CHAOS_PAYING"):
        _note_the_paid_call(Path(paying))
    if point or record:
        armed = [Point.parse(text) for text in point.split(",")] if point else []
        _wrap_all(Guard(armed, os.environ.get("CHAOS_MARKER", ""), record).passed)


# -- the doors -----------------------------------------------------------------------------------------------------


def _wrap_all(passed: Callable[[str], None]) -> None:
    _wrap_provider(passed)
    _wrap_store(passed)
    _wrap_storage(passed)
    _wrap_celery(passed)


def _wrap_provider(passed: Callable[[str], None]) -> None:
    from batchpipe.provider import Api

    for name, method in list(vars(Api).items()):
        if inspect.isfunction(method) and not name.startswith("_") and name != "close":
            _wrap(Api, name, passed, _always(f"api.{name}"))


def _wrap_store(passed: Callable[[str], None]) -> None:
    from batchpipe.store import Connection
    from batchpipe.store.accounts import Accounts
    from batchpipe.store.events import Events

    _wrap(Connection, "run", passed, lambda args: f"store.{args[1]}")
    # writes that do not go through a script
    _wrap(Accounts, "resume", passed, _always("store.resume"))
    _wrap(Events, "add", passed, _always("store.log"))


def _wrap_storage(passed: Callable[[str], None]) -> None:
    from batchpipe.storage import Folder, LineFile
    from batchpipe.storage.atomic import LocalDraft

    _wrap(LocalDraft, "commit", passed, lambda args: f"storage.commit.{_kind(args[0]._path)}")
    _wrap(LineFile, "append", passed, lambda args: f"storage.append_line.{_kind(args[0].path.name)}")
    for name in ("copy", "remove"):
        _wrap(Folder, name, passed, _with_the_name(f"storage.{name}"))


def _wrap_celery(passed: Callable[[str], None]) -> None:
    from celery import signals
    from celery.worker.request import Request

    from batchpipe.tasks import celery_tasks, notifying, publishing

    for module, name in ((publishing, "publish"), (notifying, "notify"), (publishing, "revoke")):
        _wrap(module, name, passed, _always(f"tasks.{name}"))
    _wrap(celery_tasks, "_answer", passed, lambda args: f"turn.{args[0].name.removeprefix('batchpipe.')}")
    _wrap(Request, "acknowledge", passed, lambda args: f"celery.ack.{args[0].name.removeprefix('batchpipe.')}")

    # Celery's own publishing: the next link of a chain, a retry by countdown
    def before(sender: str = "", **_: Any) -> None:
        passed(f"before:celery.send.{sender.removeprefix('batchpipe.')}")

    def after(sender: str = "", **_: Any) -> None:
        passed(f"after:celery.send.{sender.removeprefix('batchpipe.')}")

    signals.before_task_publish.connect(before, weak=False)
    signals.after_task_publish.connect(after, weak=False)


def _wrap(owner: Any, name: str, passed: Callable[[str], None], label: Callable[[tuple[Any, ...]], str]) -> None:
    """Put a guard on both sides of a function, also where it raises."""
    original = getattr(owner, name)

    @wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        told = label(args)
        passed(f"before:{told}")
        try:
            return original(*args, **kwargs)
        finally:
            passed(f"after:{told}")

    @wraps(original)
    def guarded_items(*args: Any, **kwargs: Any) -> Any:
        told = label(args)
        passed(f"before:{told}")
        try:
            yield from original(*args, **kwargs)
        finally:
            passed(f"after:{told}")

    setattr(owner, name, guarded_items if inspect.isgeneratorfunction(original) else guarded)


def _always(label: str) -> Callable[[tuple[Any, ...]], str]:
    return lambda args: label


def _with_the_name(label: str) -> Callable[[tuple[Any, ...]], str]:
    return lambda args: f"{label}.{_kind(args[1])}"


def _kind(path: str) -> str:
    """What sort of file a path names: the same for each shard, token and job."""
    folder, name = os.path.split(path)
    parent = os.path.basename(folder)
    return "-".join(part for part in re.split(r"\W+", _UNIQUE.sub("", f"{parent}/{name}")) if part) or "workspace"


def _note_the_paid_call(folder: Path) -> None:
    """Keep a file in ``folder``, named after the process group, from the last look at the clock until the paid call
    has returned: whoever freezes processes at random must not freeze this one there (that moment is tried on its own).
    """
    from batchpipe.pipeline.create_context import CreateContext
    from batchpipe.provider import Api

    looked, called = CreateContext.too_late_to_call, Api.create_batch

    def note() -> Path:
        return folder / f"{os.getpgrp()}-{os.getpid()}-{threading.get_ident()}"

    @wraps(looked)
    def too_late_to_call(self: Any) -> bool:
        note().touch()
        late = looked(self)
        if late:
            note().unlink(missing_ok=True)
        return late

    @wraps(called)
    def create_batch(self: Any, **arguments: Any) -> Any:
        try:
            return called(self, **arguments)
        finally:
            note().unlink(missing_ok=True)

    CreateContext.too_late_to_call = too_late_to_call  # type: ignore[method-assign]
    Api.create_batch = create_batch  # type: ignore[method-assign]
