"""The state of schedules: up to which time their runs are handled, and the outcome of the last one."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from batchpipe.model.records import Problem
from batchpipe.store.connection import Connection


@dataclass(frozen=True)
class LastRun:
    """The newest run of a schedule: the time it was meant for, and its job or why there is none."""

    at: float
    job: str | None = None
    error: Problem | None = None


@dataclass(frozen=True)
class Mark:
    """The state of a schedule. None: its runs were never looked for."""

    handled: float | None
    looked: float | None
    last: LastRun | None


class Schedules:
    """One hash for all schedules: ``NAME/FINGERPRINT`` is the mark, ``NAME//last`` the last run."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    @property
    def _schedules(self) -> str:
        return f"{self._redis.prefix}schedules"

    def handled_until(self, name: str, fingerprint: str) -> tuple[float, float]:
        """(now, time up to which its runs are handled); both are now for a definition that was never seen."""
        now, handled = self._redis.run("touch_schedule", [self._schedules], name, fingerprint)
        return float(now), float(handled)

    def mark_handled(self, name: str, fingerprint: str, handled: float | None, last: LastRun | None = None) -> None:
        """Note that its runs up to this time are handled; the mark never goes back."""
        mark = f"{handled:.6f}" if handled is not None else ""
        run = (f"{last.at:.6f}", _json(last)) if last else ("", "")
        self._redis.run("mark_schedule_handled", [self._schedules], name, fingerprint, mark, *run)

    def state(self, name: str, fingerprint: str) -> Mark:
        """The state of a schedule, read only."""
        mine = f"{name}/{fingerprint}"
        fields = (mine, f"{mine}/looked", f"{name}//last")
        handled, looked, last = self._redis.call("hmget", self._schedules, *fields)
        return Mark(_number(handled), _number(looked), _last_run(last))


def _number(text: str | None) -> float | None:
    return float(text) if text is not None else None


def _json(run: LastRun) -> str:
    error = {"code": run.error.code, "message": run.error.message} if run.error else None
    return orjson.dumps({"at": run.at, "job": run.job, "error": error}).decode()


def _last_run(text: str | None) -> LastRun | None:
    if text is None:
        return None
    found = orjson.loads(text)
    error = found.get("error")
    return LastRun(found["at"], found.get("job"), Problem(**error) if error else None)
