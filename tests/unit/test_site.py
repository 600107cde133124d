"""What a process keeps, it keeps in a ``Site``: one for each Flask app, one for a Django site, one for a script."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batchpipe.config import site as site_module
from batchpipe.config.settings import Settings
from batchpipe.config.site import Site, current_settings, current_site, default_site, forget_sites, install_site

FORKED = """
import os, sys, threading, time
from batchpipe.config.site import current_site

def hold():
    with current_site().lock:
        held.set()
        time.sleep(60)

held = threading.Event()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(0 if current_site().is_first_time("in the child") and current_site().keep(list) == [] else 1)
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        os._exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.01)
os.kill(child, 9)
os._exit(3)
"""


class Slow:
    """What is made slowly, and counts how often."""

    made = 0

    def __init__(self, *given: object) -> None:
        time.sleep(0.05)
        type(self).made += 1


def read() -> Settings:
    """A new reading each time."""
    return Settings(_env_file=None)


def read_slowly() -> Settings:
    time.sleep(0.05)
    return read()


def test_threads_that_ask_at_once_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of a web server must not open two runtimes, nor use two readings of the settings."""
    monkeypatch.setattr(Slow, "made", 0)
    site = Site(read_slowly)
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda _: site.keep(Slow), range(8)))
        settings = list(pool.map(lambda _: site.settings, range(8)))

    assert Slow.made == 1
    assert len({*map(id, kept)}) == len({*map(id, settings)}) == 1


def test_what_is_kept_is_of_one_site_and_of_the_very_objects_it_was_made_of() -> None:
    """Settings that are equal, but were read again, are others: they may be of another Redis by now."""
    one, other, site = read(), read(), Site()

    assert site.keep(Slow, one) is site.keep(Slow, one)
    assert site.keep(Slow, one) is not site.keep(Slow, other)
    assert site.keep(Slow, one) is not Site().keep(Slow, one)
    assert site.keep(Slow) is not site.keep(Slow, one)


def test_what_settings_of_long_ago_have_opened_is_let_go() -> None:
    """A test suite of a site overrides its settings thousands of times."""
    site, first = Site(), object()
    kept = site.keep(Slow, first)
    for _ in range(4):
        site.keep(Slow, object())

    assert site.keep(Slow, first) is not kept


def test_what_is_used_stays_open_however_many_others_came() -> None:
    site, used = Site(), object()
    kept = site.keep(Slow, used)
    for _ in range(9):
        site.keep(Slow, object())
        assert site.keep(Slow, used) is kept


def test_what_failed_to_be_made_is_tried_again() -> None:
    site, tries = Site(), []

    def make() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("away")
        return 7

    with pytest.raises(OSError, match="away"):
        site.keep(make)
    assert site.keep(make) == 7


def test_a_warning_counts_as_new_once_or_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    site = Site()

    assert [
        site.is_first_time("gone", "job_1"),
        site.is_first_time("gone", "job_1"),
        site.is_first_time("gone", "job_2"),
    ] == [1, 0, 1]
    assert [site.is_first_time("idle", "q", seconds=60), site.is_first_time("idle", "q", seconds=60)] == [True, False]
    now[0] += 61
    assert [site.is_first_time("idle", "q", seconds=60), site.is_first_time("gone", "job_1")] == [True, False]


def test_the_memory_for_news_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that nobody knows come for as long as a process lives."""
    monkeypatch.setattr(site_module, "_NEWS_AT_MOST", 3)
    site = Site()
    for number in range(10):
        assert site.is_first_time("gone", number)

    assert not site.is_first_time("gone", 9)
    assert site.is_first_time("gone", 6), "the oldest are forgotten"


def test_a_site_takes_over_what_it_does_not_bring() -> None:
    """A site's Celery app may be set up before the site is installed, and a process may load two frameworks."""
    app: Any = object()
    default_site().app = app
    default_site().receivers["one"] = print
    site = Site(read)
    site.receivers["two"] = print
    install_site(site)

    assert current_site() is site
    assert current_site().current_app() is app
    assert list(site.receivers) == ["one", "two"]
    assert list(default_site().receivers) == ["one"]


def test_code_that_belongs_to_a_site_finds_that_one() -> None:
    """As Flask does it: by the context of an app, else the app that was registered last."""
    one, two, here = Site(read), Site(read), list[Site]()

    def find() -> Site | None:
        return here[0] if here else None

    install_site(one, find)
    install_site(two, find)
    assert current_site() is two
    here.append(one)
    assert current_site() is one
    assert current_settings() is one.settings
    assert current_settings() is not two.settings

    forget_sites()
    assert current_site() is default_site()
    assert current_site() not in (one, two)


def test_a_site_without_a_celery_app_publishes_through_the_one_set_up_outside_of_sites() -> None:
    """Two Flask apps in one process, and one Celery app of both, made where no Flask app is current."""
    sites: list[Site] = [Site(), Site()]
    here: list[Site | None] = [None]
    for site in sites:
        install_site(site, lambda: here[0])
    current_site().app = app = object()
    here[0] = sites[0]
    assert current_site() is sites[0]
    assert current_site().current_app() is app


def test_settings_are_read_at_their_first_use_and_again_when_they_are_dropped() -> None:
    site = install_site(Site(read))
    ahead = site.settings_to_be()

    assert current_settings() is not ahead, "what was only looked at is not kept"
    assert current_settings() is current_settings() is site.settings_to_be()
    known, site.settings = site.settings, None
    assert current_settings() is not known


def test_a_lock_that_is_held_at_a_fork_is_free_in_the_child() -> None:
    """A worker forks new children while its other threads sweep."""
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=60).returncode == 0


def test_importing_it_loads_no_library_of_ours() -> None:
    """A web server that starts does not wait for what it may never need."""
    code = "import sys, batchpipe.config.site; print([name for name in sys.modules if name.startswith('pydantic')])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_one_that_is_made_while_it_is_made_does_not_wait_for_itself() -> None:
    """A client that is made installs its settings, and asks for them."""
    site = Site(read)
    done = threading.Event()

    def make() -> Settings:
        done.set()
        return site.keep(read)

    assert site.keep(make) is site.keep(read)
    assert done.is_set()
