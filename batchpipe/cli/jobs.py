"""Commands about jobs: submit, results, cancel, retry, resume, land, validate, logs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from batchpipe.cli.common import (
    clock,
    counted,
    emit_json,
    emit_parts,
    input_of,
    number,
    open_client,
    out,
    say,
    settings,
)
from batchpipe.cli.options import (
    Pair,
    Place,
    endpoint_option,
    json_option,
    recipe_options,
    size_options,
    submit_options,
)
from batchpipe.errors import PermanentError
from batchpipe.masking import without_secrets
from batchpipe.model.records import DEFAULT_ACCOUNT


@click.command("submit")
@submit_options
def submit_command(input: tuple[str, ...], account: str | None, **options: Any) -> None:
    """Enqueue a job and print its id alone. A worker does the work: `batchpipe worker`."""
    from batchpipe.client.submission import absolute
    from batchpipe.config.account import SANDBOX_ACCOUNT

    if account == SANDBOX_ACCOUNT and account not in settings().accounts:
        raise click.UsageError(f"the account {account!r} exists only during `batchpipe run --sandbox`")
    source = input_of(input)
    client = open_client()
    with _messages_shown():
        job = client.submit(source, account=account or DEFAULT_ACCOUNT, **options)
    if job.record.output != absolute(options["output"]):
        reads = without_secrets(job.record.input)
        say(f"a job with this key exists: it reads {reads} and writes to {job.record.output}")
    if not job.heard:
        _warn_of(client.missing_worker(job, ask="lapsed"))
    out(job.id)


class _Said(logging.Handler):
    """Shows log messages to the person who typed the command."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"Warning: {record.getMessage()}")


