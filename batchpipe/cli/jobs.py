"""Commands about jobs: submit, status, list, results, cancel, retry, resume, validate, logs."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from batchpipe.cli.house import (
    Place,
    clock,
    emit_json,
    input_of,
    json_option,
    number,
    open_client,
    out,
    say,
    settings,
    submit_options,
)
from batchpipe.errors import Never
from batchpipe.jobs import Stage, State
from batchpipe.masking import without_secrets
from batchpipe.settings import SANDBOX_ACCOUNT
from batchpipe.views import ended_early, telling

if TYPE_CHECKING:
    from batchpipe.client import Client
    from batchpipe.jobs import JobRecord, Problem, ShardRecord

#: Past its time by so much, work is late enough to look for its workers.
LATE_SECONDS = 60.0
#: Characters of an error in a list.
MOST_OF_AN_ERROR = 100


@click.command("submit")
@submit_options
def submit_command(input: str, metadata: Any, extra: Any, account: str | None, **options: Any) -> None:
    """Enqueue a job and print its id alone. A worker does the work: `batchpipe worker`."""
    from batchpipe.settings import SANDBOX_ACCOUNT
    from batchpipe.submission import absolute

    if account == SANDBOX_ACCOUNT and account not in settings().accounts:
        raise click.UsageError(f"the account {account!r} exists only during `batchpipe run --sandbox`")
    source = input_of(input)
    client = open_client()
    job = client.submit(source, account=account or "default", metadata=dict(metadata), extra=dict(extra), **options)
    if job.record.output != absolute(options["output"]):
        say(f"this key is known: its job reads {job.record.input} and writes to {job.record.output}")
    out(job.id)


@click.command("status")
@click.argument("job_id", metavar="JOB")
@json_option
def status_command(job_id: str, as_json: bool) -> None:
    """Show where a job stands."""
    client = open_client()
    job = client.get_job(job_id)
    view = job.to_dict()
    if as_json:
        return emit_json(view)
    rows = view["rows"]
    out(f"{view['id']}  {view['state']}" + (f"  {view['name']}" if view["name"] else ""))
    out(f"account   {view['account']}{_pause_note(client, view)}")
    out(f"input     {view['input']}")
    out(f"output    {view['output']}")
    if job.state.ended and job.record.results not in ("", view["output"]):
        out(f"results   {job.record.results}")
    out(f"created   {clock(view['created_at'])}   ended {clock(view['ended_at'])}")
    parts = "   ".join(f"{name} {number(rows[name])}" for name in ("total", "ok", "failed", "missing"))
    out(f"rows      {parts}")
    if early := ended_early(view["incomplete"]):
        out(f"of these  {early}")
    if view["error"]:
        out(f"error     {view['error']['code']}: {view['error']['message']}")
    if job.record.hold and not job.state.ended:
        out(f"held      {job.record.hold.message}")
    elif job.record.trouble and not job.state.ended:
        out(f"trouble   {job.record.trouble.message}")
    if untold := telling(job.record):
        out(f"telling   {untold}")
    shards = list(client.store.iter_shards(job.record))
    if nobody := _nobody_works(client, job.record, shards):
        out(f"workers   {nobody}")
    if told := client.store.clock().words():
        out(f"clock     {told}")
    _print_shards(shards)
    return None


def _nobody_works(client: Client, job: JobRecord, shards: list[ShardRecord]) -> str:
    """That no worker listens, where work of the job is late; only then the workers are asked, for about a second."""
    from batchpipe.tasks import workers_of_queue

    late = client.store.now() - LATE_SECONDS
    waiting = [shard for shard in shards if shard.stage != Stage.COLLECTED] if job.stage == State.RUNNING else [job]
    # a sweep from cron publishes anew, and so sets the time on, but takes nothing in hand
    nobody_took = any(one.pubs or max(one.next_at, one.lease_until or 0.0) < late for one in waiting)
    if job.told or not nobody_took or workers_of_queue(job.queue) != []:
        return ""
    return f"no worker listens on queue {job.queue}" + (f": batchpipe wait {job.id}" if job.input_here else "")


def _pause_note(client: Any, view: dict[str, Any]) -> str:
    pause = client.store.paused(view["account"]) if view["ended_at"] is None else None
    hint = f" (mended? batchpipe resume {view['account']})"
    return f"  paused for {pause.seconds:.0f} s: {pause.message}{hint}" if pause else ""


def _print_shards(shards: list[ShardRecord]) -> None:
    for shard in shards:
        counts = f"{number(shard.counts.completed)}+{number(shard.counts.failed)}/{number(shard.rows)}"
        trouble = f"  ! {shard.trouble.message}" if shard.trouble and shard.stage != "collected" else ""
        place = f"shard {shard.index:<4} {shard.stage:<10} {shard.status or '-':<12} {shard.batch_id or '-'}"
        again = f"  round {shard.round}" if shard.round > 1 else ""
        out(f"{place}  {counts}{again}{trouble}")


@click.command("list")
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Jobs at most.")
@json_option
def list_command(state: str | None, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    client = open_client()
    jobs = client.list_jobs(state=state, limit=limit)
    if told := client.store.clock().words():
        say(f"Warning: {told}")
    if as_json:
        return emit_json([job.to_dict(shards=False) for job in jobs])
    if not jobs:
        return say("no jobs" + (f" in state {state}" if state else ""))
    out(f"{'JOB':<23}  {'STATE':<11}  {'CREATED':<19}  {'ROWS OK':>15}  NAME")
    for job in jobs:
        rows = job.to_dict(shards=False)["rows"]
        counts = f"{number(rows['ok'])}/{number(rows['total'])}"
        out(
            f"{job.id:<23}  {job.state.value:<11}  {clock(job.record.created_at)}  "
            f"{counts:>15}  {job.name or without_secrets(job.record.input)}"
            + (f"  ! {_brief(job.error)}" if job.error else "")
            + (f"  ! held: {_brief(job.record.hold)}" if job.record.hold and not job.state.ended else "")
            + ("  ! receivers not told" if telling(job.record) else "")
        )
    return None


def _brief(problem: Problem) -> str:
    """An error's code and first words: `status` has them all."""
    text = " ".join(f"{problem.code}: {problem.message}".split())
    return text if len(text) <= MOST_OF_AN_ERROR else text[:MOST_OF_AN_ERROR].rstrip() + "..."


