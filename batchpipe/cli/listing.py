"""The command list: the newest jobs, a line each, and below it what there is to say of one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from batchpipe.cli.common import emit_json, open_client, out, say
from batchpipe.cli.options import WholeNumber, json_option
from batchpipe.cli.text import COLUMNS, clip, left, right, short_number
from batchpipe.masking import without_secrets
from batchpipe.model.progress import rate_words
from batchpipe.model.reasons import reason_words
from batchpipe.model.records import State
from batchpipe.model.views import not_notified
from batchpipe.model.waits import wait_words

if TYPE_CHECKING:
    from batchpipe.model.records import JobRecord, Problem

_NAME, _ID, _STATE, _ROWS, _PERCENT = 25, 23, 10, 17, 4


@click.command("list")
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only jobs in this state.")
@click.option("--limit", type=WholeNumber(min=1), default=20, show_default=True, help="Jobs at most.")
@json_option
def list_command(state: str | None, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    client = open_client()
    jobs = client.list_jobs(state=state, limit=limit)
    if warning := client.clock().words():
        say(f"Warning: {warning}")
    if as_json:
        return emit_json(client.show(jobs))
    if not jobs:
        return say("no jobs" + (f" in state {state}" if state else ""))
    queues = {job.record.queue for job in jobs if job.record.queue and not job.record.closed}
    silent = client.deserted(queues, ask="lapsed")
    out(
        f"{left('NAME', _NAME)}  {left('JOB', _ID)}  {left('STATE', _STATE)}  {right('ANSWERED', _ROWS)}  "
        f"{right('%', _PERCENT)}  CREATED"
    )
    for job, view in zip(jobs, client.show(jobs), strict=True):
        for line in job_lines(job.record, view, silent):
            out(line)
    return None


def job_lines(job: JobRecord, view: dict[str, Any], silent: set[str]) -> Iterator[str]:
    """A job's line, and those below it; ``silent``: queues without a worker. None is wider than a terminal."""
    progress = view["progress"]
    percent = f"{int(progress['percent'])}%" if progress["percent"] is not None else "-"
    # the end of a path says more than its beginning
    name = left(name_of(job), _NAME, end=not job.name)
    rows = f"{short_number(progress['answered'], 8)}/{short_number(progress['total'], 8)}"
    yield (
        f"{name}  {left(job.id, _ID)}  {left(_state(job), _STATE)}  {right(rows, _ROWS)}  "
        f"{right(percent, _PERCENT)}  {_when(job.created_at)}"
    )
    for note in _notes(job, view, silent):
        yield "  " + clip(note, COLUMNS - 2)


def _notes(job: JobRecord, view: dict[str, Any], silent: set[str]) -> Iterator[str]:
    """What there is to say of a job beside its line: how fast it is, then what a person should know."""
    if pace := _pace(view):
        yield pace
    if view["waits_for"] is not None and not job.hold:
        yield f"! waits: {wait_words(view['waits_for'])}"
    if job.error is not None:
        yield f"! {_brief(job.error)}"
    if view["reasons"]:
        yield f"! not ok: {reason_words(view['reasons'])}"
    if job.hold and not job.state.ended:
        yield f"! held: {_brief(job.hold)}"
    if not_notified(job):
        yield "! receivers not notified"
    if not job.closed and job.queue in silent:
        yield f"! no worker on queue {job.queue}"


def _pace(view: dict[str, Any]) -> str:
    eta = view["eta"]["text"] if view["eta"] else ""
    return "; ".join(filter(None, (rate_words(view["progress"]["rows_per_second"]), eta)))


def name_of(job: JobRecord) -> str:
    """What a person knows the job by. If a program gave the rows, the path of our copy says less than key or output."""
    place = job.output if not job.output.rstrip("/").endswith(job.id) else "-"  # its id has a column
    return job.name or ((job.key or place) if job.spooled else "") or without_secrets(job.input)


def _state(job: JobRecord) -> str:
    """Show a job also if its record cannot be read."""
    return "unreadable" if job.error is not None and job.error.code == "record_unreadable" else str(job.state.value)


def _when(seconds: float | None) -> str:
    """Local time, without the year: `11-30 08:51`."""
    return datetime.fromtimestamp(seconds).strftime("%m-%d %H:%M") if seconds else "-"


def _brief(problem: Problem) -> str:
    """An error's code and words: `status` has them all."""
    return " ".join(f"{problem.code}: {problem.message}".split())
