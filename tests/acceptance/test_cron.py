"""Schedules by `batchpipe beat` and `batchpipe worker`, and submits from the system's cron, as people set them up."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import redis

from tests.acceptance.user_machine import Machine, read_rows, until

#: Once a year, so that no test runs on the day; the last one is missed as soon as the mark is moved back.
TABLES = """
[schedules.newyear]
crontab = "0 2 1 1 *"
timezone = "Europe/Berlin"
input = "exports/{date}.jsonl"
output = "results/{date}"
key = "newyear-{date}"

[schedules.off]
crontab = "@daily"
input = "exports/none.jsonl"
enabled = false
"""


@pytest.fixture(scope="module")
def site(new_machine: Callable[..., Machine]) -> Machine:
    """A machine with schedules, a worker and beat, which has looked for due runs once."""
    machine = new_machine("cron", BATCHPIPE_SCHEDULE_SECONDS="0.5")
    (machine.folder / "exports").mkdir()
    machine.input(3, name=f"exports/{last_run():%F}.jsonl")
    machine.write("batchpipe.toml", TABLES.encode())
    machine.start("beat")
    machine.worker()
    until(lambda: mark(machine), what="beat and worker have looked at the schedules")
    return machine


def last_run() -> datetime:
    """The newest first of January, two o'clock, in Berlin."""
    berlin = ZoneInfo("Europe/Berlin")
    now = datetime.now(berlin)
    this = datetime(now.year, 1, 1, 2, tzinfo=berlin)
    return this if this <= now else datetime(now.year - 1, 1, 1, 2, tzinfo=berlin)


def mark(machine: Machine, *, back_to: datetime | None = None) -> float | None:
    """Up to when `newyear` is handled; it can be moved back."""
    with redis.Redis.from_url(machine.redis_url or "", decode_responses=True) as client:
        fields: dict[str, str] = client.hgetall("{batchpipe}:schedules")
        found = next((name for name in fields if name.startswith("newyear/") and name.count("/") == 1), None)
        if found is not None and back_to is not None:
            client.hset("{batchpipe}:schedules", found, str(back_to.timestamp()))
        return float(fields[found]) if found is not None else None


def test_a_missed_run_is_caught_up_and_its_results_land(site: Machine) -> None:
    """`schedules list` tells of it; the same run by hand, and beat's further looks, are the same job."""
    before = {view["name"]: view for view in site.json("schedules", "list")}
    assert (before["newyear"]["last_run"], before["newyear"]["last_job"]) == (None, None)
    assert (before["off"]["enabled"], before["off"]["next_run"]) == (False, None)

    mark(site, back_to=last_run() - timedelta(days=800))
    [job] = until(lambda: site.json("list"), what="the missed run is submitted")
    assert site.run("wait", job["id"]).code == 0
    assert len(read_rows(site.folder / f"results/{last_run():%F}/output.jsonl")) == 3
    assert job["tags"] == {"schedule": "newyear"}

    [view, _] = site.json("schedules", "list")
    assert view["last_run"] == last_run().timestamp()
    assert (view["last_job"], view["last_job_state"], view["last_error"]) == (job["id"], "succeeded", None)
    assert view["next_run_local"] == last_run().replace(year=last_run().year + 1).isoformat()
    said = site.run("schedules", "list").out
    assert "newyear  0 2 1 1 *  Europe/Berlin  missed: latest" in said
    assert f"next run  {last_run().year + 1}-01-01 02:00 +0100  ({last_run().year + 1}-01-01 01:00 +0000)" in said
    assert f"last run  {last_run():%F} 02:00 +0100  {job['id']} (succeeded)" in said
    assert "off  @daily  UTC  missed: latest  (not enabled)" in said

    again = site.run("schedules", "run", "newyear", "--at", f"{last_run():%F}T02:00")
    assert (again.code, again.out) == (0, f"{job['id']}\n")
    assert f"this run was submitted before: its key is newyear-{last_run():%F}" in again.err
    mark(site, back_to=last_run() - timedelta(days=800))  # as if it had died before it could record the run
    until(lambda: mark(site) == last_run().timestamp(), what="beat has looked again")
    assert len(site.json("list")) == 1
    assert site.billed(job["id"]) == {"r0": 1, "r1": 1, "r2": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("run", "weekly"), 1, "Error: there is no schedule 'weekly'; there are: newyear, off"),
        (("run", "off", "--at", "soon"), 2, "'soon' is no time such as 2026-03-01T02:00"),
        (("run",), 2, "Missing argument 'NAME'"),
    ],
)
def test_a_wrong_run_by_hand_is_refused(site: Machine, arguments: tuple[str, ...], code: int, complaint: str) -> None:
    done = site.run("schedules", *arguments)
    assert (done.code, done.out) == (code, "")
    assert complaint in done.err
    assert "Traceback" not in done.err


def test_a_wrong_schedule_stops_every_command_with_one_line(new_machine: Callable[..., Machine]) -> None:
    machine = new_machine("wrong")
    machine.write("batchpipe.toml", b'[schedules.nightly]\ncrontab = "0 25 * * *"\ninput = "x"\n')
    done = machine.run("beat")
    assert done.code == 1
    assert done.err == "Error: schedules.nightly.crontab: '0 25 * * *' is no crontab: bad hour\n"


def test_submits_that_overlap_need_no_lock(site: Machine) -> None:
    """What a crontab on three hosts does that all fire at once, one of them killed on the way."""
    source = site.input(2)
    started = [site.start("submit", source, "-o", site.folder / "nightly", "--key", "nightly-x") for _ in range(8)]
    started[0].kill()
    done = [process.finish() for process in started[1:]]
    assert {(one.code, one.err) for one in done} == {(0, "")}
    [job] = {one.out.strip() for one in done}
    assert site.run("wait", job).code == 0
    late = site.run("submit", source, "-o", site.folder / "nightly", "--key", "nightly-x")
    assert (late.code, late.out.strip()) == (0, job)
    assert site.billed(job) == {"r0": 1, "r1": 1}
    assert [found["id"] for found in json.loads(site.run("list", "--json").out)].count(job) == 1
