"""Redis has lost everything: `batchpipe recover` brings unfinished jobs back, and nothing is paid for twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Finished, Machine, batches_of, read_rows, until

pytestmark = pytest.mark.slow

NewMachine = Callable[..., Machine]
NewSandbox = Callable[..., Sandbox]
HELD_SECONDS = 60.0
ROWS = [f"r{number}" for number in range(6)]


def database(machine: Machine) -> redis.Redis:
    assert machine.redis_url is not None
    return redis.Redis.from_url(machine.redis_url)


def contents(machine: Machine) -> dict[bytes, Any]:
    with database(machine) as server:
        return {key: server.dump(key) for key in server.keys("*")}


def document(done: Finished) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.out)
    return found


def while_its_batches_run(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """The worker is killed and the database emptied; the job has one shard without a batch, too."""
    sandbox = new_sandbox()
    machine = new_machine("lost", provider=sandbox)
    stuck = sandbox.faults.add("stuck")
    sandbox.faults.add("delay", route="POST /v1/batches", seconds=HELD_SECONDS, times=1)
    worker = machine.worker()
    job = machine.submit(machine.input(6), "--max-rows", "2")
    until(lambda: len(batches_of(sandbox)) == 2 and sandbox.calls.counts["POST /v1/batches"] == 3, what="two batches")
    worker.kill()
    with database(machine) as server:
        server.flushdb()
    observed = {"machine": machine, "job": job, "sandbox": sandbox, "unknown": machine.run("status", job)}
    calls, posts = contents(machine), sandbox.calls.counts["POST /v1/batches"]
    observed["dry"] = machine.run("recover", "--dry-run", "--json")
    observed["untouched"] = (contents(machine), sandbox.calls.counts["POST /v1/batches"]) == (calls, posts)
    observed["done"] = machine.run("recover")
    observed["again"] = machine.run("recover", "--json")
    machine.worker()
    sandbox.faults.remove(stuck)
    observed["wait"] = machine.run("wait", job, "--timeout", "35")
    observed["status"] = machine.json("status", job)
    with database(machine) as server:
        server.flushdb()
    observed["over"] = machine.run("recover", "--json")
    return observed


def of_a_run(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """The private Redis of a `run` has lost its files."""
    sandbox = new_sandbox()
    machine = new_machine("run", private=True, provider=sandbox)
    stuck = sandbox.faults.add("stuck")
    command: list[str | Path] = ["run", machine.input(6), "-o", "out", "--max-rows", "3"]
    process = machine.start(*command)
    until(lambda: len(batches_of(sandbox)) == 2, what="both batches are created")
    job = batches_of(sandbox)[0].job
    process.kill()
    until(lambda: not machine.leftovers(), 15, "what the run has started stops")
    shutil.rmtree(machine.home / "redis")
    sandbox.faults.remove(stuck)
    done = machine.run("recover")
    return {"machine": machine, "job": job, "sandbox": sandbox, "done": done, "wait": machine.run(*command)}


def that_nobody_knows(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """Batches of another machine's jobs are there, and an upload that no batch has used."""
    sandbox = new_sandbox()
    stranger, machine = (new_machine(name, provider=sandbox) for name in ("stranger", "machine"))
    sandbox.faults.add("stuck")
    worker = stranger.worker()
    job = stranger.submit(stranger.input(2))
    until(lambda: batches_of(sandbox), what="the batch is made")
    worker.kill()
    upload = sandbox.files.new_part()
    upload.write_bytes(b"{}\n")
    name = f"batchpipe-{job}-0-1.jsonl"
    file_id = sandbox.files.adopt(upload, filename=name, purpose="batch", expires_after=None).id
    before, posts = (
        contents(machine),
        sum(n for route, n in sandbox.calls.counts.items() if not route.startswith("GET")),
    )
    done = machine.run("recover", "--dry-run", "--json")
    after = sum(n for route, n in sandbox.calls.counts.items() if not route.startswith("GET"))
    return {
        "job": job,
        "file": file_id,
        "done": done,
        "text": machine.run("recover", "--dry-run"),
        "untouched": (contents(machine), after) == (before, posts),
        "batch": batches_of(sandbox)[0],
    }


