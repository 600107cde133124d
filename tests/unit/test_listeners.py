"""A job that waits for a queue without a worker says so, wherever somebody looks at it or waits for it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import batchpipe
from batchpipe.cli import cli
from batchpipe.client import listeners
from batchpipe.client.client import Client
from batchpipe.client.listeners import LOOK_SECONDS, SAY_SECONDS, Watch
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import StoreUnavailable
from batchpipe.model.records import JobRecord
from batchpipe.store import Store
from batchpipe.store.queues import LISTENING_SECONDS, Queues
from batchpipe.tasks import inspection
from batchpipe.tasks.app import make_app
from batchpipe.worker.setup import setup, site_worker_of

Rows = Callable[..., list[dict[str, object]]]
NOBODY = "no worker listens on queue deep; start one: `batchpipe worker --queues deep` (`batchpipe run` brings its own)"


@pytest.fixture
def client(redis_url: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path / "home"))
    current_site().app = make_app(made.settings)
    return made


@pytest.fixture
def ask(
    client: Client, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """What a command prints on stdout and stderr."""
    monkeypatch.setenv("BATCHPIPE_REDIS_URL", redis_url)
    monkeypatch.setenv("BATCHPIPE_PREFIX", prefix)

    def run(*arguments: str) -> tuple[str, str]:
        cli.main(list(arguments), standalone_mode=False)
        said = capsys.readouterr()
        return said.out, said.err

    return run


def put(client: Client, job_id: str, **fields: Any) -> None:
    client.store.connection.client.hset(f"{client.store.connection.prefix}job:{job_id}", mapping=dict[Any, Any](fields))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "no worker listens" in record.getMessage()]


def test_commands_say_at_once_that_no_worker_listens_where_a_job_waits(
    client: Client, chat_rows: Rows, ask: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    """In one line of stderr where stdout is data; `status` and `list` on the page; not of jobs that have ended."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(1)))
    ours = "no worker listens on queue batchpipe; start one: `batchpipe worker` (`batchpipe run` brings its own)"
    out, err = ask("submit", str(rows), "-o", str(tmp_path / "out"))
    assert err == f"Warning: {ours}\n"
    put(client, out.strip(), stage="succeeded", closed="1")

    job_id = client.submit(chat_rows(1), queue="deep").id
    assert f"workers   {NOBODY}\n" in ask("status", job_id)[0]
    assert ask("status", job_id, "--json")[1] == f"Warning: {NOBODY}\n"
    lines = ask("list")[0].splitlines()
    assert lines[[job_id in line for line in lines].index(True) + 1] == "  ! no worker on queue deep"
    found = {one["detail"]: one["verdict"] for one in json.loads(ask("doctor", "--json")[0])}
    assert found["no worker listens on queue deep, and 1 job waits"] == "fail"

    client.store.queues.note_listening("w1", ["deep"])
    assert "no worker" not in ask("status", job_id)[0] + ask("list")[0]
    found = {one["detail"]: one["verdict"] for one in json.loads(ask("doctor", "--json")[0])}
    assert found["1 on queue deep: w1"] == "ok"

    client.store.queues.forget_listening("w1", ["deep"])
    put(client, job_id, stage="succeeded", closed="1")
    assert "no worker" not in ask("status", job_id)[0] + ask("list")[0]


@pytest.mark.parametrize("command", [["submit", "{rows}", "-o", "{out}"], ["list"]], ids=["submit", "list"])
def test_commands_do_not_wait_for_answers_of_workers_where_the_notes_say_that_there_is_none(
    client: Client,
    chat_rows: Rows,
    ask: Callable[..., tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    """That would take a second. They ask where a worker has said nothing for a while: it may be slow."""
    asked = [0]

    def answers() -> dict[str, list[str]]:
        asked[0] += 1
        return {"batchpipe": ["slow"]}

    monkeypatch.setattr(inspection, "queues_of_workers", answers)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(1)))
    words = [word.format(rows=rows, out=tmp_path / "out") for word in command]
    client.submit(chat_rows(1))
    assert "no worker" in "".join(ask(*words))
    assert asked == [0]

    long_ago = client.now() - LISTENING_SECONDS - 60
    client.store.connection.call("zadd", f"{client.settings.prefix}listening", {"batchpipe\nslow": long_ago})
    words = [word.replace(str(tmp_path / "out"), str(tmp_path / "other")) for word in words]
    assert "no worker" not in "".join(ask(*words))
    assert asked == [1]


