"""Who hears of a job's end: the listeners of the site that submitted it, in whichever worker has loaded them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, signature

from batchpipe.cli import cli
from batchpipe.client.client import Client
from batchpipe.config.settings import Settings
from batchpipe.config.site import DJANGO, FLASK, current_site
from batchpipe.model.records import MAX_NOTIFY_ATTEMPTS, JobRecord, Problem, State
from batchpipe.model.views import not_notified
from batchpipe.tasks.app import make_app
from batchpipe.tasks.notifying import tell
from batchpipe.testing import Pump

Rows = Callable[..., list[dict[str, object]]]
UNTOLD = "receivers not notified yet: "

#: The trouble of a job with a receiver that raises, as it is stored.
NOT_DELIVERED = '{"code": "not_delivered", "message": "KeyError: 7"}'


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    return Pump(tmp_path, tell=tell)


def pump_until(pump: Pump, condition: Callable[[], bool]) -> None:
    while not condition():
        if pump.step() is None:
            pump.advance(1)


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if text in record.getMessage() and record.levelno >= logging.WARNING]


def test_a_worker_that_has_not_loaded_the_site_leaves_telling_to_one_that_has(
    pump: Pump, chat_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """The job has ended meanwhile; the log says once what to start, the status each time."""
    job_id = pump.submit(chat_rows(1), notify_sites=[DJANGO])
    pump_until(pump, lambda: pump.job(job_id).notify_attempts == 3)
    job = pump.job(job_id)
    assert (job.state, job.closed) == (State.SUCCEEDED, False)
    said = not_notified(job)
    assert said is not None
    assert said.startswith(f"{UNTOLD}3 tries, last: this worker has not loaded the site")
    assert "(Django): start it as `manage.py batchpipe worker` or `celery -A proj worker`" in said
    [warning] = logged(caplog, "this worker has not loaded the site")
    assert job_id in warning.getMessage()

    heard: list[str] = []
    current_site().receivers[DJANGO] = heard.append
    pump.run_until_idle()

    job = pump.job(job_id)
    assert (heard, job.closed, not_notified(job)) == ([job_id], True, None)


def test_a_site_whose_worker_never_comes_is_given_up_after_an_hour_and_it_is_said(
    pump: Pump, chat_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = pump.submit(chat_rows(1), notify_sites=[FLASK])
    pump_until(pump, lambda: pump.job(job_id).state.ended)
    ended = pump.at
    pump.run_until_idle()

    job = pump.job(job_id)
    assert (job.state, job.closed, job.notify_attempts) == (State.SUCCEEDED, True, MAX_NOTIFY_ATTEMPTS + 1)
    assert 3_000 < pump.at - ended < 4_500
    [event] = [event for event in pump.store.events.read(job_id) if event["event"] == "not_told"]
    assert "(Flask)" in event["message"]
    assert len(logged(caplog, f"no receiver is notified of the end of job {job_id}")) == 1
    assert not_notified(job) == "receivers were never notified: stopped after 61 tries; see its log"


def test_a_job_of_one_site_is_not_told_to_the_receivers_of_another(pump: Pump, chat_rows: Rows) -> None:
    """What a program hangs in for all jobs of its process hears of it; a job of no site is told to all."""
    heard: dict[str, list[str]] = {name: [] for name in (DJANGO, FLASK, "mine")}
    for name, ids in heard.items():
        current_site().receivers[name] = ids.append
    job_id, anybodys = pump.submit(chat_rows(1), notify_sites=[DJANGO]), pump.submit(chat_rows(1))
    pump.run_until_idle()

    both = sorted([job_id, anybodys])
    found = {name: sorted(ids) for name, ids in heard.items()}
    assert found == {DJANGO: both, FLASK: [anybodys], "mine": both}


def test_a_receiver_that_always_raises_leaves_one_traceback_in_the_log(
    pump: Pump, chat_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if workers without the site had the first turns."""

    def fail(job_id: str) -> None:
        raise OSError("database\naway")

    job_id = pump.submit(chat_rows(1), notify_sites=[DJANGO])
    pump_until(pump, lambda: pump.job(job_id).notify_attempts == 2)
    current_site().receivers[DJANGO] = fail
    pump_until(pump, lambda: pump.job(job_id).notify_attempts == 6)

    records = logged(caplog, "receivers of Django's signals failed")
    assert [bool(record.exc_info) for record in records] == [True, False, False, False]
    assert {record.getMessage() for record in records[1:]} == {
        "receivers of Django's signals failed: OSError: database away"
    }
    assert (not_notified(pump.job(job_id)) or "").startswith(
        f"{UNTOLD}6 tries, last: receivers of Django's signals failed"
    )


def test_on_done_is_not_sent_again_because_receivers_have_not_heard(
    pump: Pump, chat_rows: Rows, redis_url: str, prefix: str
) -> None:
    current_site().app = Celery("site", broker=redis_url, set_as_current=False)
    done = dict(signature("site.done", queue=prefix))
    job_id = pump.submit(chat_rows(1), notify_sites=[DJANGO], on_done=done)
    pump_until(pump, lambda: pump.job(job_id).notify_attempts == 3)

    with redis.Redis.from_url(redis_url) as broker:
        assert broker.llen(prefix) == 1


# -- what a submit records -----------------------------------------------------------------------------------------


@pytest.fixture
def client(redis_url: str, prefix: str, tmp_path: Path) -> Client:
    return Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path / "home"))


