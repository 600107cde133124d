"""The progress of a job on stderr: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from batchpipe.cli.common import number, say
from batchpipe.cli.text import clip
from batchpipe.model.progress import answered_in, answered_of, progress_of_job, progress_view, progress_words
from batchpipe.model.reasons import reason_words, reasons_view
from batchpipe.model.records import JobRecord, ShardRecord, Stage, State
from batchpipe.model.waits import job_waits_for, shard_waits_for, wait_words

if TYPE_CHECKING:
    from batchpipe.model.stats import Pause
    from batchpipe.model.views import Moment

#: How many shards are shown one by one; of more, only those that something happens to.
MAX_LINES = 20
#: Plain lines that say the same come again after so long, or after a twentieth of the time so far, at most so long.
PLAIN_SECONDS, LONGEST_PLAIN_SECONDS = 30.0, 300.0
MAX_TROUBLES = 50


class Display(Protocol):
    """Shows a job, at intervals that it chooses itself."""

    def wants_update(self, job: JobRecord) -> bool: ...
    def update(self, job: JobRecord, shards: list[ShardRecord], moment: Moment) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_display(clock: Callable[[], float] = time.monotonic) -> Display:
    """Live if stderr is a terminal. ``clock`` counts seconds."""
    return _Live(clock) if sys.stderr.isatty() else _Plain(clock)


def headline(job: JobRecord, shards: list[ShardRecord], moment: Moment) -> str:
    """One line that says what is going on now, how fast, and when there is news."""
    ended = sum(shard.stage == Stage.COLLECTED for shard in shards)
    progress = progress_of_job(job, now=moment.now, answered=answered_in(shards) if shards else None)
    parts = [
        progress_words(progress_view(progress)),
        f"{ended}/{len(shards)} shards collected" if shards else "",
        str(moment.job_eta["text"]) if moment.job_eta else "",
        next_look(shards, moment.now),
    ]
    return f"{_state(job, shards)}: {'; '.join(filter(None, parts))}"


def _state(job: JobRecord, shards: list[ShardRecord]) -> str:
    if job.state is State.FINALIZING:
        return "finalizing (merging results)"
    if job.state is State.RUNNING and shards:
        if all(shard.stage == Stage.COLLECTED for shard in shards):
            return "finalizing (merging results)"
        if all(shard.status == "finalizing" or shard.stage in (Stage.ENDED, Stage.COLLECTED) for shard in shards):
            return "finalizing (the provider writes its files)"
    return job.state.value


def next_look(shards: list[ShardRecord], now: float | None) -> str:
    """When a batch is looked at next: `next look in 12 s`; empty if that is now, or none is waited for. Those that are
    parked are looked at with all others, every half minute or so."""
    waiting = [shard.next_at for shard in shards if shard.stage == Stage.CREATED and not shard.parked]
    if now is None or not waiting or (left := min(waiting) - now) < 1:
        return ""
    return f"next look in {left:.0f} s" if left < 120 else f"next look in {left / 60:.0f} min"


class _Base:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._next = 0.0

    def wants_update(self, job: JobRecord) -> bool:
        return self._clock() >= self._next

    def _rest(self, shards: list[ShardRecord]) -> None:
        """Reading many shards is costly, so the more there are, the less often they are read."""
        self._next = self._clock() + max(0.2, len(shards) / 500)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Plain(_Base):
    """A line whenever the state or, of a few shards, a provider status changes, and now and then in between."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._last: Any = None
        self._said = 0.0
        self._pause_said: float | None = None
        self._troubles: set[str] = set()

    def update(self, job: JobRecord, shards: list[ShardRecord], moment: Moment) -> None:
        self._rest(shards)
        self._say_troubles(job, shards)
        now, pause = self._clock(), moment.pause
        longest = PLAIN_SECONDS
        if (part := (now - self._started) / 20) > 30:
            longest = min(part, LONGEST_PLAIN_SECONDS)
        if pause is None:
            self._pause_said = None
        elif self._pause_said is None or now - self._pause_said >= longest:
            self._pause_said = now
            say(pause_line(job, pause))
        if job.state.ended:
            return
        few = shards if len(shards) <= MAX_LINES else []  # of many there is a change all the time
        shape = (_state(job, shards), sorted((shard.stage, shard.status or "") for shard in few))
        if shape == self._last and now - self._said < longest:
            return
        self._last, self._said = shape, now
        still = "" if pause is not None else waits_for(job, shards, moment)
        text = headline(job, shards, moment)
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


