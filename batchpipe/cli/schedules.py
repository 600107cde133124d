"""Commands about schedules: list them, run one now."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from batchpipe.cli.common import emit_json, open_client, out, say
from batchpipe.cli.options import json_option


@click.group("schedules", context_settings={"help_option_names": ["-h", "--help"]})
def schedules_command() -> None:
    """The jobs that `batchpipe beat` submits by itself, set in batchpipe.toml; see docs/cron.md."""


@schedules_command.command("list")
@json_option
def list_schedules(as_json: bool) -> None:
    """List the schedules: when they run, and the outcome of the last run."""
    from batchpipe.client.schedules import overview

    client = open_client()
    views = overview(client)
    if as_json:
        return emit_json(views)
    for view in views:
        print_schedule(view)
    looks = [view["looked_at"] or 0.0 for view in views]
    quiet = client.now() - max(looks, default=0.0)
    if not views:
        say("there are no schedules; they are set in batchpipe.toml, see docs/cron.md")
    elif not max(looks):
        say("nobody has looked for due runs yet: start `batchpipe beat` and `batchpipe worker`")
    elif quiet > max(60.0, 4 * client.settings.schedule_seconds):
        say(f"nobody has looked for due runs in {quiet / 60:.0f} minutes: do `batchpipe beat` and a worker run?")
    return None


def print_schedule(view: dict[str, Any]) -> None:
    """A few lines for people."""
    off = "" if view["enabled"] else "  (not enabled)"
    out(f"{view['name']}  {view['crontab']}  {view['timezone']}  missed: {view['missed']}{off}")
    if view["next_run"]:
        out(f"  next run  {_short(view['next_run_local'])}  ({_short(view['next_run_utc'])})")
    if view["last_run"]:
        state = view["last_job_state"] or "its records have expired"
        job = f"{view['last_job']} ({state})" if view["last_job"] else "no job"
        out(f"  last run  {_short(view['last_run_local'])}  {job}")
    if view["last_job_trouble"]:
        out(f"  {view['last_job_state']}: {view['last_job_trouble']['message']}")
    if view["last_error"]:
        out(f"  error     {view['last_error']['code']}: {view['last_error']['message']}")


def _short(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M %z}"


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601."""

    name = "ISO8601"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time such as 2026-03-01T02:00 or 2026-03-01T02:00+01:00", param, ctx)


@schedules_command.command("run")
@click.argument("name", metavar="NAME")
@click.option("--at", type=Moment(), help="As if it were this time, in the schedule's zone if it names none.  [now]")
def run_schedule(name: str, at: datetime | None) -> None:
    """Submit a schedule now, as beat would, and print the job's id alone. The same key returns the first job."""
    from batchpipe.client.schedules import run_now

    client = open_client()
    before = client.now()
    job = run_now(client, name, at)
    if (job.record.created_at or before) < before:
        say(f"this run is known: its key is {job.record.key}")
    out(job.id)
