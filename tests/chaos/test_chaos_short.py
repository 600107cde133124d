"""The short form of the fault suite: real workers, a real Redis with AOF, the sandbox with its faults on.

``make chaos`` is the long form: hundreds of jobs, every armed point, random pairs of points.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchpipe.local_redis import find_server
from tests.chaos.audit import Audit
from tests.chaos.faketime import FakeTime

ROOT = Path(__file__).parents[2]
ZEROS = Audit().zeros

#: About half a minute on a machine that is free; one that is not must not fail for that.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _has_redis() -> None:
    """No server on this machine: skipped, but an error where CI is set."""
    if find_server() is None:
        reason = "no redis-server, valkey-server or bundled one was found"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def short_form(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The table of one short run, in a process of its own: it has Celery apps and settings of its own."""
    told = tmp_path_factory.mktemp("chaos") / "table.json"
    command = [sys.executable, "-m", "tests.chaos", "--short", "--lanes", "4", "--json", str(told)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    print(done.stdout, done.stderr)
    assert told.exists(), done.stderr
    found: dict[str, Any] = json.loads(told.read_text())
    return {**found, "said": f"{done.stdout}\n{done.stderr}"}


@pytest.mark.parametrize("what", list(ZEROS))
def test_nothing_is_lost_or_paid_twice_whatever_is_killed(short_form: dict[str, Any], what: str) -> None:
    """One of the five zeros, over the soak and the armed points; a failure prints the seed."""
    assert short_form[what] == 0, short_form["said"]


def test_the_storm_did_what_it_was_told(short_form: dict[str, Any]) -> None:
    """A fault suite that kills nothing proves nothing."""
    expected = {
        "kill -9 of workers": 7,
        "kill -9 of Redis": 1,
        "freezes beyond the lease": 2,
        "times in which Redis was read-only": 1,
        "times in which Redis was full": 1,
        "moves of Redis' clock": 1 if FakeTime.is_installed() else 0,
    }
    assert {name: short_form[name] for name in expected} == expected
    assert short_form["API faults"]  # a fifth of all calls; a busy machine polls less


def test_every_armed_point_is_reached(short_form: dict[str, Any]) -> None:
    """A point that no worker passes any more must be taken off the list, or its door be found again."""
    assert short_form["of these struck"] == short_form["armed cases"], short_form["said"]


def test_a_late_paid_call_is_undone(short_form: dict[str, Any]) -> None:
    """Two workers freeze right before the paid call, thaw after another has made the batch, and call. One cancels its
    batch itself; the other is killed before it could, and one sweep does.
    """
    assert (short_form["late paid calls"], short_form["of these undone"]) == (2, 2), short_form["said"]