@contextmanager
def _messages_shown() -> Iterator[None]:
    """Say why the broker does not take messages: the job is recorded all the same, and a person should correct it."""
    logger, handler = logging.getLogger("batchpipe.pipeline.runner"), _Said(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _warn_of(nobody: str) -> None:
    if nobody:
        say(f"Warning: {nobody}")


@click.command("results")
@click.argument("job_id", metavar="JOB")
@click.option("--errors", is_flag=True, help="Print the error rows instead.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "csv", "parquet", "text"]),
    default="jsonl",
    show_default=True,
    help="jsonl: the provider's lines; csv, parquet: a table of all rows; text: what was answered.",
)
@click.option("--columns", metavar="NAMES", help="Only these columns of the table, separated by commas.")
@click.option("--excel", is_flag=True, help="Make the CSV safe to open in a spreadsheet.")
@click.option("--no-retries", is_flag=True, help="Of this job alone, without the rows of its retries.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write it there.")
def results_command(
    job_id: str, errors: bool, kind: str, columns: str | None, excel: bool, no_retries: bool, output: str | None
) -> None:
    """Print the output rows of an ended job, as the provider wrote them, in input order; or all rows as a table."""
    job = open_client().find_job(job_id)
    view = job.to_dict(shards=False)
    if not job.state.ended:
        raise PermanentError(
            f"job {job.id} has not ended: it is {job.state.value}; `batchpipe wait {job.id}` waits for it"
        )
    if view["error_file" if errors else "output_file"] is None:
        why = view["error"]["message"] if view["error"] else "it was cancelled before anything was sent"
        raise PermanentError(f"job {job.id} has no result files: {why}")
    from batchpipe.client.result_files import write_results

    if kind == "parquet" and output is None and sys.stdout.isatty():
        raise click.UsageError("Parquet is binary: give a file with -o, or pipe it")
    names = [name.strip() for name in columns.split(",")] if columns else []
    write_results(job, kind, names, output, errors=errors, excel=excel, retries=not no_retries)


@click.command("cancel")
@click.argument("job_id", metavar="JOB")
@json_option
def cancel_command(job_id: str, as_json: bool) -> None:
    """Cancel a job; finished rows are kept. No error if it has ended or was cancelled before."""
    client = open_client()
    job = client.cancel(client.find_job(job_id).id)
    if job.record.input_here and not job.record.closed:  # its worker was that of a `run`, which may be gone
        from batchpipe.cli.run import local_runs

        local_runs(client).carry_out_cancel(job)
        if not job.refresh().state.ended:
            say(f"the provider is stopping its batches; `batchpipe wait {job.id}` collects the rows that finished")
    if as_json:
        return emit_parts(job.iter_json())
    say(f"{job.id} is {job.state.value}")
    return None


@click.command("retry")
@click.argument("job_id", metavar="JOB")
@click.option("-o", "--output", type=Place(), help="Folder or URL for the results.  [default: below the job's]")
@click.option("--only", metavar="CODE", multiple=True, help="Only rows with this error code or status; repeatable.")
@click.option(
    "--set",
    "changes",
    type=Pair(as_json=True),
    multiple=True,
    callback=lambda ctx, param, pairs: dict(pairs),
    help="Change a field of each body, such as model='\"gpt-4o\"'; repeatable.",
)
@size_options("the job's")
def retry_command(
    job_id: str,
    output: str | None,
    only: tuple[str, ...],
    changes: dict[str, Any],
    max_rows: int | None,
    max_bytes: int | None,
) -> None:
    """Send the rows of an ended job that are not ok as a new job, and print its id. When it has ended, the results of
    the first show both as one.
    """
    from batchpipe.model.reasons import lasting

    client = open_client()
    old = client.find_job(job_id)
    job = client.retry(old.id, output=output, only=only, changes=changes, max_rows=max_rows, max_bytes=max_bytes)
    if (same := lasting(old.record.reasons)) and not only and not changes:
        again = "will again unless the provider takes them as they are by now"
        say(f"note: {counted(same, 'row')} failed for what is in them, and {again}: batchpipe status {old.id}")
    say(f"results will be in {job.record.output}")
    if job.record.input_here:
        say(f"follow it: batchpipe wait {job.id}")
    if not job.heard:
        _warn_of(client.missing_worker(job, ask="lapsed"))
    out(job.id)


@click.command("land")
@click.argument("job_id", metavar="JOB")
def land_command(job_id: str) -> None:
    """Collect what is there; nothing is sent again. For a job that is held because a batch was cancelled elsewhere:
    send nothing more, and keep what has finished. For an ended job: read again the batches that it stopped waiting for
    (the key did not see them, say), and add their rows to the results.
    """
    client = open_client()
    job = client.land(client.find_job(job_id).id)
    say(f"{job.id} is {job.state.value}: batchpipe wait {job.id}")


@click.command("resume")
@click.argument("account", default="default", metavar="[ACCOUNT|JOB]")
def resume_command(account: str) -> None:
    """End the pause of an account, once its cause is corrected, or the hold of a job after a batch of it was cancelled
    elsewhere: its rows are sent again. [default account: default]
    """
    client = open_client()
    if account.startswith("job_") or (account == "last" and account not in client.settings.accounts):
        job_id = client.find_job(account).id
        goes_on = client.resume_job(job_id)
        return say(f"{job_id} goes on: its rows are sent again" if goes_on else f"{job_id} is not held")
    paused, republished, left = client.resume(account)
    if paused:
        others = f"; those of {counted(left, 'job')} follow with the next sweeps" if left else ""
        return say(f"account {account!r} goes on: {counted(republished, 'shard')} at once{others}")
    if republished or left:
        more = f"; the next sweeps look for more in {counted(left, 'job')}" if left else ""
        shards = f"{counted(republished, 'shard')}{more}"
        return say(f"account {account!r} is not paused; what waited for a person goes on at once: {shards}")
    client.settings.check_known(account)  # perhaps it is misspelt: the one that was meant is still paused
    return say(f"account {account!r} is not paused")


@click.command("validate")
@click.argument("input", metavar="INPUT...", nargs=-1, required=True)
@endpoint_option
@size_options()
@click.option("--account", default="default", show_default=True, help="Account whose limits count.")
@recipe_options
@json_option
def validate_command(
    input: tuple[str, ...],
    endpoint: str | None,
    max_rows: int | None,
    max_bytes: int | None,
    account: str,
    as_json: bool,
    **recipe: Any,
) -> None:
    """Check an input without sending anything. Needs no Redis."""
    from batchpipe.client.recipes import recipe_of
    from batchpipe.client.validation import validate_input
    from batchpipe.sandbox.models import is_slip, nearest

    chosen = settings()
    how = recipe_of({**recipe, "endpoint": endpoint})
    with _as_path(input_of(input)) as path:
        found = validate_input(
            path, chosen, endpoint=endpoint, max_rows=max_rows, max_bytes=max_bytes, account=account, recipe=how
        )
    for model in found.models if chosen.is_openai(account) else ():
        if is_slip(model):
            near = nearest(model)
            say(f"Warning: no model {model[:100]!r} is known" + (f"; did you mean {near}?" if near else ""))
    if as_json:
        return emit_json(asdict(found))
    words = ", ".join(f"{model or 'no model'} ({number(rows)})" for model, rows in found.models.items())
    parts = ((found.rows, "row"), (found.bytes, "byte"), (found.shards, "shard"))
    say(f"ok: {', '.join(counted(*part) for part in parts)}; {words}")
    return None


def _as_path(source: Any) -> Any:
    """Standard input is read twice, so it needs a file."""
    from contextlib import nullcontext

    from batchpipe.storage.local import temporary_lines

    return nullcontext(source) if isinstance(source, str | list) else temporary_lines(source)


@click.command("logs")
@click.argument("job_id", metavar="JOB")
@click.option("--follow", is_flag=True, help="Print events as they come, until the job is closed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; with --follow one object a line.")
def logs_command(job_id: str, follow: bool, as_json: bool) -> None:
    """Print the event log of a job, oldest first: its last 2,000 events."""
    from batchpipe.client.job import MOST_EVENTS

    job = open_client().find_job(job_id)
    if not follow:
        events = job.logs()
        if len(events) >= MOST_EVENTS and events[0]["event"] not in ("submitted", "recovered"):
            say(f"older events were dropped: the log of a job keeps its last {MOST_EVENTS:,}")
        if as_json:
            return emit_json(events)
        for event in events:
            out(_event_line(event))
        return None
    for event in job.iter_logs(follow=True):
        emit_json(event, indent=None) if as_json else out(_event_line(event))
    return None


def _event_line(event: dict[str, Any]) -> str:
    rest = {name: value for name, value in event.items() if name not in ("id", "at", "event")}
    return f"{clock(event['at'])}  {event['event']:<18} {'  '.join(f'{k}={v}' for k, v in rest.items())}"