def test_a_submit_of_a_program_logs_that_no_worker_listens(
    client: Client, chat_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a minute and queue; it asks nobody, for a web request must not wait."""
    current_site().settings = client.settings
    job = batchpipe.submit(chat_rows(1), queue="deep")
    batchpipe.submit(chat_rows(1), queue="deep")
    assert warnings(caplog) == [f"job {job.id} waits: {NOBODY}"]

    caplog.clear()
    client.store.queues.note_listening("w1", ["batchpipe"])
    batchpipe.submit(chat_rows(1))
    assert warnings(caplog) == []


def test_waiting_for_a_job_without_a_worker_warns_with_what_to_start(
    client: Client, chat_rows: Rows, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "FIRST_LOOK_SECONDS", 0.0)
    job = client.submit(chat_rows(1), queue="deep")
    with pytest.raises(TimeoutError):
        job.wait(timeout=0.3)
    assert warnings(caplog) == [f"job {job.id} waits: {NOBODY}"]
    assert {record.levelno for record in caplog.records if "no worker" in record.getMessage()} == {logging.WARNING}


def test_who_waits_is_told_again_each_minute_and_no_longer_once_a_worker_listens(
    client: Client, chat_rows: Rows
) -> None:
    at, said = [0.0], list[str]()
    job = client.submit(chat_rows(1), queue="deep").record
    watch = Watch(client.store, client.settings, said.append, clock=lambda: at[0])
    for _ in range(3):
        at[0] += SAY_SECONDS
        watch(job)
        watch(job)
    assert said == [f"job {job.id} waits: {NOBODY}"] * 3
    client.store.queues.note_listening("w1", ["deep"])
    at[0] += SAY_SECONDS
    watch(job)
    client.store.queues.forget_listening("w1", ["deep"])
    at[0] += LOOK_SECONDS
    watch(job.evolve(closed=True))
    assert len(said) == 3


def test_a_job_of_a_run_names_wait_and_not_while_its_worker_starts(client: Client, chat_rows: Rows) -> None:
    job = client.submit(chat_rows(1), queue="batchpipe.run.x", own_queue=True).record
    assert listeners.missing_worker(client.store, client.settings, job) == ""
    old = job.evolve(created_at=job.created_at - 60)
    said = listeners.missing_worker(client.store, client.settings, old)
    assert said == f"no worker listens on queue batchpipe.run.x; start one: `batchpipe wait {job.id}`"


def test_a_redis_that_is_away_fails_no_submit_for_the_look(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(Queues):
        def listening(self) -> dict[str, list[str]]:
            raise StoreUnavailable("away")

    store = Store(client.store.connection)
    store.queues = Away(store.connection)
    listeners.warn_of_submit(store, client.settings, JobRecord(id="job_x", queue="deep"))


def test_a_worker_says_where_it_listens_until_it_is_told_to_stop(client: Client) -> None:
    """Of its consumer, so also what `celery control add_consumer` adds."""
    current_site().settings = client.settings
    app = make_app(client.settings)
    setup(app)
    site_worker, queues = site_worker_of(app), [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
    consumer = SimpleNamespace(hostname="w1", task_consumer=SimpleNamespace(queues=queues))
    reports: list[dict[str, list[str]]] = []

    class Stopping:
        """Is asked between two notes: the second time it is over."""

        def wait(self, seconds: float) -> bool:
            reports.append(client.store.queues.listening())
            queues.pop()
            return len(reports) == 2

    site_worker.stopping = Stopping()  # type: ignore[assignment]
    site_worker._say_where_it_listens(consumer)
    assert reports == [{"a": ["w1"], "b": ["w1"]}, {"a": ["w1"]}]
    assert client.store.queues.listening() == {}


def test_a_worker_that_was_killed_is_forgotten(store: Store, clock: Any) -> None:
    store.queues.note_listening("w1", ["a"])
    clock.advance(36)
    assert store.queues.listening() == {}
    store.queues.note_listening("w2", ["b"])
    assert store.connection.client.zcard(f"{store.connection.prefix}listening") == 1


@pytest.mark.parametrize(("account", "queue"), [("default", "batchpipe"), ("sandbox", "batchpipe.run.")])
def test_a_retry_of_a_job_of_run_goes_where_a_worker_can_be(
    client: Client, chat_rows: Rows, monkeypatch: pytest.MonkeyPatch, account: str, queue: str
) -> None:
    """To the default queue; but to one of its own where only `wait` brings the sandbox that it needs."""
    old = client.submit(chat_rows(1), queue="batchpipe.run.x", own_queue=True, account=account)
    put(client, old.id, stage="partial", closed="1", failed="1")
    monkeypatch.setattr("batchpipe.client.client.failed_requests", lambda *_: iter([b'{"custom_id": "r0"}\n']))
    again = client.retry(old.id).record
    assert again.queue.startswith(queue)
    assert again.queue != old.record.queue
    assert again.input_here == (account == "sandbox")


def test_doctor_forgets_the_trouble_of_jobs_that_have_ended(
    client: Client, chat_rows: Rows, ask: Callable[..., tuple[str, str]]
) -> None:
    """One whose end is still being told may have had trouble before: that is over."""
    trouble = '{"code": "x", "message": "the disk is full"}'
    job, closing = client.submit(chat_rows(1)), client.submit(chat_rows(1))
    put(client, job.id, trouble=trouble)
    put(client, closing.id, trouble=trouble, stage="failed", closed="1")

    def said() -> list[str]:
        return [one["detail"] for one in json.loads(ask("doctor", "--json")[0]) if one["what"] in ("jobs", "workers")]

    assert said() == [
        f"1 job in trouble: {job.id}: the disk is full",
        "no worker listens on queue batchpipe, and 1 job waits",
    ]
    put(client, job.id, stage="succeeded")
    assert said() == ["no worker listens on queue batchpipe, and 1 job waits"]
    put(client, job.id, closed="1")
    assert said() == ["no worker listens on queue batchpipe"]
