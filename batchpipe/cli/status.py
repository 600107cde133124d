"""The command status: the state of a job on one screen, however many shards it has."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from batchpipe.cli.common import clock, emit_parts, number, open_client, out, say
from batchpipe.cli.options import json_option
from batchpipe.cli.text import left, plain, right, short_number
from batchpipe.model.progress import answered_of, progress_words
from batchpipe.model.reasons import name_of_reason, reason_words
from batchpipe.model.records import Stage
from batchpipe.model.views import SHOWN, Sums, ended_early, not_notified
from batchpipe.model.waits import wait_words

if TYPE_CHECKING:
    from batchpipe.client.client import Client
    from batchpipe.model.records import JobRecord, ShardRecord

#: How many shards are shown one by one; if there are more, those in trouble come first, then the unfinished ones.
MOST_LINES = 100


@click.command("status")
@click.argument("job_id", metavar="JOB")
@json_option
def status_command(job_id: str, as_json: bool) -> None:
    """Show the state of a job. If it has over 100 shards: those in trouble or under way, and sums; --json shows all."""
    client = open_client()
    job = client.find_job(job_id)
    nobody = client.missing_worker(job)
    if as_json:
        if nobody:
            say(f"Warning: {nobody}")
        return emit_parts(job.iter_json())
    seen = _Seen()
    for shard in job.shards(SHOWN):
        seen.add(shard)
    lines = seen.lines()
    view = job.summary(seen.sums, lines)
    _print_job(client, job.record, view)
    if nobody:
        out(f"workers   {nobody}")
    if warning := client.clock().words():
        out(f"clock     {warning}")
    _print_shards(seen, lines, view["shards"])
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
    out(f"{plain(view['name'] or view['id'])}  {view['state']}")
    out(f"job       {view['id']}")
    out(f"account   {view['account']}{_pause_note(client, view)}")
    out(f"input     {view['input']}")
    out(f"output    {view['output']}")
    if job.state.ended and job.results not in ("", view["output"]):
        out(f"results   {job.results}")
    out(f"created   {clock(view['created_at'])}   ended {clock(view['ended_at'])}")
    out(f"progress  {progress_words(view['progress'])}")
    if view["eta"]:
        out(f"eta       {view['eta']['text']}")
    parts = "   ".join(f"{name} {number(rows[name])}" for name in ("total", "ok", "failed", "missing"))
    out(f"rows      {parts}")
    if early := ended_early(view["incomplete"]):
        out(f"of these  {early}")
    if view["error"]:
        first, *others = view["error"]["message"].splitlines() or [""]
        out(f"error     {view['error']['code']}: {first}")
        for line in others:
            out(f"          {line}")
    _print_reasons(view["reasons"])
    _print_waits(job, view)
    if problem := not_notified(job):
        out(f"notices   {problem}")


def _print_reasons(reasons: list[dict[str, Any]]) -> None:
    if not reasons:
        return
    out(f"not ok    {reason_words(reasons)}")
    for reason in reasons:
        if reason["sample"]:
            out(f"          {name_of_reason(reason)}: {reason['sample']}")


def _print_waits(job: JobRecord, view: dict[str, Any]) -> None:
    if job.state.ended:
        return
    if job.hold:
        out(f"held      {job.hold.message}")
    elif job.trouble:
        out(f"trouble   {job.trouble.message}")
    elif view["waits_for"] and view["waits_for"]["code"] != "paused":  # that stands beside the account
        out(f"waits     {wait_words(view['waits_for'])}")


def _pause_note(client: Client, view: dict[str, Any]) -> str:
    pause = client.pause_of(view["account"]) if view["ended_at"] is None else None
    hint = f" (fixed? batchpipe resume {view['account']})"
    return f"  paused for {pause.seconds:.0f} s: {pause.message}{hint}" if pause else ""


_SHARD, _STAGE, _STATUS, _ROWS, _BATCH = 6, 9, 12, 17, 38


def _print_shards(seen: _Seen, shards: list[ShardRecord], views: list[dict[str, Any]]) -> None:
    if hidden := seen.sums.count - len(shards):
        stages = ", ".join(f"{number(count)} {stage}" for stage, count in sorted(seen.stages.items()))
        troubled = f"; {number(seen.troubled)} in trouble" if seen.troubled else ""
        out(f"shards    {number(seen.sums.count)}: {stages}{troubled}")
    if shards:
        out(
            f"{left('SHARD', _SHARD)}  {left('STAGE', _STAGE)}  {left('STATUS', _STATUS)}  {right('ANSWERED', _ROWS)}  "
            f"{left('BATCH', _BATCH)}  ROUND"
        )
    for shard, view in zip(shards, views, strict=True):
        _print_shard(shard, view)
    if hidden:
        out(f"and {number(hidden)} more shards: --json has them all")


def _print_shard(shard: ShardRecord, view: dict[str, Any]) -> None:
    rows = f"{short_number(answered_of(shard), 8)}/{short_number(shard.rows, 8)}"
    out(
        f"{left(str(shard.index), _SHARD)}  {left(shard.stage, _STAGE)}  {left(shard.status or '-', _STATUS)}  "
        f"{right(rows, _ROWS)}  {left(shard.batch_id or '-', _BATCH)}  {right(str(shard.round), 5)}"
    )
    late = view.get("late")
    notes = [
        f"! {late['message']}" if late else "",
        f"! {wait_words(view['waits_for'])}" if view["waits_for"] else "",
        view["eta"]["text"] if view["eta"] else "",
    ]
    if said := "; ".join(filter(None, notes)):
        out(f"{' ' * _SHARD}  {plain(said)}")