@click.command("results")
@click.argument("job_id", metavar="JOB")
@click.option("--errors", is_flag=True, help="Print the error rows instead.")
def results_command(job_id: str, errors: bool) -> None:
    """Print the output rows of an ended job, as the provider wrote them, in input order."""

    job = open_client().get_job(job_id)
    view = job.to_dict(shards=False)
    if not job.state.ended:
        raise Never(f"job {job_id} has not ended: it is {job.state.value}; `batchpipe wait {job_id}` waits for it")
    if view["error_file" if errors else "output_file"] is None:
        why = view["error"]["message"] if view["error"] else "it was cancelled before anything was sent"
        raise Never(f"job {job_id} has no result files: {why}")
    with job.results_folder().reader("errors.jsonl" if errors else "output.jsonl") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


@click.command("cancel")
@click.argument("job_id", metavar="JOB")
@json_option
def cancel_command(job_id: str, as_json: bool) -> None:
    """Cancel a job; finished rows are kept. No error if it has ended or was cancelled before."""
    client = open_client()
    job = client.cancel(job_id)
    if job.record.input_here and not job.record.told:  # its worker was that of a `run`, which may be gone
        from batchpipe.cli.run import carry_out_cancel

        carry_out_cancel(client, job)
        if not job.refresh().state.ended:
            say(f"the provider is stopping its batches; `batchpipe wait {job.id}` lands the rows that finished")
    if as_json:
        return emit_json(job.to_dict())
    say(f"{job.id} is {job.state.value}")
    return None


@click.command("retry")
@click.argument("job_id", metavar="JOB")
@click.option("-o", "--output", type=Place(), help="Folder or URL for the results.  [default: below the job's]")
def retry_command(job_id: str, output: str | None) -> None:
    """Send the rows of an ended job that are not ok as a new job, and print its id."""
    client = open_client()
    old = client.get_job(job_id)
    job = client.retry(job_id, output=output, own_queue=old.record.input_here)
    say(f"results will be in {job.record.output}")
    if job.record.input_here:
        say(f"follow it: batchpipe wait {job.id}")
    out(job.id)