def waits_for(job: JobRecord, shards: list[ShardRecord], moment: Moment) -> str:
    """Why it makes no progress just now, in a few words: an earlier message may have scrolled away."""
    view = job_waits_for(job, room=moment.room)
    if view is None:  # not all shards are asked: room is read from Redis
        views = (shard_waits_for(shard, moment.shard_room(shard)) for shard in shards)
        view = next((view for view in views if view is not None), None)
    return wait_words(view)[:200]


def pause_line(job: JobRecord, pause: Pause) -> str:
    mended = f"fixed? batchpipe resume {job.account}"
    return f"account {job.account!r} is paused for {pause.seconds:.0f} s ({pause.code}): {pause.message} ({mended})"


class _Live(_Base):
    """A table of shards and a bar, drawn again in place."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), refresh_per_second=8, transient=True)
        self._live.start()

    def update(self, job: JobRecord, shards: list[ShardRecord], moment: Moment) -> None:
        self._rest(shards)
        self._live.update(self._draw(job, shards, moment))

    def close(self) -> None:
        self._live.stop()

    def _draw(self, job: JobRecord, shards: list[ShardRecord], moment: Moment) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        minutes, seconds = divmod(int(self._clock() - self._started), 60)
        total = job.total or sum(shard.rows for shard in shards) or 1
        title = f"{clip(job.name, 60)}  {job.id}" if job.name else job.id
        parts: list[Any] = [
            Text(title, style="bold"),
            Text(f"{headline(job, shards, moment)}   {minutes}:{seconds:02d}"),
            Padding(ProgressBar(total=total, completed=answered_in(shards), width=60), 0),  # a bare bar ends no line
        ]
        if shown := active_ones(shards):
            parts.append(_table(shown, moment))
        if len(shown) < len(shards):
            parts.append(Text(_others(shards, shown)))
        if job.reasons:
            parts.append(Text(f"not ok: {reason_words(reasons_view(job.reasons))}"))
        if moment.pause is not None:
            parts.append(Text(pause_line(job, moment.pause), style="red"))
        elif job.hold is not None:
            parts.append(Text(job.hold.message, style="red"))
        elif job.trouble is not None:
            parts.append(Text(job.trouble.message, style="yellow"))
        elif moment.room is not None:
            parts.append(Text(f"waits: {wait_words(job_waits_for(job, room=moment.room))}", style="yellow"))
        return Group(*parts)


def active_ones(shards: list[ShardRecord]) -> list[ShardRecord]:
    """The shards to show: all of a few; of many those that something happens to, in trouble, or waiting for room."""
    if len(shards) <= MAX_LINES:
        return shards
    idle = (Stage.PLANNED, Stage.COLLECTED)
    active = [shard for shard in shards if shard.stage not in idle or _waits(shard)]
    return sorted(active, key=lambda shard: (shard.stage == Stage.PLANNED, shard.index))[:MAX_LINES]


def _waits(shard: ShardRecord) -> bool:
    """From its record alone: there may be 100,000, and how each waits for room is read from Redis."""
    return shard_waits_for(shard) is not None or (shard.stage != Stage.COLLECTED and shard.waits_since is not None)


def _others(shards: list[ShardRecord], shown: list[ShardRecord]) -> str:
    left = Counter(shard.stage for shard in shards)
    left.subtract(shard.stage for shard in shown)
    stages = ", ".join(f"{number(count)} {stage}" for stage, count in left.items() if count)
    return f"and {number(len(shards) - len(shown))} more shards: {stages}"


def _table(shards: list[ShardRecord], moment: Moment) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("shard", "stage", "provider says", "answered", "rows", "batch"):
        table.add_column(title, justify="right" if title in ("answered", "rows") else "left")
    for shard in shards:
        waits = shard_waits_for(shard, moment.shard_room(shard))
        short = wait_words({**waits, "message": clip(waits["message"], 40)}) if waits is not None else ""
        status = (shard.status or "-") + (f" ! {short}" if short else "")
        rows = number(answered_of(shard)), number(shard.rows)
        table.add_row(str(shard.index), shard.stage, status, *rows, shard.batch_id or "-")
    return table
