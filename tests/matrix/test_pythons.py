"""Python in each version, with the newest of what batchpipe needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.user_machine import Machine, read_rows
from tests.matrix.cache import output
from tests.matrix.pythons import python

pytestmark = pytest.mark.matrix
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


@pytest.fixture(params=[pytest.param(it, marks=[pytest.mark.ci] * (it == "3.13")) for it in VERSIONS])
def interpreter(request: pytest.FixtureRequest) -> Path:
    found = python(request.param)
    assert output(found, "import sys; print('%d.%d' % sys.version_info[:2])") == request.param
    return found


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_job_ends_with_this_python(interpreter: Path, pool: str, new_machine: Callable[..., Machine]) -> None:
    """Commands and worker."""
    machine = new_machine(f"python-{pool}")
    machine.interpreter = interpreter
    worker = machine.worker("--pool", pool, "--concurrency", "2")
    job = machine.submit(machine.input(6), "--max-rows", "2")
    done = machine.run("wait", job, "--timeout", "60", "--json")

    assert done.code == 0, done.err + worker.err
    assert json.loads(done.out)["rows"]["ok"] == 6
    assert [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")] == [f"r{n}" for n in range(6)]
    assert set(machine.billed(job).values()) == {1}
    assert "Traceback" not in worker.err
