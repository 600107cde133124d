"""Celery in the versions that the package admits, with the kombu and the redis-py of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.user_machine import Machine, read_rows
from tests.matrix.cache import environment, version_of

pytestmark = pytest.mark.matrix
#: version -> what pip is asked for
VERSIONS = {
    "5.5": ("celery[redis]==5.5.*", "kombu==5.5.*", "redis==5.2.*"),
    "5.6": ("celery[redis]==5.6.*", "kombu==5.6.*"),
}


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_ends_with_this_celery(version: str, pool: str, new_machine: Callable[..., Machine]) -> None:
    """Worker and beat, which sends the sweep."""
    machine = new_machine(f"celery-{version}-{pool}")
    machine.interpreter = environment(f"celery-{version}", *VERSIONS[version])
    assert version_of(machine.interpreter, "celery").startswith(f"{version}.")
    worker, beat = machine.worker("--pool", pool, "--concurrency", "2"), machine.start("beat")
    job = machine.submit(machine.input(6), "--max-rows", "2")

    assert machine.run("wait", job, "--timeout", "60").code == 0, worker.err
    assert [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")] == [f"r{n}" for n in range(6)]
    assert set(machine.billed(job).values()) == {1}
    for process in (worker, beat):
        assert process.running
        assert "Traceback" not in process.err + process.out, process.err
