"""Rows sent on to a real server: a second sandbox plays it."""

from __future__ import annotations

import socket
import time

import pytest

from batchpipe.sandbox import Sandbox
from batchpipe.sandbox.options import OptionArgs
from batchpipe.sandbox.upstream import join_url


@pytest.fixture
def upstream(sandbox):
    """The shared sandbox, as the server behind."""
    return sandbox


@pytest.fixture
def front(upstream, api_for):
    """A sandbox that sends its rows on, and a client on it."""
    with Sandbox(
        validating_seconds=0, upstream=upstream.base_url, upstream_api_key="k", upstream_tries=3, upstream_concurrency=4
    ) as sandbox:
        yield api_for(sandbox)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://h/v1", "http://h/v1/embeddings"),
        ("http://h/v1/", "http://h/v1/embeddings"),
        ("http://h", "http://h/v1/embeddings"),
        ("http://h/gateway", "http://h/gateway/v1/embeddings"),
    ],
)
def test_v1_is_not_doubled(base, expected):
    """Users give the upstream with or without it."""
    assert join_url(base, "/v1/embeddings") == expected


def test_rows_are_answered_by_the_upstream(front, upstream, rows):
    """One call per row, answers and usage as the upstream gave them, all rows billed once."""
    batch = front.run(rows(40))

    assert batch.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
    assert upstream.calls.counts == {"POST /v1/chat/completions": 40}
    assert front.ids(batch.output_file_id) == {f"r{n}" for n in range(40)}
    assert batch.usage.total_tokens > 0
    assert set(front.sandbox.ledger.billed.values()) == {1}


def test_an_upstream_that_falters_is_asked_again(front, upstream, rows):
    """429, 5xx and dropped connections are tried again; the row is fine in the end."""
    for fault in ({"kind": "status", "status": 429, "retry_after": 0}, {"kind": "drop_before"}):
        kind = fault.pop("kind")
        upstream.faults.add(kind, times=1, **fault)

    assert front.run(rows(2)).request_counts.completed == 2
    assert upstream.calls.count("POST /v1/chat/completions") == 4


def test_what_the_upstream_refuses_for_good_is_an_error_line(front, upstream, rows):
    """Its status and body stand in the line; a 4xx is not tried again, a 5xx a few times."""
    upstream.faults.add("status", status=422, message="no such model", times=1)
    batch = front.run(rows(1))
    [line] = front.lines(batch.error_file_id)
    assert (line["response"]["status_code"], line["response"]["body"]["error"]["message"]) == (422, "no such model")
    assert upstream.calls.count("POST /v1/chat/completions") == 1

    upstream.faults.add("status", status=503, retry_after=0, body="<html>")
    [line] = front.lines(front.run(rows(1)).error_file_id)
    assert (line["response"]["status_code"], line["response"]["body"]["error"]["message"]) == (503, "<html>")
    assert upstream.calls.count("POST /v1/chat/completions") == 1 + 3
    assert front.sandbox.ledger.total == 0


def test_concurrency_is_bounded(front, upstream, rows, until):
    """Never more than upstream_concurrency calls at once."""
    upstream.faults.add("delay", seconds=0.1)
    batch = front.create(rows(30))
    most = 0

    def ended():
        nonlocal most
        most = max(most, sum(call.status is None for call in upstream.calls))
        return front.sandbox.batches.find(batch.id).is_final

    until(ended)
    assert 2 <= most <= 4


def test_a_cancel_lets_running_rows_end_and_starts_no_more(front, upstream, rows, until):
    """They are paid, so they are kept."""
    upstream.faults.add("delay", seconds=0.05)
    batch = front.create(rows(200))
    until(lambda: front.client.batches.retrieve(batch.id).request_counts.completed)
    front.client.batches.cancel(batch.id)
    ended = front.wait(batch)

    done, skipped = front.ids(ended.output_file_id), front.ids(ended.error_file_id)
    assert ended.status == "cancelled"
    assert (len(done) + len(skipped), done & skipped) == (200, set())
    assert len(done) == upstream.calls.count("POST /v1/chat/completions") < 200


def test_stopping_does_not_wait_for_a_hanging_upstream(upstream, api_for, rows, until, tmp_path):
    """The sandbox ends at once; started again on the same folder it asks again."""
    fault = upstream.faults.add("delay", seconds=3)
    options: OptionArgs = {"upstream": upstream.base_url, "upstream_api_key": "k", "data_dir": tmp_path}
    with Sandbox(**options) as sandbox:
        batch = api_for(sandbox).create(rows(3))
        until(lambda: upstream.calls.count("POST /v1/chat/completions"))
        began = time.monotonic()
    assert time.monotonic() - began < 2
    upstream.faults.remove(fault)

    with Sandbox(**options) as sandbox:
        assert api_for(sandbox).wait(batch).request_counts.completed == 3


def test_an_upstream_that_is_not_there_fails_the_rows(api_for, rows):
    """As 502 lines that say so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Sandbox(validating_seconds=0, upstream=url, upstream_tries=1) as sandbox:
            api = api_for(sandbox)
            [line] = api.lines(api.run(rows(1)).error_file_id)

    assert line["response"]["status_code"] == 502
    assert line["response"]["body"]["error"]["code"] == "upstream_unreachable"
