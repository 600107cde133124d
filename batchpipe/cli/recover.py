"""recover: rebuild what Redis has lost, and report what does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batchpipe.cli.house import Place, emit_json, json_option, open_client

if TYPE_CHECKING:
    from batchpipe.recover import Report


@click.command("recover")
@click.option("--dry-run", is_flag=True, help="Only report, and compare records and provider both ways.")
@click.argument("folders", metavar="[DIR]...", nargs=-1, type=Place())
@json_option
def recover_command(dry_run: bool, folders: tuple[str, ...], as_json: bool) -> int:
    """Rebuild the records of unfinished jobs that Redis has lost, from their workspaces and the provider's list of
    batches. The jobs then run on; nothing is paid for twice.

    Workspaces are looked for in the list that this host keeps of its jobs, in the WORKSPACE setting, in the current
    folder and in each DIR: outputs, folders of outputs, or workspaces.

    A job that another Redis still knows must not be rebuilt here: both would work on it. Where several are in use,
    look at --dry-run first. That a job was being cancelled is known only if that was asked for on this host.

    Exits with 1 if an unfinished job could not be rebuilt.
    """
    from batchpipe.submission import absolute

    places = [absolute(place) for place in (os.getcwd(), *folders)]
    report = open_client().recover(places, dry_run=dry_run)
    if as_json:
        emit_json(asdict(report))
    else:
        for line in _lines(report):
            click.echo(line)
    return int(bool(report.lost))


def _lines(report: Report) -> Iterator[str]:
    verb = "would be rebuilt" if report.dry_run else "rebuilt"
    for job in report.rebuilt:
        parts = ", ".join(f"{count} {stage}" for stage, count in sorted(job.stages.items())) or "not planned yet"
        yield f"{job.job}  {verb}: round {job.round}, shards: {parts}; output {job.output}"
        if job.own_queue:
            yield f"  it belongs to a `run`: go on with the same `batchpipe run`, or with `batchpipe wait {job.job}`"
    for lost in report.lost:
        yield f"{lost.job}  not rebuilt: {' '.join(lost.why.split())}"
    for batch in report.cancelled:
        yield f"{batch.batch_id}  cancelled: job {batch.job}, shard {batch.shard} has another batch ({batch.account})"
    for batch in report.orphans:
        yield (
            f"{batch.batch_id}  orphan, {batch.status}: job {batch.job}, shard {batch.shard} does not know it "
            f"({batch.account})"
        )
    for gone in report.gone:
        yield f"{gone.batch_id}  gone at the provider: job {gone.job}, shard {gone.shard} ({gone.account})"
    for file in report.stray_files:
        yield f"{file.file_id}  stray file {file.name} ({file.account})"
    for account in report.unread:
        yield f"account {account.account} was not looked into: {' '.join(account.why.split())}"
    yield _summary(report)


def _summary(report: Report) -> str:
    codes = [left.code for left in report.left]
    done = "to rebuild" if report.dry_run else "rebuilt"
    return (
        f"{len(report.rebuilt)} {done}, {len(report.lost)} lost, {codes.count('known')} known, "
        f"{codes.count('finished') + codes.count('sandbox_gone')} over"
    )
