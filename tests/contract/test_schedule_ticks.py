"""What is due is submitted once: after outages, by two at once, and when its worker dies at the worst moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pydantic import SecretStr

from batchpipe.cli.schedules import print_schedule
from batchpipe.client.client import Client, Job
from batchpipe.client.schedules import MOST_MISSED, overview, run_now, tick
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import SettingsError, StoreUnavailable, TransientError
from batchpipe.model.records import JOB
from batchpipe.model.schedule import Schedule
from batchpipe.store import LastRun, Store
from batchpipe.tasks.app import current_site_app, make_app
from batchpipe.tasks.runtime import Runtime
from batchpipe.worker.setup import setup

#: A moment at which nothing is due.
NOON = datetime(2026, 5, 12, 12, 0, 30, tzinfo=UTC)


class ScheduledSite:
    """One site: schedules on a real Redis, whose clock is moved. Messages are sent, and nobody takes them."""

    def __init__(self, redis_url: str, prefix: str, home: Path, clock: Any) -> None:
        self.clock = clock
        queue = prefix.strip("{}:")
        self.settings = Settings(redis_url=SecretStr(redis_url), prefix=prefix, home=home, queue=queue)
        current_site().app = make_app(self.settings)
        self.be_at(NOON)

    def be_at(self, moment: datetime) -> None:
        self.clock.offset = moment.timestamp() - time.time()

    def client(self, kind: type[Client] = Client, **schedules: Schedule) -> Client:
        """A worker that was started with these schedules."""
        client = kind(self.settings.model_copy(update={"schedules": schedules}))
        client.store.connection.skew = self.clock
        return client

    def jobs(self, client: Client) -> list[Job]:
        return sorted(client.list_jobs(), key=lambda job: job.record.key or "")

    def keys(self, client: Client) -> list[str | None]:
        return [job.record.key for job in self.jobs(client)]


@pytest.fixture
def site(redis_url: str, prefix: str, tmp_path: Path, clock: Any) -> Iterator[ScheduledSite]:
    site = ScheduledSite(redis_url, prefix, tmp_path / "home", clock)
    yield site
    app = current_site_app()
    assert app is not None
    app.close()


def plan(crontab: str = "0 2 * * *", **fields: Any) -> Schedule:
    return Schedule(
        crontab=crontab,
        **{"input": "/data/{date}.jsonl", "output": "/data/out/{date}-{time}", "key": "k-{datetime}", **fields},
    )


# -- a night -------------------------------------------------------------------------------------------------------


def test_a_run_is_submitted_once_and_with_all_that_its_schedule_says(site: ScheduledSite) -> None:
    """Of the first look on: what would have run before is no matter of ours."""
    full = plan(
        timezone="Europe/Berlin",
        key="nightly-{date}",
        name="{name} of {yesterday}",
        endpoint="/v1/embeddings",
        metadata={"team": "a"},
        tags={"user": 7},
        account="Big",
        queue="slow",
        attempts=2,
        max_rows=10,
        max_bytes=1000,
        on_done="shop.done",
    )
    client = site.client(nightly=full)
    assert tick(client) == []
    site.be_at(datetime(2026, 5, 12, 23, 59, 59, tzinfo=UTC))
    assert tick(client) == []
    site.be_at(datetime(2026, 5, 13, 0, 0, 1, tzinfo=UTC))  # two in Berlin
    [job] = tick(client)
    assert tick(client) == []
    record = site.jobs(client)[0].record
    assert (job.id, record.input, record.output) == (record.id, "/data/2026-05-13.jsonl", "/data/out/2026-05-13-0200")
    assert (record.key, record.name, record.endpoint) == (
        "nightly-2026-05-13",
        "nightly of 2026-05-12",
        "/v1/embeddings",
    )
    assert (record.metadata, record.tags) == ({"team": "a"}, {"schedule": "nightly", "user": 7})
    assert (record.account, record.queue, record.attempts) == ("big", "slow", 2)
    assert (record.max_rows, record.max_bytes, record.on_done and record.on_done["task"]) == (10, 1000, "shop.done")
    [view] = overview(client)
    assert view["last_run"] == datetime(2026, 5, 13, tzinfo=UTC).timestamp()
    assert (view["last_job"], view["last_job_state"], view["last_error"]) == (job.id, "pending", None)
    assert (view["next_run_local"], view["next_run_utc"]) == ("2026-05-14T02:00:00+02:00", "2026-05-14T00:00:00+00:00")
    assert client.store.now() - view["looked_at"] < 60


# -- missed runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missed", "late", "dates"),
    [
        ("latest", timedelta(hours=5), ["2026-05-15"]),
        ("all", timedelta(hours=5), ["2026-05-13", "2026-05-14", "2026-05-15"]),
        ("skip", timedelta(hours=5), []),
        ("skip", timedelta(minutes=4), ["2026-05-15"]),
    ],
)
def test_after_an_outage_missed_runs_are_caught_up_as_the_schedule_says(
    site: ScheduledSite, missed: str, late: timedelta, dates: list[str]
) -> None:
    client = site.client(nightly=plan(missed=missed))
    tick(client)
    site.be_at(datetime(2026, 5, 15, 2, tzinfo=UTC) + late)
    assert len(tick(client)) == len(dates)
    assert tick(client) == []
    assert [job.record.input for job in site.jobs(client)] == [f"/data/{date}.jsonl" for date in dates]
    site.be_at(datetime(2026, 5, 16, 2, 0, 5, tzinfo=UTC))
    assert [job.record.input for job in tick(client)] == ["/data/2026-05-16.jsonl"]


def test_catching_up_all_has_a_bound(site: ScheduledSite) -> None:
    client = site.client(often=plan("* * * * *", missed="all"))
    tick(client)
    site.be_at(NOON + timedelta(days=3))
    jobs = tick(client)
    assert len({job.id for job in jobs}) == MOST_MISSED
    assert jobs[-1].record.key == "k-20260515T1200+0000"
    assert tick(client) == []


def test_what_falls_into_a_pause_is_not_caught_up(site: ScheduledSite) -> None:
    tick(site.client(nightly=plan(missed="all")))
    site.be_at(NOON + timedelta(days=1))
    tick(site.client(nightly=plan(missed="all", enabled=False)))
    client = site.client(nightly=plan(missed="all"))
    assert tick(client) == []
    site.be_at(NOON + timedelta(days=2))
    assert [job.record.key for job in tick(client)] == ["k-20260514T0200+0000"]


def test_another_crontab_begins_again(site: ScheduledSite) -> None:
    """What it would have run before it was written down was not missed, nor when the old one comes back later."""
    tick(site.client(nightly=plan(missed="all")))
    site.be_at(NOON + timedelta(days=3))
    often = site.client(nightly=plan("*/10 * * * *", missed="all"))
    assert tick(often) == []
    site.be_at(NOON + timedelta(days=3, minutes=10))
    assert len(tick(often)) == 1
    site.be_at(NOON + timedelta(days=9))
    assert tick(site.client(nightly=plan(missed="all"))) == []


def test_hosts_of_two_definitions_during_a_deploy_lose_no_run(site: ScheduledSite) -> None:
    """They take turns; each goes on from its own mark."""
    old, new = plan(key="old-{date}"), plan("30 2 * * *", key="new-{date}")
    for minutes in range(-10, 50, 5):
        site.be_at(datetime(2026, 5, 13, 2, 0, 5, tzinfo=UTC) + timedelta(minutes=minutes))
        tick(site.client(nightly=old))
        tick(site.client(nightly=new))
    assert site.keys(site.client()) == ["new-2026-05-13", "old-2026-05-13"]


# -- trouble -------------------------------------------------------------------------------------------------------


class Troubled(Client):
    """Its next submits fail."""

    trouble: list[Exception]

    def submit(self, *args: Any, **options: Any) -> Job:
        if self.trouble:
            raise self.trouble.pop(0)
        return super().submit(*args, **options)


@pytest.mark.parametrize(
    "error", [TransientError("the disk is full"), StoreUnavailable("gone"), SettingsError("no"), RuntimeError("a bug")]
)
def test_trouble_that_may_pass_brings_the_run_back_with_the_next_look(site: ScheduledSite, error: Exception) -> None:
    """And it does not stop the other schedules."""
    client = site.client(Troubled, first=plan(key="first-{date}"), second=plan(key="second-{date}", output="/b"))
    assert isinstance(client, Troubled)
    client.trouble = []
    tick(client)
    client.trouble = [error]
    site.be_at(NOON + timedelta(days=1))
    assert [job.record.key for job in tick(client)] == ["second-2026-05-13"]
    told = overview(client)[0]["last_error"]
    assert told is None or told["message"] == str(error)
    assert [job.record.key for job in tick(client)] == ["first-2026-05-13"]
    assert overview(client)[0]["last_error"] is None
    assert tick(client) == []


def test_a_run_that_can_never_be_submitted_is_told_and_not_tried_again(
    site: ScheduledSite, caplog: pytest.LogCaptureFixture
) -> None:
    client = site.client(
        wrong=plan(endpoint="chat"), one=plan(output="/same"), two=plan(output="/same", key="2-{date}")
    )
    tick(client)
    site.be_at(NOON + timedelta(days=1))
    assert [job.record.key for job in tick(client)] == ["k-20260513T0200+0000"]
    wrong, one, two = overview(client)
    assert wrong["last_error"]["code"] == "invalid_input"
    assert wrong["last_error"]["message"] == "endpoint: 'chat' is not a path such as /v1/chat/completions"
    assert (wrong["last_job"], one["last_error"], two["last_error"]["code"]) == (None, None, "output_in_use")
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [text.split(":")[0] for text in errors] == ["schedule wrong", "schedule two"]
    assert tick(client) == []


def test_what_the_job_of_the_last_run_waits_for_is_told(
    site: ScheduledSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export that is not there: the job waits an hour for it, then fails. Both are seen in the list of schedules."""
    client = site.client(nightly=plan(input=str(tmp_path / "{date}.jsonl"), output=str(tmp_path / "out")))
    tick(client)
    site.be_at(NOON + timedelta(days=1))
    [job] = tick(client)
    runner = Runtime(client.settings).job_runner
    runner.store.connection.skew = site.clock
    assert overview(client)[0]["last_job_trouble"] is None
    runner.run("prepare", job.id, JOB, 1)

    [view] = overview(client)
    assert (view["last_job_state"], view["last_job_trouble"]["code"]) == ("preparing", "input_missing")
    print_schedule(view)
    assert f"  preparing: {tmp_path / '2026-05-13.jsonl'}: no such file\n" in capsys.readouterr().out
    site.be_at(NOON + timedelta(days=1, hours=2))
    runner.run("prepare", job.id, JOB, 1)
    [view] = overview(client)
    assert (view["last_job_state"], view["last_job_trouble"]["code"]) == ("failed", "invalid_input")


