"""A Redis that answers, but refuses: no process ends or shows a traceback, and all goes on once that is over."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import redis

from batchpipe.sandbox import Sandbox
from tests.acceptance.states import LoneRedis, Road
from tests.acceptance.user_machine import FAST, Finished, Machine, Process, batches_of, read_rows, until

pytestmark = pytest.mark.slow
ROWS = [f"r{number}" for number in range(4)]


class Story:
    """A worker and a job whose batch runs, while Redis changes its state."""

    def __init__(self, folder: Path, url: str, sandbox: Sandbox, undo: ExitStack) -> None:
        self.machine, self.sandbox = Machine(folder, sandbox, url), sandbox
        undo.callback(self.machine.close)
        self.worker = self.machine.worker()
        self._numbers = iter(range(100))

    def job_with_a_running_batch(self) -> tuple[str, Callable[[], object]]:
        stuck = self.sandbox.faults.add("stuck")
        job = self.machine.submit(self.machine.input(4), output=f"out{next(self._numbers)}")
        until(lambda: batches_of(self.sandbox, job), what="its batch is made")
        return job, lambda: self.sandbox.faults.remove(stuck)

    def start_beat(self) -> Process:
        beat = self.machine.start("beat")
        until(lambda: "beat: Starting" in beat.err, what="beat has started")
        return beat

    def check_end(self, job: str) -> None:
        done = self.machine.run("wait", job, "--timeout", "35")
        assert done.code == 0, (done, self.worker.err[-3000:])
        assert self.machine.billed(job) == dict.fromkeys(ROWS, 1)
        rows = read_rows(Path(self.machine.json("status", job)["output_file"]))
        assert [row["custom_id"] for row in rows] == ROWS

    def check_calm(self, *processes: Process) -> None:
        for process in (self.worker, *processes):
            assert process.running, process.err[-3000:]
            assert "Traceback" not in process.err + process.out, process.err


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def provider(undo: ExitStack) -> Sandbox:
    server = Sandbox(**FAST).start()  # type: ignore[arg-type]
    undo.callback(server.stop)
    return server


def server(folder: Path, undo: ExitStack, **options: object) -> LoneRedis:
    made = LoneRedis(folder, **options)
    undo.callback(made.close)
    return made


def is_one_line(done: Finished, *words: str) -> bool:
    return done.code == 1 and done.err.count("\n") == 1 and all(word in done.err for word in words)


def fails(done: Finished) -> list[str]:
    """What `doctor --json` says of Redis and the broker."""
    assert "Traceback" not in done.err, done
    found = [it for it in json.loads(done.out) if it["verdict"] == "fail"]
    return [it["detail"] for it in found if it["what"] in ("redis", "broker")]


# -- each state, made with a real Redis -----------------------------------------------------------------------------


def _break_disk(lone: LoneRedis) -> None:
    (lone.folder / "dump.rdb").mkdir()
    lone.set("save", "3600 1")
    lone.set("stop-writes-on-bgsave-error", "yes")
    lone.client.bgsave()
    until(lambda: lone.client.info("persistence")["rdb_last_bgsave_status"] == "err", what="the save fails")


def _keep_busy(lone: LoneRedis) -> None:
    def loop() -> None:
        with redis.Redis(port=lone.port, socket_timeout=None) as other, suppress(redis.RedisError):
            other.eval("while true do end", 0)

    lone.set("lua-time-limit", 50)
    threading.Thread(target=loop, daemon=True).start()
    until(lambda: _is_busy(lone), what="the script runs")


def _is_busy(lone: LoneRedis) -> bool:
    try:
        lone.client.get("x")
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


#: state -> how it begins, how it ends, what is said
STATES: dict[str, tuple[Callable[[LoneRedis], object], Callable[[LoneRedis], object], str]] = {
    "read-only": (lambda r: r.client.replicaof("127.0.0.1", 1), lambda r: r.client.replicaof("NO", "ONE"), "read-only"),
    "full": (lambda r: r.set("maxmemory", "1mb"), lambda r: r.set("maxmemory", 0), "full"),
    "no-replicas": (
        lambda r: r.set("min-replicas-to-write", 1),
        lambda r: r.set("min-replicas-to-write", 0),
        "too few replicas",
    ),
    "no-disk": (_break_disk, lambda r: r.set("stop-writes-on-bgsave-error", "no"), "cannot write to its disk"),
    "busy": (_keep_busy, lambda r: r.client.script_kill(), "busy with a Lua script"),
}


@pytest.mark.parametrize("state", STATES)
def test_a_worker_outlives_a_redis_that_refuses(state: str, tmp_path: Path, undo: ExitStack, provider: Sandbox) -> None:
    """It says why in a line and goes on by itself; a job that ran ends well and is paid once. Reading works."""
    begin, end, said = STATES[state]
    lone = server(tmp_path / "redis", undo)
    story = Story(tmp_path / "machine", lone.url, provider, undo)
    beat = story.start_beat()
    job, go_on = story.job_with_a_running_batch()
    begin(lone)
    submitted = story.machine.start("submit", story.machine.input(4, "other.jsonl"), "-o", "other")
    doctor = story.machine.run("doctor", "--json")
    late = story.machine.start("worker")
    until(lambda: said in story.worker.err, what="the worker says it")
    until(lambda: said in late.err or "Cannot connect" in late.err, what="one that starts meanwhile says it")
    reads = [story.machine.run(*words) for words in (("status", job), ("list",), ("logs", job))]
    refused = submitted.finish()
    end(lone)
    go_on()
    assert any(said in detail for detail in fails(doctor)), doctor
    assert is_one_line(refused, said), refused
    if state in ("busy", "no-disk"):  # then it refuses PING, too
        assert all(is_one_line(done, said) for done in reads), reads
    else:
        assert [done.code for done in reads] == [0, 0, 0], reads
    story.check_end(job)
    story.machine.await_ready(late)
    story.check_calm(beat, late)


# -- what is hard to make -------------------------------------------------------------------------------------------

#: Answers to every command, and what is said of them.
ANSWERS = {
    "LOADING Redis is loading the dataset in memory": "loading its data",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "lost its primary",
    "NOPERM this user has no permissions to run the 'ping' command": "does not allow it to this user",
    "NOAUTH Authentication required.": "refuses the user or password",
    "MOVED 3999 127.0.0.1:6381": "is a cluster",
    "TRYAGAIN Multiple keys request during rehashing of slot": "is a cluster",
}


def test_a_worker_outlives_whatever_redis_answers(tmp_path: Path, undo: ExitStack, provider: Sandbox) -> None:
    """One state after the other; each is said in a line, by `doctor` and by commands, too."""
    road = Road(server(tmp_path / "redis", undo).port)
    undo.callback(road.close)
    story = Story(tmp_path / "machine", road.url, provider, undo)
    beat = story.start_beat()
    job, go_on = story.job_with_a_running_batch()
    for answer, said in ANSWERS.items():
        road.answer = answer
        doctor, listed = story.machine.start("doctor", "--json"), story.machine.start("list")
        until(lambda said=said: said in story.worker.err, what=f"the worker says: {said}")  # type: ignore[misc]
        assert any(said in detail for detail in fails(doctor.finish())), answer
        assert is_one_line(listed.finish(), said), answer
    road.answer = None
    go_on()
    story.check_end(job)
    story.check_calm(beat)


def test_after_a_failover_nobody_keeps_a_connection_to_the_old_primary(
    tmp_path: Path, undo: ExitStack, provider: Sandbox
) -> None:
    """It lives on as a replica, and old connections with it. New ones, by the same name, lead to the new primary."""
    old, new = server(tmp_path / "old", undo), server(tmp_path / "new", undo)
    new.client.replicaof("127.0.0.1", old.port)
    road = Road(old.port)
    undo.callback(road.close)
    story = Story(tmp_path / "machine", road.url, provider, undo)
    beat = story.start_beat()
    job, go_on = story.job_with_a_running_batch()
    until(lambda: new.client.info("replication")["master_link_status"] == "up", what="the replica is up to date")
    until(lambda: old.client.wait(1, 1000) == 1, what="it has all")
    new.client.replicaof("NO", "ONE")
    road.port = new.port
    old.client.replicaof("127.0.0.1", new.port)
    go_on()
    story.check_end(job)
    second, go_on = story.job_with_a_running_batch()
    go_on()
    story.check_end(second)
    story.check_calm(beat)


# -- settings -------------------------------------------------------------------------------------------------------

_DEPLOY = Path(__file__).parents[2] / "docs" / "deploy.md"
#: As the documentation has it.
ACL = _DEPLOY.read_text().split("ACL SETUSER batchpipe on >PASSWORD\n")[1].split("```")[0]


def test_the_documented_acl_is_all_that_is_needed(tmp_path: Path, undo: ExitStack, provider: Sandbox) -> None:
    """For worker, beat, Flower and commands; Redis has denied nothing."""
    lone = server(tmp_path / "redis", undo)
    lone.client.execute_command("ACL", "SETUSER", "batchpipe", "on", ">word", *ACL.split())
    story = Story(tmp_path / "machine", lone.url.replace("//", "//batchpipe:word@"), provider, undo)
    beat, flower = story.start_beat(), story.machine.start("flower", "--port", "0")
    until(lambda: "Flower listens" in flower.err, what="Flower listens")
    job, go_on = story.job_with_a_running_batch()
    dropped = story.machine.submit(story.machine.input(4), output="dropped")
    assert story.machine.run("cancel", dropped).code == 0
    go_on()
    story.check_end(job)
    run = story.machine.run("run", story.machine.input(4), "-o", "run")
    reads = [
        story.machine.run(*words) for words in (("doctor",), ("results", job), ("logs", job), ("sweep",), ("list",))
    ]
    assert run.code == 0, run
    assert [done.code for done in reads] == [0] * 5, reads
    assert [(it["reason"], it["object"]) for it in lone.client.acl_log()] == []
    story.check_calm(beat, flower)


def test_a_user_without_channels_is_told_so_and_the_worker_waits(
    tmp_path: Path, undo: ExitStack, provider: Sandbox
) -> None:
    """`doctor` says that it lacks &channels; once it has them, the worker goes on."""
    lone = server(tmp_path / "redis", undo)
    lone.client.execute_command("ACL", "SETUSER", "batchpipe", "on", ">word", *ACL.split(), "resetchannels")
    machine = Machine(tmp_path / "machine", provider, lone.url.replace("//", "//batchpipe:word@"))
    undo.callback(machine.close)
    worker = machine.start("worker")
    until(lambda: "lacks &channels" in worker.err, what="the worker says it")
    assert any("lacks &channels" in detail for detail in fails(machine.run("doctor", "--json")))
    job = machine.submit(machine.input(4))
    lone.client.execute_command("ACL", "SETUSER", "batchpipe", *ACL.split())
    done = machine.run("wait", job, "--timeout", "35")
    assert done.code == 0, (done, worker.err)
    assert "Traceback" not in worker.err
    assert worker.running


def test_a_cluster_is_refused_in_one_line(tmp_path: Path, undo: ExitStack, provider: Sandbox) -> None:
    """By whoever starts."""
    lone = server(tmp_path / "redis", undo, **{"cluster-enabled": "yes"})
    machine = Machine(tmp_path / "machine", provider, lone.url)
    undo.callback(machine.close)
    started = [machine.start(*words) for words in (("worker",), ("beat",), ("submit", machine.input(1), "-o", "out"))]
    assert any("is a cluster" in detail for detail in fails(machine.run("doctor", "--json")))
    assert all(is_one_line(process.finish(), "is a cluster") for process in started)
