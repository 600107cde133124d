"""The command status: the state of a job on one screen, however many shards it has."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from batchpipe.cli.common import clock, emit_parts, number, open_client, out, say
from batchpipe.cli.options import json_option
from batchpipe.model.records import Stage
from batchpipe.model.views import SHOWN, Sums, ended_early, not_notified

if TYPE_CHECKING:
    from batchpipe.client.client import Client
    from batchpipe.model.records import JobRecord, ShardRecord

#: How many shards are shown one by one; if there are more, those in trouble come first, then the unfinished ones.
MOST_LINES = 100
_FIELDS = (*SHOWN, "trouble")


@click.command("status")
@click.argument("job_id", metavar="JOB")
@json_option
def status_command(job_id: str, as_json: bool) -> None:
    """Show the state of a job. If it has over 100 shards: those in trouble or under way, and sums; --json shows all."""
    client = open_client()
    job = client.get_job(job_id)
    nobody = client.missing_worker(job)
    if as_json:
        if nobody:
            say(f"Warning: {nobody}")
        return emit_parts(job.iter_json())
    seen = _Seen()
    for shard in job.shards(_FIELDS):
        seen.add(shard)
    _print_job(client, job.record, job.summary(seen.sums))
    if nobody:
        out(f"workers   {nobody}")
    if warning := client.clock().words():
        out(f"clock     {warning}")
    _print_shards(seen)
    return None


class _Seen:
    """Sums over shards, added up one by one: there may be 100,000."""

    def __init__(self) -> None:
        self.sums = Sums()
        self.stages: Counter[str] = Counter()
        self.troubled = 0
        self._first: list[ShardRecord] = []
        self._open: list[ShardRecord] = []
        self._in_trouble: list[ShardRecord] = []

    def add(self, shard: ShardRecord) -> None:
        self.sums.add(shard)
        self.stages[shard.stage] += 1
        if len(self._first) <= MOST_LINES:
            self._first.append(shard)
        if shard.stage == Stage.COLLECTED:
            return
        self.troubled += shard.trouble is not None
        kind = self._in_trouble if shard.trouble is not None else self._open
        if len(kind) < MOST_LINES:
            kind.append(shard)

    def lines(self) -> list[ShardRecord]:
        if len(self._first) <= MOST_LINES:
            return self._first
        return [*self._in_trouble, *self._open][:MOST_LINES]


def _print_job(client: Client, job: JobRecord, view: dict[str, Any]) -> None:
    rows = view["rows"]
    out(f"{view['id']}  {view['state']}" + (f"  {view['name']}" if view["name"] else ""))
    out(f"account   {view['account']}{_pause_note(client, view)}")
    out(f"input     {view['input']}")
    out(f"output    {view['output']}")
    if job.state.ended and job.results not in ("", view["output"]):
        out(f"results   {job.results}")
    out(f"created   {clock(view['created_at'])}   ended {clock(view['ended_at'])}")
    parts = "   ".join(f"{name} {number(rows[name])}" for name in ("total", "ok", "failed", "missing"))
    out(f"rows      {parts}")
    if early := ended_early(view["incomplete"]):
        out(f"of these  {early}")
    if view["error"]:
        out(f"error     {view['error']['code']}: {view['error']['message']}")
    if job.hold and not job.state.ended:
        out(f"held      {job.hold.message}")
    elif job.trouble and not job.state.ended:
        out(f"trouble   {job.trouble.message}")
    if problem := not_notified(job):
        out(f"notices   {problem}")


def _pause_note(client: Client, view: dict[str, Any]) -> str:
    pause = client.pause_of(view["account"]) if view["ended_at"] is None else None
    hint = f" (fixed? batchpipe resume {view['account']})"
    return f"  paused for {pause.seconds:.0f} s: {pause.message}{hint}" if pause else ""


def _print_shards(seen: _Seen) -> None:
    lines = seen.lines()
    if hidden := seen.sums.count - len(lines):
        stages = ", ".join(f"{number(count)} {stage}" for stage, count in sorted(seen.stages.items()))
        troubled = f"; {number(seen.troubled)} in trouble" if seen.troubled else ""
        out(f"shards    {number(seen.sums.count)}: {stages}{troubled}")
    for shard in lines:
        counts = f"{number(shard.counts.completed)}+{number(shard.counts.failed)}/{number(shard.rows)}"
        trouble = f"  ! {shard.trouble.message}" if shard.trouble and shard.stage != "collected" else ""
        place = f"shard {shard.index:<4} {shard.stage:<10} {shard.status or '-':<12} {shard.batch_id or '-'}"
        again = f"  round {shard.round}" if shard.round > 1 else ""
        out(f"{place}  {counts}{again}{trouble}")
    if hidden:
        out(f"and {number(hidden)} more shards: --json has them all")