def test_a_worker_without_the_schedules_says_so(site: ScheduledSite, caplog: pytest.LogCaptureFixture) -> None:
    assert tick(site.client()) == []
    assert "give it the same batchpipe.toml" in caplog.text


# -- two at once, and dying ----------------------------------------------------------------------------------------


def test_many_looks_at_once_make_one_job_of_each_run(site: ScheduledSite) -> None:
    client = site.client(a=plan("*/10 * * * *", missed="all"), b=plan("0 2 * * *", key="b-{date}", output="/b"))
    tick(client)
    site.be_at(datetime(2026, 5, 13, 2, 0, 5, tzinfo=UTC))
    start = threading.Barrier(8)

    def look(_: int) -> list[str]:
        start.wait()
        return [job.id for job in tick(client)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, range(8)))
    jobs = site.jobs(client)
    assert len(jobs) == 84 + 1  # ten minutes past noon to two o'clock
    assert len({job.record.key for job in jobs}) == len(jobs)
    assert {job.id for job in jobs} == {job_id for ids in found for job_id in ids}
    assert tick(client) == []


DYING = """
import os, signal, sys
from batchpipe.client.client import default_client
from batchpipe.client.schedules import tick

client = default_client()
client.store.connection.skew = lambda: float(sys.argv[1])
client.store.schedules.mark_handled = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
tick(client)
"""


