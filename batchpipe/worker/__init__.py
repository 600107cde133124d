"""The worker's process, a site's app and its checks. ``celery -A batchpipe.worker ...`` finds ``app`` here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

    app: Celery


def __getattr__(name: str) -> Any:
    """``app``, made at first use: other importers of this package need none."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from batchpipe.worker import process

    return process.app
