"""What a program calls: submit, jobs, waiting, schedules. ``Client`` and ``default_client`` are loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchpipe.client.client import Client, default_client

__all__ = ["Client", "default_client"]


def __getattr__(name: str) -> Any:
    """Loads names at first use: a site imports a part of this package at its start, and must not load all of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from batchpipe.client import client

    return getattr(client, name)