def of_one_of_two_sites(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """Two sites share a home and a provider. The Redis of one is emptied while batches of both run."""
    sandbox = new_sandbox()
    emptied = new_machine("emptied", provider=sandbox)
    living = new_machine("living", provider=sandbox, BATCHPIPE_HOME=str(emptied.home))
    stuck = sandbox.faults.add("stuck")
    worker, _ = emptied.worker(), living.worker()
    lost, lives = (site.submit(site.input(6), "--max-rows", "3") for site in (emptied, living))
    until(lambda: all(len(batches_of(sandbox, job)) == 2 for job in (lost, lives)), what="two batches of each")
    worker.kill()
    with database(emptied) as server:
        server.flushdb()
    observed: dict[str, Any] = {"sandbox": sandbox, "jobs": {lost: emptied, lives: living}, "lives": lives}
    observed["unknown"] = [emptied.run("status", job) for job in (lost, lives, "job_x")]
    observed["doctor"] = emptied.run("doctor", "--json")
    observed["dry"] = emptied.run("recover", "--dry-run", "--json")
    observed["done"] = emptied.run("recover")
    observed["mended"] = emptied.run("doctor", "--json")
    emptied.worker()
    sandbox.faults.remove(stuck)
    observed["wait"] = [site.run("wait", job, "--timeout", "35") for job, site in observed["jobs"].items()]
    return observed


def without_a_worker(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """A job that was never prepared, an account without a key, and a folder that is not there."""
    machine = new_machine("unprepared", provider=new_sandbox())
    job = machine.submit(machine.input(2))
    with database(machine) as server:
        server.flushdb()
    submitted_again = machine.run("recover")
    with database(machine) as server:
        server.flushdb()
    noted = machine.home / "workspaces.jsonl"
    line = json.loads(noted.read_bytes().splitlines()[0])
    noted.write_text(json.dumps({**line, "record": None}) + "\n")  # as a prepare elsewhere leaves it
    no_key = {"OPENAI_API_KEY": None, "BATCHPIPE_ACCOUNTS__TEAM__BASE_URL": "http://127.0.0.1:9/v1"}
    return {
        "job": job,
        "again": submitted_again,
        "done": machine.run("recover"),
        "no_key": machine.run("recover", "--json", env=no_key),
        "folder": machine.run("recover", "nowhere"),
    }


@pytest.fixture(scope="module")
def stories(
    at_once: ThreadPoolExecutor, new_machine: NewMachine, new_sandbox: NewSandbox
) -> dict[str, Future[dict[str, Any]]]:
    tellers = (while_its_batches_run, of_a_run, that_nobody_knows, without_a_worker, of_one_of_two_sites)
    return {tell.__name__: at_once.submit(tell, new_machine, new_sandbox) for tell in tellers}


def check_paid_once(observed: dict[str, Any]) -> None:
    """It ended well, and each row is billed once and there in its order."""
    machine, job = observed["machine"], observed["job"]
    assert observed["wait"].code == 0, observed["wait"].err
    assert observed["sandbox"].ledger.billed_twice() == []
    assert machine.billed(job) == dict.fromkeys(ROWS, 1)
    assert [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")] == ROWS


def test_a_job_that_redis_has_lost_runs_on_after_recover(stories: dict[str, Future[Any]]) -> None:
    """Its batches are found again; what had none is sent, after it was looked for."""
    observed = stories["while_its_batches_run"].result()
    assert observed["unknown"].code == 1
    assert observed["done"].code == 0, observed["done"].err
    assert f"{observed['job']}  rebuilt: round 1, shards: 2 created, 1 planned" in observed["done"].out
    check_paid_once(observed)
    assert len(batches_of(observed["sandbox"], observed["job"])) == len(observed["status"]["shards"]) == 3


def test_a_dry_run_says_what_would_be_rebuilt_and_changes_nothing(stories: dict[str, Future[Any]]) -> None:
    """Neither in Redis nor at the provider."""
    observed = stories["while_its_batches_run"].result()
    assert observed["dry"].code == 0, observed["dry"].err
    report = document(observed["dry"])
    assert [(job["job"], job["stages"]) for job in report["rebuilt"]] == [
        (observed["job"], {"created": 2, "planned": 1})
    ]
    assert (report["skipped"], report["orphans"], report["gone"], report["orphan_files"]) == ([], [], [], [])
    assert observed["untouched"]


def test_recover_leaves_alone_what_is_known_or_over(stories: dict[str, Future[Any]]) -> None:
    """Called again it does nothing; a job that has ended is not begun again."""
    observed = stories["while_its_batches_run"].result()
    for name, code in (("again", "known"), ("over", "finished")):
        report = document(observed[name])
        assert [(job["job"], job["code"]) for job in report["skipped"]] == [(observed["job"], code)]
        assert (observed[name].code, report["rebuilt"], report["cancelled"]) == (0, [], [])


def test_a_run_whose_private_redis_is_lost_resumes_after_recover(stories: dict[str, Future[Any]]) -> None:
    """The same command goes on with the same job: recover says so."""
    observed = stories["of_a_run"].result()
    assert observed["done"].code == 0, observed["done"].err
    assert f"`batchpipe wait {observed['job']}`" in observed["done"].out
    assert f"resuming job {observed['job']}" in observed["wait"].err
    check_paid_once(observed)


def test_a_dry_run_reports_batches_and_files_that_nobody_knows(stories: dict[str, Future[Any]]) -> None:
    """With our tag, and of no job of this Redis; they are left alone."""
    observed = stories["that_nobody_knows"].result()
    report = document(observed["done"])
    batch = observed["batch"]
    assert [(orphan["batch_id"], orphan["job"], orphan["shard"]) for orphan in report["orphans"]] == [
        (batch.id, observed["job"], 0)
    ]
    assert [(file["file_id"], file["job"]) for file in report["orphan_files"]] == [(observed["file"], observed["job"])]
    assert observed["text"].out.startswith(f"{batch.id}  orphan, {batch.status}: job {observed['job']}, shard 0")
    assert observed["untouched"]
    assert batch.status == "in_progress"
    assert (observed["done"].code, observed["text"].code) == (0, 0)


def test_a_job_that_was_never_prepared_is_submitted_again(stories: dict[str, Future[Any]]) -> None:
    """Under its id; nothing of it was sent."""
    observed = stories["without_a_worker"].result()
    assert observed["again"].code == 0
    assert observed["again"].out.startswith(f"{observed['job']}  rebuilt: round 0, shards: not planned yet")


def test_what_cannot_be_rebuilt_is_said_in_a_line(stories: dict[str, Future[Any]]) -> None:
    """And answered with 1."""
    observed = stories["without_a_worker"].result()
    assert observed["done"].code == 1
    assert observed["done"].out.startswith(f"{observed['job']}  not rebuilt: it was submitted but not prepared")
    assert [unread["account"] for unread in document(observed["no_key"])["unread"]] == ["team"]
    assert (observed["folder"].code, observed["folder"].err.count("\n")) == (1, 1)
    assert "no such folder" in observed["folder"].err


def test_recover_leaves_the_jobs_of_another_living_redis_alone(stories: dict[str, Future[Any]]) -> None:
    """It says whose they are and where to recover them; their batches are neither orphans nor cancelled."""
    observed = stories["of_one_of_two_sites"].result()
    report = document(observed["dry"])
    lost, lives = observed["jobs"]
    assert ([job["job"] for job in report["rebuilt"]], report["orphans"]) == ([lost], [])
    assert [(job["job"], job["code"]) for job in report["skipped"]] == [(lives, "foreign")]
    assert [batch["job"] for batch in report["foreign_batches"]] == [lives] * 2
    assert f"{lives}  left alone: it belongs to Redis 'localhost(" in observed["done"].out
    assert observed["done"].out.splitlines()[-1] == "1 rebuilt, 0 lost, 0 known, 0 over, 1 of another Redis"
    assert (observed["dry"].code, observed["done"].code) == (0, 0)


def test_nothing_is_paid_twice_where_two_sites_share_a_home(stories: dict[str, Future[Any]]) -> None:
    """Both jobs end well, with the batches that they had."""
    observed = stories["of_one_of_two_sites"].result()
    assert [done.code for done in observed["wait"]] == [0, 0], observed["wait"]
    assert observed["sandbox"].ledger.billed_twice() == []
    for job, site in observed["jobs"].items():
        assert site.billed(job) == dict.fromkeys(ROWS, 1)
        assert len(batches_of(observed["sandbox"], job)) == 2


def test_that_redis_has_lost_jobs_of_this_host_is_noticed(stories: dict[str, Future[Any]]) -> None:
    """By `doctor`, and by whoever asks for one of them."""
    observed = stories["of_one_of_two_sites"].result()
    lost, lives = observed["jobs"]
    begin = "Error: no job {} is known here"
    expected = [
        f"{begin.format(lost)}, but this host has submitted it: if Redis lost it, `batchpipe recover --dry-run`\n",
        f"{begin.format(lives)}, but this host has submitted it to another Redis, 'localhost(",
        f"{begin.format('job_x')}; `batchpipe list` shows those that are\n",
    ]
    for done, text in zip(observed["unknown"], expected, strict=True):
        assert (done.code, done.err.count("\n"), done.err[: len(text)]) == (1, 1, text)
    for name, verdict in (("doctor", "fail"), ("mended", "ok")):
        [found] = [found for found in json.loads(observed[name].out) if found["what"] == "records"]
        assert found["verdict"] == verdict
        if verdict == "fail":
            assert found["detail"] == "1 unfinished job of this host is unknown to this Redis"
            assert found["fix"] == "batchpipe recover --dry-run"
