"""Celery in the versions that the package admits, with the kombu and the redis-py of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.user_machine import Place, read_rows
from tests.matrix.cache import environment, version_of

pytestmark = pytest.mark.matrix
#: version -> what pip is asked for
VERSIONS = {
    "5.5": ("celery[redis]==5.5.*", "kombu==5.5.*", "redis==5.2.*"),
    "5.6": ("celery[redis]==5.6.*", "kombu==5.6.*"),
}


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_ends_with_this_celery(version: str, pool: str, new_place: Callable[..., Place]) -> None:
    """Worker and beat, which sends the sweep."""
    place = new_place(f"celery-{version}-{pool}")
    place.interpreter = environment(f"celery-{version}", *VERSIONS[version])
    assert version_of(place.interpreter, "celery").startswith(f"{version}.")
    worker, beat = place.worker("--pool", pool, "--concurrency", "2"), place.start("beat")
    job = place.submit(place.input(6), "--max-rows", "2")

    assert place.run("wait", job, "--timeout", "60").code == 0, worker.err
    assert [row["custom_id"] for row in read_rows(place.folder / "out/output.jsonl")] == [f"r{n}" for n in range(6)]
    assert set(place.billed(job).values()) == {1}
    for process in (worker, beat):
        assert process.running
        assert "Traceback" not in process.err + process.out, process.err
