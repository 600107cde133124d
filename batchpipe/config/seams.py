"""Where a framework hangs itself in. Imports nothing, so that a site which does so at its start does not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

#: Reads the ``Settings`` of this process at their first use; None: they are those of the environment.
site: Callable[[], Any] | None = None

#: Where one process holds several sites: the ``Settings`` and the Celery app of the one whose code calls; None of
#: either: those of the process.
settings_here: Callable[[], Any] | None = None
app_here: Callable[[], Any] | None = None

#: Reads the settings of the site that calls again, where it has read them at its start and kept them.
read_again: Callable[[], None] | None = None

#: What a worker's time limit raises in the middle of a task.
out_of_time: tuple[type[Exception], ...] = ()

#: Takes a function to call on commit, and answers False if there is no transaction to wait for.
hold: Callable[[Callable[[], None]], bool] | None = None

#: Called with the id of each job that ends in this process, by name.
listeners: dict[str, Callable[[str], None]] = {}

#: Names of the listeners that are a framework's. A job that was submitted where one hangs waits for it at its end.
DJANGO, FLASK = "receivers of Django's signals", "receivers of Flask's signals"
#: Of each: the framework, and what starts a worker that has loaded the site.
SITES = {
    DJANGO: ("Django", "`manage.py batchpipe worker` or `celery -A proj worker`"),
    FLASK: ("Flask", "`flask --app ... batchpipe worker` or `celery -A ... worker`"),
}


def sites() -> list[str]:
    """Names of the frameworks' listeners that hang in this process."""
    return sorted(SITES.keys() & listeners.keys())


def worker_of(names: Iterable[str]) -> str:
    """What starts a worker that has loaded these listeners."""
    return ", ".join(SITES[name][1] for name in names if name in SITES) or "the worker of that site"
