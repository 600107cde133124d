"""What a soak has found, each made to happen for certain: one provider, one Redis with AOF, one real worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchpipe.local_redis import find_server
from tests.chaos.audit import judge
from tests.chaos.crash_points import PACE
from tests.chaos.servers import Lane, SharedServers, requests, until


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[Lane]:
    """No server on this machine: skipped, but an error where CI is set."""
    if find_server() is None:
        reason = "no redis-server, valkey-server or bundled one was found"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with SharedServers(tmp_path / "servers") as shared_servers:
        lane = Lane(shared_servers, 1, pace=PACE)
        yield lane
        lane.close()


def test_a_file_that_is_another_document_is_fetched_again_and_its_rows_are_not_paid_twice(lane: Lane) -> None:
    """Seed 77: the size of a file, then its content, are answered 200 with a JSON object about nothing.
    The one row of the batch was paid; it must not be taken for missing and sent again.
    """
    for route in ("GET /v1/files/{id}", "GET /v1/files/{id}/content"):
        lane.sandbox.faults.add("replace", route=route, json={"object": "nonsense"}, times=1)
    job = lane.new_job(requests(1), attempts=3)
    lane.submit(job)
    lane.start("worker", pool="solo", concurrency=1, sweep_every=0.2)
    until(lambda: lane.store.jobs.get(job.id).closed, 60, "the end of the job")
    verdict = judge(lane, [job])
    assert verdict.good, verdict