def test_a_worker_that_dies_between_submitting_and_recording_does_no_harm(site: ScheduledSite, tmp_path: Path) -> None:
    """Twice the same run, and one job of it."""
    client = site.client(nightly=plan())
    tick(client)
    site.be_at(NOON + timedelta(days=1))
    (tmp_path / "batchpipe.toml").write_text(
        '[schedules.nightly]\ncrontab = "0 2 * * *"\ninput = "/data/{date}.jsonl"\n'
        'output = "/data/out/{date}-{time}"\nkey = "k-{datetime}"\n'
    )
    environment = {
        "PATH": os.environ["PATH"],
        "BATCHPIPE_REDIS_URL": site.settings.redis_address(),
        "BATCHPIPE_PREFIX": site.settings.prefix,
        "BATCHPIPE_QUEUE": site.settings.queue,
        "BATCHPIPE_HOME": str(site.settings.home),
    }
    command = [sys.executable, "-c", DYING, str(site.clock.offset)]
    for _ in range(2):
        died = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert died.returncode == -9, died.stderr
    [made] = site.jobs(client)
    assert overview(client)[0]["last_job"] is None
    assert [job.id for job in tick(client)] == [made.id]
    assert overview(client)[0]["last_job"] == made.id
    assert len(site.jobs(client)) == 1


