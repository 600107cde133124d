"""What a person sees in Flower, who may look, and what revoking there does."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from selenium.webdriver import Chrome

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import API_KEY, Machine, Process, until
from tests.browser import open_browser, text_of

NewMachine = Callable[..., Machine]
Tasks = list[dict[str, Any]]

PASSWORD = "not-a-real-password"


@dataclass
class Flower:
    """A running Flower, and who asks it."""

    process: Process
    password: str

    @property
    def address(self) -> str:
        """Without the scheme."""
        return self.process.err.partition("listens on http://")[2].partition(";")[0]

    def ask(self, path: str, document: object = None, *, login: str | None = None) -> Any:
        """The JSON of a route; a document is posted."""
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data)
        token = base64.b64encode((login or f"batchpipe:{self.password}").encode()).decode()
        if login != "":
            request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read())

    def tasks(self, **wanted: str) -> Tasks:
        """The tasks with these values, oldest first."""
        found = self.ask("/api/tasks").values()
        chosen = [task for task in found if all(task[name] == value for name, value in wanted.items())]
        return sorted(chosen, key=lambda task: task["received"] or 0.0)

    def revoke(self, task: dict[str, Any], terminate: str = "false") -> None:
        self.ask(f"/api/task/revoke/{task['uuid']}?terminate={terminate}", {})

    def apply(self, name: str, **arguments: Any) -> str:
        """Send a task by hand; answers its result."""
        uuid = self.ask(f"/api/task/async-apply/{name}", {"kwargs": arguments})["task-id"]
        done = until(lambda: self.tasks(uuid=uuid, state="SUCCESS"), what="a task sent by hand ends")
        return str(done[0]["result"])


def start_flower(machine: Machine, *options: str) -> Flower:
    process = machine.start("flower", "--port", "0", *options)
    until(lambda: "listens on" in process.err or not process.running, what="Flower listens")
    assert process.running, process.err
    kept = machine.home / "flower-password"
    return Flower(process, machine.environment.get("BATCHPIPE_FLOWER_PASSWORD") or kept.read_text().strip())


def watched_worker(machine: Machine, *options: str) -> None:
    """A worker that Flower has asked for events: what it ran before is shown by halves."""
    worker = machine.worker(*options)
    until(lambda: "Events of group {task} enabled" in worker.err, what="Flower has asked the worker for events")


# -- the stories -----------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A job that runs, one that failed, one that was cancelled and one that is done; and what Flower tells of them."""

    machine: Machine
    flower: Flower
    jobs: dict[str, str]

    def of(self, job: str, **wanted: str) -> Tasks:
        return [task for task in self.flower.tasks(**wanted) if str(task["args"]).partition(" ")[0] == self.jobs[job]]

    def said(self, job: str, words: str) -> bool:
        """Whether a task of the job has ended with these words; one task stands for all steps of a visit."""
        return any(words in str(task["result"]) for task in self.of(job, state="SUCCESS"))


def play(new_machine: NewMachine, new_sandbox: Callable[..., Sandbox]) -> Scene:
    slow = new_sandbox(rows_per_second=0.5)
    machine = new_machine("seen", provider=slow, BATCHPIPE_POLL_MIN_SECONDS="1")
    flower = start_flower(machine)
    watched_worker(machine, "--concurrency", "4")
    machine.start("beat")
    jobs = {
        "cancelled": machine.submit(machine.input(40, name="many.jsonl"), output="cancelled"),
        "failed": machine.submit(machine.write("bad.jsonl", b'{"custom_id": "x"}\n'), output="failed"),
        "done": machine.submit(machine.input(1, name="one.jsonl"), output="done"),
    }
    scene = Scene(machine, flower, jobs)
    until(lambda: scene.of("cancelled", state="RETRY"), what="a poll that waits")
    assert machine.run("cancel", jobs["cancelled"]).code == 0
    jobs["running"] = machine.submit(machine.input(300, name="long.jsonl"), "--max-rows", "150", output="running")
    until(lambda: scene.said("done", "succeeded: 1 ok"), what="a job that is done")
    until(lambda: scene.said("cancelled", "cancelled: "), what="a job that is cancelled")
    until(lambda: ["in_progress" in str(t["result"]) for t in scene.of("running", name="batchpipe.poll")] == [True] * 2)
    return scene


@dataclass
class Revoked:
    machine: Machine
    flower: Flower
    job: str
    waiting: str  #: what the poll that was revoked said
    code: int
    again: dict[str, str]


