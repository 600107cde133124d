"""How a worker tells monitors of a task that is retried: with its reason, and without a traceback.

In a module of its own, because only workers need it: Celery loads it by the name that our tasks give.
"""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request


class TaskRequest(Request):  # type: ignore[misc]  # Celery has no types
    """Celery's own; but a poll that waits is no trouble, and should not look like trouble in Flower."""

    _reason: str | None = None

    @property
    def time_limits(self) -> tuple[None, None]:
        """The task's own limits, not those of the message: its publisher may have other settings."""
        return None, None

    @time_limits.setter
    def time_limits(self, given: object) -> None:
        pass

    def on_retry(self, exc_info: Any) -> None:
        reason = exc_info.exception
        while getattr(reason, "exc", None) is not None:  # ours, in Celery's Retry, in a wrapper of some pools
            reason = reason.exc
        self._reason = str(reason)
        super().on_retry(exc_info)

    def send_event(self, type: str, **fields: Any) -> None:
        """The traceback of a retry would only show our call of ``retry``."""
        if type == "task-retried" and self._reason is not None:
            fields |= {"exception": self._reason, "traceback": None}
        super().send_event(type, **fields)