# -- by hand -------------------------------------------------------------------------------------------------------


def test_a_run_by_hand_is_the_run_of_its_time(site: ScheduledSite) -> None:
    """What beat would submit then is the same job, and beat still handles its own."""
    client = site.client(nightly=plan(timezone="Europe/Berlin", key="nightly-{date}"))
    tick(client)
    early = run_now(client, "nightly", datetime(2026, 5, 13, 1, 0))
    assert early.record.output == "/data/out/2026-05-13-0100"
    assert run_now(client, "nightly", datetime(2026, 5, 12, 23, 30, tzinfo=UTC)).id == early.id
    site.be_at(NOON + timedelta(days=1))
    assert [job.id for job in tick(client)] == [early.id]
    assert run_now(client, "nightly").id == early.id
    with pytest.raises(SettingsError, match="there is no schedule 'weekly'; there are: nightly"):
        run_now(client, "weekly")


def test_a_site_that_is_set_up_has_the_task_and_its_beat_entry(tmp_path: Path) -> None:
    """In the site's own app; beside what the site sends itself."""
    app = Celery("site", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {"theirs": {"task": "site.own", "schedule": 60}}
    setup(app, {"HOME": tmp_path, "SCHEDULES": {"nightly": {"CRONTAB": "@daily", "INPUT": "/data/in.jsonl"}}})
    app.loader.import_default_modules()  # as workers and beat do
    assert set(app.conf.beat_schedule) == {"theirs", "batchpipe-sweep", "batchpipe-schedules"}
    assert "batchpipe.schedules" in app.tasks


# -- the mark ------------------------------------------------------------------------------------------------------


def test_the_mark_never_goes_back(store: Store, clock: Any) -> None:
    """Nor does the last run; trouble is not noted over what somebody else has handled meanwhile."""
    now, handled = store.schedules.handled_until("a", "f1")
    assert handled == pytest.approx(now, abs=0.001)
    store.schedules.mark_handled("a", "f1", now + 100, LastRun(now + 100, job="job_2"))
    store.schedules.mark_handled("a", "f1", now + 50, LastRun(now + 50, job="job_1"))
    store.schedules.mark_handled("a", "f1", None, LastRun(now + 100))
    assert store.schedules.handled_until("a", "f1")[1] == pytest.approx(now + 100, abs=0.001)
    mark = store.schedules.state("a", "f1")
    assert mark.last is not None
    assert mark.last.job == "job_2"
    assert mark.looked == pytest.approx(now, abs=5)
    assert store.schedules.state("b", "f1") == store.schedules.state("a.b", "f1")


def test_a_definition_that_nobody_has_used_for_an_hour_is_forgotten(store: Store, clock: Any) -> None:
    old, _ = store.schedules.handled_until("a", "f1")
    store.schedules.handled_until("ab", "f1")
    clock.advance(3000)
    store.schedules.handled_until("a", "f2")
    assert store.schedules.handled_until("a", "f1")[1] == pytest.approx(old, abs=0.001)
    clock.advance(4000)
    store.schedules.handled_until("a", "f2")
    now, handled = store.schedules.handled_until("a", "f1")
    assert handled == pytest.approx(now, abs=0.001)
    assert store.schedules.handled_until("ab", "f1")[1] == pytest.approx(old, abs=1)