@click.command("land")
@click.argument("job_id", metavar="JOB")
def land_command(job_id: str) -> None:
    """Take what is there. Of a job that is held because a batch was cancelled elsewhere, nothing more is sent, and what
    has finished is landed. Of one that has ended, batches that were given up (the key did not see them, say) are read
    anew, and what they bring is put to its results; nothing is sent again.
    """
    client = open_client()
    job = client.land(job_id)
    say(f"{job.id} is {job.state.value}: batchpipe wait {job.id}")


@click.command("resume")
@click.argument("account", default="default", metavar="[ACCOUNT|JOB]")
def resume_command(account: str) -> None:
    """End the pause of an account, when its cause is mended, or the hold of a job whose batch was cancelled elsewhere:
    its rows are sent again. [default account: default]
    """
    client = open_client()
    if account.startswith("job_"):
        goes_on = client.resume_job(account)
        return say(f"{account} goes on: its rows are sent again" if goes_on else f"{account} is not held")
    paused, woken = client.resume(account)
    if paused:
        return say(f"account {account!r} goes on: {woken} shard(s) at once")
    known = account.lower() in {"default", SANDBOX_ACCOUNT, *client.settings.accounts}
    if woken:
        return say(f"account {account!r} is not paused; {woken} shard(s) that waited for a person look again at once")
    return say(f"account {account!r} is not paused" + ("" if known else ", and not in the settings of this host"))


@click.command("validate")
@click.argument("input", metavar="INPUT")
@click.option("--endpoint", default="/v1/chat/completions", show_default=True, help="Of every row.")
@click.option("--max-rows", type=click.IntRange(min=1), help="Rows per shard at most.")
@click.option("--max-bytes", type=click.IntRange(min=1), help="Bytes per shard at most.")
@json_option
def validate_command(input: str, endpoint: str, max_rows: int | None, max_bytes: int | None, as_json: bool) -> None:
    """Check an input without sending anything. Needs no Redis."""
    from dataclasses import replace

    from batchpipe.places import input_rules
    from batchpipe.sandbox.models import is_slip, nearest
    from batchpipe.steps.prepare import validate

    chosen = settings()
    with _as_path(input_of(input)) as path:
        rules = replace(input_rules(chosen), roots=())  # a person's own file; and standard input lies in no root
        found = validate(path, endpoint, max_rows or chosen.max_rows, max_bytes or chosen.max_bytes, rules=rules)
    models = {model or "": rows for model, rows in found.models.items()}
    for model in models if chosen.is_openai("default") else ():
        if is_slip(model):
            near = nearest(model)
            say(f"Warning: no model {model[:100]!r} is known" + (f"; did you mean {near}?" if near else ""))
    if as_json:
        return emit_json({"rows": found.rows, "bytes": found.bytes, "shards": len(found.shards), "models": models})
    words = ", ".join(f"{model or 'no model'} ({number(rows)})" for model, rows in models.items())
    say(f"ok: {number(found.rows)} rows, {number(found.bytes)} bytes, {len(found.shards)} shard(s); {words}")
    return None


def _as_path(source: Any) -> Any:
    """Standard input is read twice, so it needs a file."""
    from contextlib import nullcontext

    from batchpipe.storage.local import spooled

    return nullcontext(source) if isinstance(source, str) else spooled(source)


@click.command("logs")
@click.argument("job_id", metavar="JOB")
@click.option("--follow", is_flag=True, help="Print events as they come, until the job has ended and told.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; with --follow one object a line.")
def logs_command(job_id: str, follow: bool, as_json: bool) -> None:
    """Print the event log of a job, oldest first."""
    job = open_client().get_job(job_id)
    if as_json and not follow:
        return emit_json(job.logs())
    for event in job.iter_logs(follow=follow):
        emit_json(event, indent=None) if as_json else out(_event_line(event))
    return None


def _event_line(event: dict[str, Any]) -> str:
    rest = {name: value for name, value in event.items() if name not in ("id", "at", "event")}
    return f"{clock(event['at'])}  {event['event']:<18} {'  '.join(f'{k}={v}' for k, v in rest.items())}"
