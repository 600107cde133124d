"""The one place for what a process keeps: a ``Site`` has the settings, the Celery app, the hooks and the open clients.

A Django site makes one, each Flask app one, a script gets one by default. Our other modules are imported only when they
are needed, so that a site starts no later.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from batchpipe.config.settings import Settings

T = TypeVar("T")

#: Names of the frameworks' receivers. A job that is submitted where one is registered waits for it at its end.
DJANGO, FLASK = "receivers of Django's signals", "receivers of Flask's signals"
#: For each: the framework, and the command that starts a worker that has loaded the site.
FRAMEWORKS = {
    DJANGO: ("Django", "`manage.py batchpipe worker` or `celery -A proj worker`"),
    FLASK: ("Flask", "`flask --app ... batchpipe worker` or `celery -A ... worker`"),
}
#: Of what a site keeps for different settings, the last few stay.
_KEPT_AT_MOST = 4
#: How many pieces of news a site remembers; then the oldest is forgotten.
_NEWS_AT_MOST = 10_000


class Site:
    """What one Django site, one Flask app or one script shares among its threads; forked children have a copy."""

    def __init__(self, read: Callable[[], Settings] | None = None) -> None:
        """``read`` the settings at their first use (None: from the environment). Errors that it raises appear there,
        so that a site starts and its checks can report them.
        """
        self.read = read
        #: The app to publish through, in every thread: Celery's own current app is one thread's.
        self.app: Any = None
        #: Finds the app each time, where it may be made after the site; None from it: ``app`` is used.
        self.find_app: Callable[[], Any] | None = None
        #: Takes a function to call on commit, and returns False if there is no transaction to wait for.
        self.on_commit: Callable[[Callable[[], None]], bool] | None = None
        #: By name: called with the id of each job that ends in this process, at least once; again if they raise.
        self.receivers: dict[str, Callable[[str], None]] = {}
        #: Sends a mail: subject, text, addresses. None: no framework that could is loaded.
        self.send_mail: Callable[[str, str, list[str]], None] | None = None
        #: Held while something is made that all threads share. A forked child gets a new one.
        self.lock = threading.RLock()
        self._settings: Settings | None = None
        self._kept: dict[Callable[..., Any], tuple[tuple[tuple[object, ...], Any], ...]] = {}
        self._news: dict[tuple[str, object], float] = {}
        _every_site.add(self)

    @property
    def settings(self) -> Settings:
        """The settings in use, read at their first use. Raises SettingsError."""
        if (known := self._settings) is not None:
            return known
        with self.lock:  # two threads of a web server must not use two different readings
            if self._settings is None:
                self._settings = self.settings_to_be()
            return self._settings

    @settings.setter
    def settings(self, settings: Settings | None) -> None:
        """Use these from now on (None: read them again at their next use)."""
        self._settings = settings

    def settings_to_be(self) -> Settings:
        """The settings, but not kept if they were not used yet: they may change until then. Raises SettingsError."""
        if (known := self._settings) is not None:
            return known
        if self.read is not None:
            return self.read()
        from batchpipe.config.loading import load_settings

        return load_settings()

    def current_app(self) -> Any:
        """The Celery app of this site, else the one of code that belongs to no site; None if none is known."""
        found = self.find_app() if self.find_app is not None else None
        return found or self.app or (_installed or _default).app

    def frameworks(self) -> list[str]:
        """Names of the frameworks' receivers that are registered here."""
        return sorted(FRAMEWORKS.keys() & self.receivers.keys())

    def keep(self, make: Callable[..., T], *given: object) -> T:
        """What ``make(*given)`` returned when first asked for with these very objects; later calls return the same."""
        kept = self._kept.get(make, ())
        if not (kept and _are_same(kept[0][0], given)):
            with self.lock:
                kept = self._kept.get(make, ())
                found = next((entry for entry in kept if _are_same(entry[0], given)), None) or (given, make(*given))
                others = (entry for entry in self._kept.get(make, ()) if entry is not found)
                kept = self._kept[make] = (found, *others)[:_KEPT_AT_MOST]  # what is used goes last
        made: T = kept[0][1]
        return made

    def is_first_time(self, topic: str, about: object = None, *, seconds: float = float("inf")) -> bool:
        """True for the first who asks, and again after so many seconds: so that a warning is given only then."""
        with self.lock:
            now, said = time.monotonic(), self._news.get((topic, about))
            if said is not None and now - said < seconds:
                return False
            self._news[topic, about] = now
            if len(self._news) > _NEWS_AT_MOST:
                del self._news[next(iter(self._news))]
            return True


def _are_same(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


# -- the sites of this process -------------------------------------------------------------------------------------

_every_site: WeakSet[Site] = WeakSet()
_default = Site()
_installed: Site | None = None
_finders: list[Callable[[], Site | None]] = []


def current_site() -> Site:
    """The site of the calling code if a framework can tell it, else the one installed last, else the default one."""
    for find in _finders:
        if (here := find()) is not None:
            return here
    return _installed or _default


def default_site() -> Site:
    """The site of a process without a framework; in others, what concerns the whole process."""
    return _default


def current_settings() -> Settings:
    """The settings of the current site. Raises SettingsError."""
    return current_site().settings


def use_sandbox() -> None:
    """Make the account ``default`` of this site, and of processes that it starts, a sandbox: as if SANDBOX were set."""
    from batchpipe.config.environment import set_sandbox

    set_sandbox()
    current_site().settings = None


def install_site(site: Site, find: Callable[[], Site | None] | None = None) -> Site:
    """Make this the site of code that belongs to no other one.

    It takes over what was registered before, and what it does not bring itself. ``find`` returns the site of the
    calling code, for a framework with several in one process; None where it does not know.
    """
    global _installed
    before = _installed or _default
    site.app = site.app or before.app
    site.on_commit = site.on_commit or before.on_commit
    site.send_mail = site.send_mail or before.send_mail
    site.receivers = {**before.receivers, **site.receivers}
    _installed = site
    if find is not None and find not in _finders:
        _finders.append(find)
    return site


def forget_sites() -> None:
    """As if this process had just started. For tests."""
    global _default, _installed
    _default, _installed = Site(), None
    _finders.clear()


def worker_of(names: Iterable[str]) -> str:
    """The command that starts a worker that has loaded these receivers."""
    return ", ".join(FRAMEWORKS[name][1] for name in names if name in FRAMEWORKS) or "the worker of that site"


def _renew_locks() -> None:
    """A thread that the child does not have may have held one."""
    for site in list(_every_site):
        site.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