def revoke_all_along(new_machine: NewMachine, new_sandbox: Callable[..., Sandbox]) -> Revoked:
    """Somebody revokes the poll that waits, ends the download that runs, and sends old tasks by hand."""
    sandbox = new_sandbox(rows_per_second=3)
    sandbox.faults.add("delay", route="GET /v1/files/{id}/content", seconds=10.0)
    machine = new_machine(
        "revoked", provider=sandbox, BATCHPIPE_POLL_MIN_SECONDS="1.5", BATCHPIPE_FLOWER_PASSWORD=PASSWORD
    )
    flower = start_flower(machine)
    watched_worker(machine, "--pool", "prefork", "--concurrency", "2")
    job = machine.submit(machine.input(6))
    [waiting] = until(lambda: flower.tasks(name="batchpipe.poll", state="RETRY"), what="a poll that waits")
    flower.revoke(waiting)
    until(lambda: flower.tasks(uuid=waiting["uuid"], state="REVOKED"), what="the poll is revoked")
    [running] = until(lambda: flower.tasks(name="batchpipe.poll", state="STARTED"), what="a download that runs")
    flower.revoke(running, terminate="true")
    until(lambda: flower.tasks(uuid=running["uuid"], state="REVOKED"), what="the download is ended")
    sandbox.faults.clear()
    code = machine.run("wait", job, "--timeout", "40").code
    again = {name: flower.apply(f"batchpipe.{name}", job=job, shard=0, epoch=1) for name in ("create", "merge")}
    return Revoked(machine, flower, job, str(waiting["result"]), code, again)


@pytest.fixture(scope="module")
def stories(
    at_once: ThreadPoolExecutor, new_machine: NewMachine, new_sandbox: Callable[..., Sandbox]
) -> dict[str, Any]:
    return {
        "seen": at_once.submit(play, new_machine, new_sandbox),
        "revoked": at_once.submit(revoke_all_along, new_machine, new_sandbox),
    }


@pytest.fixture(scope="module")
def scene(stories: dict[str, Future[Scene]]) -> Scene:
    return stories["seen"].result()


@pytest.fixture(scope="module")
def revoked(stories: dict[str, Future[Revoked]]) -> Revoked:
    return stories["revoked"].result()


# -- what is seen ----------------------------------------------------------------------------------------------------


def test_a_task_says_which_job_and_shard_it_is_about(scene: Scene) -> None:
    """And nothing else: no row, no path, no key."""
    jobs = set(scene.jobs.values())
    for task in scene.flower.tasks():
        if task["args"] is None:  # it was received before Flower asked for events
            continue
        about, _, shard = task["args"].partition(" shard ")
        assert about in jobs
        assert shard.isdigit() == (task["name"] not in ("batchpipe.prepare", "batchpipe.merge"))
        assert task["kwargs"] == ""


def test_a_poll_that_waits_looks_like_one(scene: Scene) -> None:
    """It says how far its batch is; there is no exception and no traceback."""
    for task in scene.of("running", name="batchpipe.poll"):
        assert "in_progress" in task["result"]
        assert "of 150 rows (batch_" in task["result"]
        assert (task["exception"], task["traceback"]) == (None, None)


def test_nothing_counts_as_a_failure(scene: Scene) -> None:
    """A job may fail, be cancelled or wait: its tasks did what they were to do."""
    assert scene.flower.tasks(state="FAILURE") == []
    ended = {"SUCCESS", "REVOKED"}  # the poll that waited was revoked by the cancel, if it still waited then
    until(lambda: {task["state"] for task in scene.of("cancelled")} <= ended, what="all of a cancelled job has ended")
    [worker] = scene.flower.ask("/workers?json=1")["data"]
    assert worker.get("task-failed", 0) == 0


def test_the_end_of_a_job_can_be_read(scene: Scene) -> None:
    assert scene.said("done", "succeeded: 1 ok")
    assert scene.said("cancelled", "cancelled: ")
    assert scene.of("failed", name="batchpipe.prepare")[0]["result"].startswith("failed: line 1")


def test_the_sweep_does_not_flood_the_list(scene: Scene) -> None:
    assert (
        {"batchpipe.prepare", "batchpipe.poll"}
        <= {task["name"] for task in scene.flower.tasks()}
        <= {
            *("batchpipe.prepare", "batchpipe.upload", "batchpipe.create", "batchpipe.poll"),
            *("batchpipe.download", "batchpipe.merge"),
        }
    )


