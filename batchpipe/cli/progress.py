"""The progress of a job on stderr: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from batchpipe.cli.common import number, say
from batchpipe.model.records import JobRecord, ShardRecord, Stage, State

if TYPE_CHECKING:
    from batchpipe.model.stats import Pause

#: How many shards are shown one by one; if there are more, those that are not done come first.
MAX_LINES = 20
PLAIN_SECONDS = 30.0
MAX_TROUBLES = 50


class Display(Protocol):
    """Shows a job, at intervals that it chooses itself."""

    def wants_update(self, job: JobRecord) -> bool: ...
    def update(self, job: JobRecord, shards: list[ShardRecord], pause: Pause | None) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_display() -> Display:
    """Live if stderr is a terminal."""
    return _Live() if sys.stderr.isatty() else _Plain()


def rows_done(shards: list[ShardRecord]) -> int:
    """The number of rows that the provider has answered, or that are accounted for."""
    done, last = 0, max((shard.round for shard in shards), default=1)
    for shard in shards:
        if shard.stage == Stage.COLLECTED:
            done += shard.rows - (shard.resend if shard.round < last else 0)  # these are counted in a later shard
        else:
            done += min((shard.counts.completed or 0) + (shard.counts.failed or 0), shard.rows)
    return done


def headline(job: JobRecord, shards: list[ShardRecord]) -> str:
    """One line that says what is going on now."""
    words = job.state.value
    if job.state is State.RUNNING and shards:
        if all(shard.stage == Stage.COLLECTED for shard in shards):
            words = "finalizing (merging results)"
        elif all(shard.status == "finalizing" or shard.stage in (Stage.ENDED, Stage.COLLECTED) for shard in shards):
            words = "finalizing (the provider writes its files)"
    elif job.state is State.FINALIZING:
        words = "finalizing (merging results)"
    total = job.total if job.total is not None else sum(shard.rows for shard in shards) or None
    ended = sum(shard.stage == Stage.COLLECTED for shard in shards)
    return f"{words}: {number(rows_done(shards))}/{number(total)} rows, {ended}/{len(shards)} shards collected"


class _Base:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._next = 0.0

    def wants_update(self, job: JobRecord) -> bool:
        return time.monotonic() >= self._next

    def _rest(self, shards: list[ShardRecord]) -> None:
        """Reading many shards is costly, so the more there are, the less often they are read."""
        self._next = time.monotonic() + max(0.2, len(shards) / 500)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Plain(_Base):
    """A line whenever the state or a provider status changes, and now and then in between."""

    def __init__(self) -> None:
        super().__init__()
        self._last: Any = None
        self._said = 0.0
        self._text = ""
        self._pause_said: float | None = None
        self._troubles: set[str] = set()

    def update(self, job: JobRecord, shards: list[ShardRecord], pause: Pause | None) -> None:
        self._rest(shards)
        self._say_troubles(job, shards)
        now = time.monotonic()
        if pause is None:
            self._pause_said = None
        elif self._pause_said is None or now - self._pause_said >= PLAIN_SECONDS:
            self._pause_said = now
            say(pause_line(job, pause))
        if job.state.ended:
            return
        shape = (job.state, sorted((shard.stage, shard.status or "") for shard in shards))
        if shape == self._last and now - self._said < PLAIN_SECONDS:
            return
        text = headline(job, shards)
        self._last = shape
        if text == self._text and now - self._said < PLAIN_SECONDS:
            return
        self._text, self._said = text, now
        still = "" if pause is not None else waits_for(job, shards)
        say(f"[{now - self._started:6.1f} s] {job.id} {text}" + (f"; waits: {still}" if still else ""))

    def _say_troubles(self, job: JobRecord, shards: list[ShardRecord]) -> None:
        """Shows each kind of trouble once: retries may look as if nothing happens."""
        if job.hold is not None and job.hold.message not in self._troubles:
            self._troubles.add(job.hold.message)
            say(f"held: {job.hold.message}")
        for record in (job, *shards):
            trouble = record.trouble
            if trouble is not None and trouble.message not in self._troubles and len(self._troubles) < MAX_TROUBLES:
                self._troubles.add(trouble.message)
                say(f"trouble, will try again: {trouble.message}")


def waits_for(job: JobRecord, shards: list[ShardRecord]) -> str:
    """Why it makes no progress just now, in a few words: an earlier message may have scrolled away."""
    if job.hold is not None:
        return job.hold.message
    open_ones = (record for record in (job, *shards) if record.stage != Stage.COLLECTED)
    return next((record.trouble.message[:200] for record in open_ones if record.trouble is not None), "")


def pause_line(job: JobRecord, pause: Pause) -> str:
    mended = f"fixed? batchpipe resume {job.account}"
    return f"account {job.account!r} is paused for {pause.seconds:.0f} s ({pause.code}): {pause.message} ({mended})"


class _Live(_Base):
    """A table of shards and a bar, drawn again in place."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), refresh_per_second=8, transient=True)
        self._live.start()

    def update(self, job: JobRecord, shards: list[ShardRecord], pause: Pause | None) -> None:
        self._rest(shards)
        self._live.update(self._draw(job, shards, pause))

    def close(self) -> None:
        self._live.stop()

    def _draw(self, job: JobRecord, shards: list[ShardRecord], pause: Pause | None) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        total = job.total or sum(shard.rows for shard in shards) or 1
        parts: list[Any] = [
            Text(f"{job.id}  {job.name or ''}", style="bold"),
            Text(f"{headline(job, shards)}   {minutes}:{seconds:02d}"),
            Padding(ProgressBar(total=total, completed=rows_done(shards), width=60), 0),  # a bare bar ends no line
        ]
        if shards:
            table = Table(box=None, padding=(0, 2, 0, 0))
            for title in ("shard", "stage", "provider says", "batch", "completed", "failed", "rows"):
                table.add_column(title, justify="right" if title in ("completed", "failed", "rows") else "left")
            for shard in _most_telling(shards):
                table.add_row(*_cells(shard))
            parts.append(table)
            if len(shards) > MAX_LINES:
                parts.append(Text(f"... and {len(shards) - MAX_LINES} more shards"))
        if pause is not None:
            parts.append(Text(pause_line(job, pause), style="red"))
        elif job.hold is not None:
            parts.append(Text(job.hold.message, style="red"))
        elif job.trouble is not None:
            parts.append(Text(job.trouble.message, style="yellow"))
        return Group(*parts)


def _most_telling(shards: list[ShardRecord]) -> list[ShardRecord]:
    if len(shards) <= MAX_LINES:
        return shards
    return sorted(shards, key=lambda shard: (shard.stage == Stage.COLLECTED, shard.index))[:MAX_LINES]


def _cells(shard: ShardRecord) -> list[str]:
    trouble = f" ! {shard.trouble.message[:60]}" if shard.trouble and shard.stage != Stage.COLLECTED else ""
    return [
        str(shard.index),
        shard.stage,
        (shard.status or "-") + trouble,
        shard.batch_id or "-",
        number(shard.counts.completed),
        number(shard.counts.failed),
        number(shard.rows),
    ]
