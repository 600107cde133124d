"""recover: rebuild what Redis has lost, and report what does not fit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batchpipe.cli.common import emit_json, open_client, out, settings
from batchpipe.cli.options import Place, json_option

if TYPE_CHECKING:
    from batchpipe.recover import Report


@click.command("recover")
@click.option("--dry-run", is_flag=True, help="Only report, and compare records and provider both ways.")
@click.option("--job", "jobs", metavar="ID", multiple=True, help="Only this job; repeatable.")
@click.option(
    "--of",
    metavar="LABEL",
    multiple=True,
    help="Also take over jobs of this Redis, which is gone; repeatable. any: all.",
)
@click.argument("folders", metavar="[DIR]...", nargs=-1, type=Place())
@json_option
def recover_command(
    dry_run: bool, jobs: tuple[str, ...], of: tuple[str, ...], folders: tuple[str, ...], as_json: bool
) -> int:
    """Rebuild the records of unfinished jobs that Redis has lost, from their workspaces and the provider's list of
    batches. The jobs then run on; nothing is paid for twice.

    It looks for workspaces in the list that this host keeps of its jobs, in the WORKSPACE setting, in the current
    folder and in each DIR: outputs, folders of outputs, or workspaces.

    Jobs of another Redis (host, port, database or prefix) are left alone: if that one lives, both would work on them,
    and pay twice. If it is gone for good, and this Redis is the new one in its place, name it by --of. That a job was
    being cancelled is known only if that was asked for on this host.

    Exits with 1 if an unfinished job could not be rebuilt, unless it belongs to another Redis.
    """
    from batchpipe.client.submission import absolute

    places = [absolute(place) for place in (os.getcwd(), *folders)]
    report = open_client().recover(places, dry_run=dry_run, jobs=jobs, of=of)
    if as_json:
        emit_json(asdict(report))
    else:
        for line in _lines(report):
            out(line)
    return int(bool(report.lost))


def where_it_is(job_id: str) -> str:
    """What else to say about an unknown job: where to look, or that this host has submitted it."""
    from batchpipe.recover import Owners, find_noted

    noted = find_noted(settings()).get(job_id)
    if noted is None:
        return "; `batchpipe list` shows those that are"
    if not Owners(settings(), ()).is_ours(noted.redis):
        return f", but this host has submitted it to another Redis, '{noted.redis}'"
    return ", but this host has submitted it: if Redis lost it, `batchpipe recover --dry-run`"


def _lines(report: Report) -> Iterator[str]:
    from batchpipe.recover import FOREIGN

    running = Counter(batch.job for batch in report.foreign_batches)
    verb = "would be rebuilt" if report.dry_run else "rebuilt"
    for job in report.rebuilt:
        parts = ", ".join(f"{count} {stage}" for stage, count in sorted(job.stages.items())) or "not planned yet"
        yield f"{job.job}  {verb}: round {job.round}, shards: {parts}; output {job.output}"
        if job.own_queue:
            yield f"  it belongs to a `run`: go on with the same `batchpipe run`, or with `batchpipe wait {job.job}`"
    for left in report.left:
        if left.code == FOREIGN:
            batches = f" ({running[left.job]} of its batches run)" if running[left.job] else ""
            yield f"{left.job}  left alone: {' '.join(left.why.split())}{batches}"
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
    from batchpipe.recover import FOREIGN

    codes = [left.code for left in report.left]
    others = codes.count(FOREIGN)
    done = "to rebuild" if report.dry_run else "rebuilt"
    return (
        f"{len(report.rebuilt)} {done}, {len(report.lost)} lost, "
        f"{codes.count('known')} known, {codes.count('finished') + codes.count('sandbox_gone')} over"
        + (f", {others} of another Redis" if others else "")
    )