def page(browser: Chrome, flower: Flower, path: str, words: str) -> str:
    """The text of a page, once these words are there."""
    browser.get(f"http://batchpipe:{flower.password}@{flower.address}{path}")
    until(lambda: words in text_of(browser), what=f"{words!r} on {path}")
    return text_of(browser)


def test_the_pages_in_a_browser(scene: Scene) -> None:
    """The list of tasks, the page of a poll that waits, the page of the workers."""
    with open_browser() as browser:
        listed = page(browser, scene.flower, "/tasks", f"{scene.jobs['running']} shard 1")
        waiting = page(browser, scene.flower, f"/task/{scene.of('running', name='batchpipe.poll')[0]['uuid']}", "poll")
        workers = page(browser, scene.flower, "/workers", "Online")
    assert "in_progress" in listed
    assert "RETRY" in waiting or "STARTED" in waiting
    assert "Traceback" not in waiting
    assert f"{scene.jobs['running']} shard" in waiting
    assert "batchpipe-" in "".join(workers.split())  # it may be broken into lines
    assert API_KEY not in listed + waiting + workers


def test_the_worker_says_in_its_log_why_a_poll_waits(scene: Scene) -> None:
    log = "".join(path.read_text() for path in scene.machine.folder.glob("*.err"))
    assert re.search(r"batchpipe\.poll\[\S+\] retry: Retry in [\d.]+s: in_progress \d+ of \d+ rows \(batch_", log)
    assert "Traceback" not in log


# -- revoking --------------------------------------------------------------------------------------------------------


def test_a_job_survives_that_its_tasks_are_revoked(revoked: Revoked) -> None:
    """The sweep brings it back under new ids; no row is paid for twice."""
    assert re.match(r"(validating|in_progress) .*\(batch_", revoked.waiting)
    assert revoked.code == 0
    assert set(revoked.machine.billed(revoked.job).values()) == {1}
    assert len(revoked.machine.batches(revoked.job)) == 1


def test_an_old_task_that_is_sent_by_hand_does_nothing(revoked: Revoked) -> None:
    assert set(revoked.again) == {"create", "merge"}
    # Flower has a result from the task's last event, with quotes, or from its state, without
    assert all(said.strip("'").startswith("void") for said in revoked.again.values()), revoked.again


# -- who may look ----------------------------------------------------------------------------------------------------


def test_nobody_looks_without_the_password(scene: Scene, revoked: Revoked) -> None:
    """Neither at the pages nor at the API; whether it was made here or is a setting."""
    for flower in (scene.flower, revoked.flower):
        for path in ("/tasks", "/api/tasks", "/api/workers"):
            for login in ("", "batchpipe:wrong"):
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    flower.ask(path, login=login)


def test_the_password_is_shown_to_nobody(scene: Scene, revoked: Revoked) -> None:
    """Not in the list of processes, and not where output goes to a file; the file with it is its owner's alone."""
    kept = scene.machine.home / "flower-password"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert f"password in {kept}" in scene.flower.process.err
    for flower in (scene.flower, revoked.flower):
        assert isinstance(flower.process.popen.args, list)
        assert flower.password not in flower.process.err + " ".join(map(str, flower.process.popen.args))
    assert not (revoked.machine.home / "flower-password").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--no-auth", "--address", "0.0.0.0"], "--no-auth is for loopback only"),
        (["--no-auth", "--address="], "--no-auth is for loopback only"),
        (["--basic-auth=me:secret"], "set FLOWER_BASIC_AUTH in its place"),
        (["--max-taks=5"], "--max-taks is no option of Flower's"),
        (["--max-tasks=many"], "Flower's options: "),
        (["--address", "192.0.2.1"], "Flower cannot listen on 192.0.2.1:5555"),
    ],
)
def test_what_would_be_unsafe_or_unheard_is_refused(scene: Scene, options: list[str], says: str) -> None:
    """In one line, and with 1."""
    done = scene.machine.run("flower", *options)
    assert done.code == 1
    [line] = done.err.strip().splitlines()
    assert says in line
    assert "me:secret" not in line


def test_it_ends_when_told_and_remembers(new_machine: NewMachine) -> None:
    """With 0; and next time it has the same password. Without a password, the API is closed."""
    machine = new_machine("ended")
    first = start_flower(machine)
    first.process.popen.terminate()
    assert first.process.finish(20).code == 0, first.process.err
    second = start_flower(machine)
    assert second.password == first.password
    assert second.ask("/api/tasks") == {}
    second.process.interrupt()
    assert second.process.finish(20).code == 0
    bare = start_flower(machine, "--no-auth")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        bare.ask("/api/tasks", login="")
