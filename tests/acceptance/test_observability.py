"""Seeing what goes on: `metrics` scraped over HTTP, `logs --follow`, a worker's log in JSON."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.user_machine import API_KEY, Finished, Machine, Process, until


class Seen(NamedTuple):
    """One job, and what was seen of it."""

    job: str
    followed: Finished
    lines: Finished
    scraped: dict[tuple[str, str], float]
    exporter: Finished
    worker_log: str
    metrics: dict[str, Any]


def scrape(exporter: Process) -> dict[tuple[str, str], float]:
    """Metric and its labels (as text, without the account) -> number."""
    (url,) = re.findall(r"http://\S+", exporter.err)
    with urllib.request.urlopen(url, timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, " ".join(v for k, v in sorted(sample.labels.items()) if k != "account")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def machine(new_machine: Callable[..., Machine]) -> Machine:
    return new_machine("seeing", BATCHPIPE_LOG_FORMAT="json")


@pytest.fixture(scope="module")
def seen(machine: Machine) -> Seen:
    """Two workers, one of them with forked children, one job of three shards, and everything that looks at it."""
    job = machine.submit(machine.input(12), "--max-rows", "4")
    follower = machine.start("logs", job, "--follow", "--json")
    reader = machine.start("logs", job, "--follow")
    exporter = machine.start("metrics", "--port", "0")
    workers = [machine.worker("--concurrency", "2", wait=False), machine.worker("--pool", "prefork", wait=False)]
    with ThreadPoolExecutor(2) as pool:
        followed, lines = pool.map(Process.finish, (follower, reader))
    until(lambda: "http://" in exporter.err, what="the exporter listens")
    # a turn hands over its counts after it has told the end
    until(lambda: scrape(exporter)["batchpipe_turns_total", "done merge"] == 1, what="the last turn is counted")
    scraped = scrape(exporter)
    exporter.popen.send_signal(signal.SIGTERM)
    return Seen(
        job,
        followed,
        lines,
        scraped,
        exporter.finish(10),
        "".join(worker.err for worker in workers),
        machine.python("import json, sys, batchpipe; print(json.dumps(batchpipe.get_job(sys.argv[1]).metrics()))", job),
    )


def test_a_log_is_followed_until_the_job_has_told(seen: Seen) -> None:
    """One JSON object a line, each event once; then it ends by itself."""
    assert seen.followed.code == 0, seen.followed.err
    events = [json.loads(line) for line in seen.followed.out.splitlines()]
    assert events[0]["event"] == "submitted"
    assert events[-1]["event"] == "ended"
    assert [event["event"] for event in events].count("collected") == 3
    assert len({event["id"] for event in events}) == len(events)


def test_a_log_is_followed_as_text(seen: Seen) -> None:
    assert seen.lines.code == 0, seen.lines.err
    assert len(seen.lines.out.splitlines()) == len(seen.followed.out.splitlines())
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ended +state=succeeded", seen.lines.out, re.MULTILINE)


def test_a_followed_log_of_an_unknown_job_is_an_error(machine: Machine) -> None:
    done = machine.run("logs", "job_unknown", "--follow")
    assert (done.code, done.out) == (1, "")
    assert "job_unknown" in done.err


def test_counts_of_all_workers_are_scraped(seen: Seen) -> None:
    """Whoever took which turn: threads of one worker, forked children of the other."""
    found = seen.scraped
    assert found["batchpipe_up", ""] == 1
    assert found["batchpipe_jobs", "succeeded"] == 1
    assert found["batchpipe_rows_total", "ok"] == 12
    assert found["batchpipe_turns_total", "continue create"] == 3
    assert found["batchpipe_provider_calls_total", "POST /batches 200"] == 3
    assert found["batchpipe_provider_calls_total", "POST /files 200"] == 3
    assert found["batchpipe_stage_seconds_count", "created"] == 3
    assert found["batchpipe_sweeps_total", ""] >= 1
    assert found["batchpipe_sweep_age_seconds", ""] < 60
    assert not [labels for _, labels in found if "job_" in labels or "batch_" in labels]


def test_one_job_tells_the_same(seen: Seen) -> None:
    observed = seen.metrics
    assert observed["rows"] == {"total": 12, "ok": 12, "failed": 0, "missing": 0}
    assert (observed["batches"], observed["uploads"], observed["rounds"]) == (3, 3, 1)
    assert observed["tokens"]["total_tokens"] == seen.scraped["batchpipe_tokens_total", "total_tokens"]


def test_the_exporter_ends_when_it_is_told(seen: Seen) -> None:
    """With 0, and it listened on this machine alone."""
    assert seen.exporter.code == 0, seen.exporter.err
    assert seen.exporter.err.startswith("metrics at http://127.0.0.1:")


def test_a_port_that_is_taken_is_one_line(machine: Machine) -> None:
    exporter = machine.start("metrics", "--port", "0")
    until(lambda: "http://" in exporter.err, what="the exporter listens")
    port = re.findall(r":(\d+)/", exporter.err)[0]
    done = machine.run("metrics", "--port", port)
    exporter.interrupt()
    assert exporter.finish(10).code == 0
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert port in done.err


def test_the_log_of_a_worker_says_of_each_line_whom_it_is_about(seen: Seen) -> None:
    """Celery's lines, too; one JSON object each, and none with the key."""
    lines = [json.loads(line) for line in seen.worker_log.splitlines()]
    assert API_KEY not in seen.worker_log
    received = [line for line in lines if "received" in line["message"] and "batchpipe." in line["message"]]
    ended = [line for line in lines if "succeeded in" in line["message"] and "batchpipe." in line["message"]]
    assert received
    assert ended
    for line in (*received, *ended):
        assert line["job"] == seen.job, line
    events = {line["event"]: line for line in lines if "event" in line}
    assert {"planned", "created", "collected", "ended"} <= events.keys()
    assert events["collected"]["batch"].startswith("batch_")
    assert events["collected"]["account"] == "default"
