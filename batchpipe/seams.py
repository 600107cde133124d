"""Where a framework hangs itself in. Imports nothing, so that a site which does so at its start does not wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Reads the ``Settings`` of this process at their first use; None: they are those of the environment.
site: Callable[[], Any] | None = None

#: Where one process holds several sites: the ``Settings`` and the Celery app of the one whose code calls; None of
#: either: those of the process.
settings_here: Callable[[], Any] | None = None
app_here: Callable[[], Any] | None = None

#: Takes a function to call on commit, and answers False if there is no transaction to wait for.
hold: Callable[[Callable[[], None]], bool] | None = None

#: Called with the id of each job that ends in this process, by name.
listeners: dict[str, Callable[[str], None]] = {}