def listen(*names: str) -> None:
    current_site().receivers.clear()
    for name in names:
        current_site().receivers[name] = lambda job_id: None


def test_a_submit_records_the_frameworks_of_its_process(client: Client, chat_rows: Rows) -> None:
    """Not what else hangs there: only this process knows that."""
    found = []
    for names in ((), ("mine",), (FLASK, "mine"), (FLASK, DJANGO)):
        listen(*names)
        found.append(client.submit(chat_rows(1)).record.notify_sites)

    assert found == [[], [], [FLASK], [DJANGO, FLASK]]


def test_a_retry_from_anywhere_waits_for_the_site_of_the_first_job(
    client: Client, chat_rows: Rows, tmp_path: Path
) -> None:
    """One from a site, of a job that was nobody's, waits for that site."""
    of_site, nobodys = (failed_job(client, chat_rows, tmp_path / name, *sites) for name, sites in _SITES.items())
    listen(FLASK)
    assert client.retry(of_site).record.notify_sites == [DJANGO]
    assert client.retry(nobodys).record.notify_sites == [FLASK]


_SITES = {"site": (DJANGO,), "nobody": ()}


def failed_job(client: Client, chat_rows: Rows, folder: Path, *sites: str) -> str:
    listen(*sites)
    job = client.submit(chat_rows(1), output=folder / "out")
    pump = Pump(folder, store=client.store)
    pump.api.answer = lambda row: 400
    pump.run_until_idle()
    assert job.refresh().state == State.FAILED
    return job.id


# -- what people see -----------------------------------------------------------------------------------------------


@pytest.fixture
def ask(
    client: Client,
    redis_url: str,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """What a command prints, in a process without a site."""
    current_site().app = make_app(client.settings)
    monkeypatch.setenv("BATCHPIPE_REDIS_URL", redis_url)
    monkeypatch.setenv("BATCHPIPE_PREFIX", prefix)
    monkeypatch.setenv("BATCHPIPE_QUEUE", client.settings.queue)

    def run(*arguments: str) -> str:
        cli.main(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run


def put(client: Client, job_id: str, **fields: str | float) -> None:
    client.store.connection.client.hset(f"{client.store.connection.prefix}job:{job_id}", mapping=dict[Any, Any](fields))


def test_status_and_list_say_that_receivers_have_not_heard(
    client: Client, chat_rows: Rows, ask: Callable[..., str]
) -> None:
    job = client.submit(chat_rows(1))
    put(
        client,
        job.id,
        stage="succeeded",
        notify_attempts=2,
        trouble=NOT_DELIVERED,
    )

    assert f"notices   {UNTOLD}2 tries, last: KeyError: 7\n" in ask("status", job.id)
    assert "  ! receivers not notified" in ask("list")
    assert "not notified" not in ask("status", job.id, "--json")  # its keys are a contract


def findings(ask: Callable[..., str], what: str) -> list[tuple[str, str, str]]:
    found = json.loads(ask("doctor", "--json"))
    return [(one["verdict"], one["detail"], one["fix"]) for one in found if one["what"] == what]


@pytest.mark.slow
def test_doctor_warns_of_jobs_in_trouble_and_fails_where_jobs_wait_and_no_worker_listens(
    client: Client, chat_rows: Rows, ask: Callable[..., str]
) -> None:
    """A site's job needs a site's worker, and its fix says so. Without jobs a missing worker is a warning."""
    [(verdict, detail, fix)] = findings(ask, "workers")
    assert (verdict, detail) == ("warn", "no worker listens on queue batchpipe")
    assert fix.startswith("start one: `batchpipe worker`")
    assert findings(ask, "jobs") == []

    job, deep = client.submit(chat_rows(1)), client.submit(chat_rows(1), queue="deep")
    listen(DJANGO)
    of_site = client.submit(chat_rows(1))
    listen()
    put(client, job.id, trouble='{"code": "x", "message": "the disk is full"}')
    put(
        client,
        of_site.id,
        stage="failed",
        notify_attempts=1,
        trouble=NOT_DELIVERED,
    )

    ours, other = findings(ask, "workers")
    assert ours[:2] == ("fail", "no worker listens on queue batchpipe, and 2 jobs wait")
    assert ours[2].startswith("start one: `manage.py batchpipe worker` or `celery -A proj worker`; a plain")
    assert other == (
        "fail",
        "no worker listens on queue deep, and 1 job waits",
        "start one: `batchpipe worker --queues deep` (`batchpipe run` brings its own)",
    )
    [(verdict, detail, fix)] = findings(ask, "jobs")
    assert (verdict, fix) == ("warn", "details: batchpipe status JOB")
    assert detail.startswith("2 jobs in trouble: job_")
    assert f"{job.id}: the disk is full" in detail
    assert f"{of_site.id}: {UNTOLD}1 try, last: KeyError: 7" in detail
    assert deep.id not in detail


def test_telling_has_words_for_each_case() -> None:
    """A job that runs, or whose receivers have heard, has nothing to say."""
    job = JobRecord(id="job_x", stage=State.PARTIAL, trouble=Problem(code="not_delivered", message="KeyError: 7"))
    assert not_notified(job) is None
    assert not_notified(job.evolve(notify_attempts=1)) == f"{UNTOLD}1 try, last: KeyError: 7"
    assert not_notified(job.evolve(notify_attempts=1, notified=True)) is None
    assert not_notified(job.evolve(notify_attempts=1, stage=State.RUNNING)) is None
