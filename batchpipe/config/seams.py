"""Where a framework registers its hooks. Imports nothing, so that it does not slow down the start of a site."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

#: Reads the ``Settings`` of this process at their first use; None: they come from the environment.
site: Callable[[], Any] | None = None

#: If one process holds several sites: the ``Settings`` and the Celery app of the calling site; None for either: those
#: of the process.
settings_here: Callable[[], Any] | None = None
app_here: Callable[[], Any] | None = None

#: Reads the settings of the calling site again, if it has kept those it read at its start.
read_again: Callable[[], None] | None = None

#: The errors that a worker's time limit raises in the middle of a task.
out_of_time: tuple[type[Exception], ...] = ()

#: Takes a function to call on commit, and returns False if there is no transaction to wait for.
hold: Callable[[Callable[[], None]], bool] | None = None

#: Listeners by name, called with the id of each job that ends in this process.
listeners: dict[str, Callable[[str], None]] = {}

#: Names of the frameworks' listeners. A job that is submitted where one is registered waits for it at its end.
DJANGO, FLASK = "receivers of Django's signals", "receivers of Flask's signals"
#: For each: the framework, and the command that starts a worker that has loaded the site.
SITES = {
    DJANGO: ("Django", "`manage.py batchpipe worker` or `celery -A proj worker`"),
    FLASK: ("Flask", "`flask --app ... batchpipe worker` or `celery -A ... worker`"),
}


def sites() -> list[str]:
    """Names of the frameworks' listeners that are registered in this process."""
    return sorted(SITES.keys() & listeners.keys())


def worker_of(names: Iterable[str]) -> str:
    """The command that starts a worker that has loaded these listeners."""
    return ", ".join(SITES[name][1] for name in names if name in SITES) or "the worker of that site"
