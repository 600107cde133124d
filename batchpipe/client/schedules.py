"""Submits the scheduled jobs, each once at its time. Called by beat every few seconds.

The key of each run makes it safe to call this twice at once, or to kill it anywhere: the second caller gets the job of
the first. The run is recorded as handled only after the submit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

from batchpipe.client.client import Client, Job
from batchpipe.client.options import NAMES, SubmitOptions
from batchpipe.client.recipes import text_or_file
from batchpipe.errors import BatchpipeError, JobNotFound, PermanentError, SettingsError, StoreUnavailable
from batchpipe.masking import without_secrets
from batchpipe.model.records import Problem
from batchpipe.model.schedule import Schedule
from batchpipe.store import LastRun

logger = logging.getLogger(__name__)

#: ``missed = "all"`` makes up for at most so many missed runs, the newest.
MOST_MISSED = 100
#: ``missed = "skip"`` still does runs that are no older: a busy worker or a restart of beat is not an outage.
TOLERANCE_SECONDS = 300.0


def tick(client: Client) -> list[Job]:
    """Submit the runs that are due. Returns the jobs, existing ones too. Trouble with one does not stop the others."""
    jobs: list[Job] = []
    schedules = client.settings.schedules
    if not schedules:
        logger.warning("beat has schedules, but the settings of this worker have none: give it the same batchpipe.toml")
    for name, schedule in schedules.items():
        try:
            jobs += _tick_one(client, name, schedule)
        except BatchpipeError as error:  # it is not handled, so the next tick tries it again
            logger.warning("schedule %s: will try again: %s", name, error)
        except Exception:
            logger.exception("schedule %s: will try again", name)
    return jobs


def _tick_one(client: Client, name: str, schedule: Schedule) -> Iterator[Job]:
    now, handled = client.store.schedules.handled_until(name, schedule.fingerprint)
    if not schedule.enabled:  # runs during a pause were left out on purpose
        client.store.schedules.mark_handled(name, schedule.fingerprint, now)
        return
    end = datetime.fromtimestamp(now, UTC)
    due = schedule.between(datetime.fromtimestamp(handled, UTC), end, MOST_MISSED)
    wanted = _wanted(schedule, due, end)
    for at in wanted:
        job = _run(client, name, schedule, at)
        if job is not None:
            yield job
    if due and not wanted:
        logger.info("schedule %s: missed at %s, skipped", name, due[-1])
        client.store.schedules.mark_handled(name, schedule.fingerprint, due[-1].timestamp())


def _wanted(schedule: Schedule, due: list[datetime], now: datetime) -> list[datetime]:
    """Those of the due runs that the schedule wants, the oldest first."""
    if schedule.missed == "all":
        return due
    if schedule.missed == "skip":
        due = [at for at in due if now.timestamp() - at.timestamp() <= TOLERANCE_SECONDS]
    return due[-1:]


def _run(client: Client, name: str, schedule: Schedule, at: datetime) -> Job | None:
    """Submit one run and record it as handled, also if it can never be submitted. Raises errors that may pass."""
    fingerprint, when = schedule.fingerprint, at.timestamp()
    try:
        job = submit_run(client, name, schedule, at)
    except PermanentError as error:
        logger.error("schedule %s: the run of %s was refused: %s", name, at.isoformat(), error)
        client.store.schedules.mark_handled(name, fingerprint, when, LastRun(when, error=_problem(error)))
        return None
    except BatchpipeError as error:
        if not isinstance(error, StoreUnavailable):
            client.store.schedules.mark_handled(name, fingerprint, None, LastRun(when, error=_problem(error)))
        raise
    client.store.schedules.mark_handled(name, fingerprint, when, LastRun(when, job=job.id))
    logger.info("schedule %s: the run of %s is job %s", name, at.isoformat(), job.id)
    return job


def submit_run(client: Client, name: str, schedule: Schedule, at: datetime) -> Job:
    """Submit the run of this time; the same time is the same job. Raises as ``submit``."""

    options: dict[str, Any] = {field: getattr(schedule, field) for field in NAMES if field != "request"}
    for field in ("prompt", "system", "body"):
        options[field] = text_or_file(options[field], field)
    options["tags"] = {"schedule": name, **schedule.tags}
    for field in ("output", "key", "name"):
        if options[field] is not None:
            options[field] = schedule.fill(options[field], name, at)
    source = schedule.fill(schedule.input, name, at)
    return client.submit(source, may_come_later=True, **cast(SubmitOptions, options))


def find_schedule(client: Client, name: str) -> Schedule:
    """Raises SettingsError, which names the existing ones."""
    schedules = client.settings.schedules
    if name not in schedules:
        known = ", ".join(schedules) or "none; they are set in batchpipe.toml, see docs/cron.md"
        raise SettingsError(f"there is no schedule {name!r}; there are: {known}")
    return schedules[name]


def run_now(client: Client, name: str, at: datetime | None = None) -> Job:
    """Submit a run as beat would at this time (now). A time without a zone is in the schedule's zone."""
    schedule = find_schedule(client, name)
    if at is None:
        at = datetime.fromtimestamp(client.store.now(), UTC)
    elif at.tzinfo is None:
        at = at.replace(tzinfo=schedule.zone)
    return submit_run(client, name, schedule, at.astimezone(UTC))


def overview(client: Client) -> list[dict[str, Any]]:
    """What ``batchpipe schedules list --json`` prints: times in unix seconds, or null."""
    now = datetime.fromtimestamp(client.store.now(), UTC)
    return [_view(client, name, schedule, now) for name, schedule in client.settings.schedules.items()]


def _view(client: Client, name: str, schedule: Schedule, now: datetime) -> dict[str, Any]:
    mark = client.store.schedules.state(name, schedule.fingerprint)
    following = next(schedule.after(now), None) if schedule.enabled else None
    last = mark.last or LastRun(0)
    job = _known(client, last.job)
    return {
        "name": name,
        "enabled": schedule.enabled,
        "crontab": schedule.crontab,
        "timezone": schedule.timezone,
        "missed": schedule.missed,
        "input": without_secrets(schedule.input),
        "output": without_secrets(schedule.output) if schedule.output is not None else None,
        "key": schedule.key,
        "next_run": following.timestamp() if following else None,
        "next_run_local": following.isoformat() if following else None,
        "next_run_utc": following.astimezone(UTC).isoformat() if following else None,
        "last_run": last.at or None,
        "last_run_local": datetime.fromtimestamp(last.at, schedule.zone).isoformat() if last.at else None,
        "last_job": last.job,
        "last_job_state": job.state.value if job else None,
        "last_job_trouble": _view_of(_trouble(job)) if job else None,
        "last_error": _view_of(last.error),
        "looked_at": mark.looked,
    }


def _known(client: Client, job_id: str | None) -> Job | None:
    """None if there is no job, or its records have expired."""
    if job_id is None:
        return None
    try:
        return client.get_job(job_id)
    except JobNotFound:
        return None


def _trouble(job: Job) -> Problem | None:
    """Why it failed, or what it waits for: an input that is not there yet."""
    return job.record.error if job.state.ended else job.record.trouble


def _view_of(problem: Problem | None) -> dict[str, str] | None:
    return {"code": problem.code, "message": problem.message} if problem else None


def _problem(error: BatchpipeError) -> Problem:
    return Problem(code=error.code, message=error.message)
