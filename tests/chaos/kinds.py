"""Kinds of trouble that the soak can have besides kills, freezes and a provider that fails. Each can be left out."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from batchpipe.errors import BatchpipeError
from tests.chaos.servers import Job

if TYPE_CHECKING:
    from tests.chaos.soak import Soak

HOUR = 3_600.0


class Kind:
    """One kind. ``begin`` and ``end`` are called in turn, ``every`` so many seconds of the soak on average."""

    name: ClassVar[str]
    done: ClassVar[str]  #: what the table calls its strikes
    every: ClassVar[float] = 0.0  #: 0: it has no times of its own
    lasts: ClassVar[tuple[float, float]] = (0.0, 0.0)

    def __init__(self, soak: Soak) -> None:
        self.soak, self.dice = soak, soak.dice
        self._until: float | None = None

    def prepare(self) -> None:
        """Before anything is started: what the provider does, and what lies where."""

    def strikes(self) -> int:
        """How often it strikes in this soak."""
        return max(1, round(self.soak.plan.seconds / self.every)) if self.every else 0

    def strike(self) -> None:
        if self._until is None:
            self.begin()
            self.soak.report.done[self.done] += 1
        self._until = time.monotonic() + max(0.5, self.dice.uniform(*self.lasts) * self.soak.plan.slow)

    def tend(self, now: float) -> None:
        """Called all the time."""
        if self._until is not None and self._until <= now:
            self._until = None
            self.end()

    def calm(self) -> None:
        """The soak is over."""
        if self._until is not None:
            self._until = None
            self.end()

    def begin(self) -> None:
        """Something goes wrong."""

    def end(self) -> None:
        """It is right again."""

    def for_job(self, job: Job) -> None:
        """A job is about to be submitted: its ``options`` may be changed."""

    def for_worker(self, place: int) -> dict[str, Any]:
        """Arguments of the worker that is started in this place."""
        return {}

    def environment(self, place: int) -> dict[str, str]:
        """Variables of the worker that is started in this place."""
        return {}


class Clock(Kind):
    """Redis' clock is set back by up to an hour, or leaps forward by minutes; some time later it is right again.

    Forward by less than the five minutes by which it may differ from the provider's, and by more than what could be a
    pause in the work: docs/guarantees.md names both limits.
    """

    name, done, every, lasts = "clock", "moves of Redis' clock", 20.0, (1.0, 12.0)

    def strikes(self) -> int:
        return super().strikes() if self.soak.shared_servers.redis.has_clock else 0

    def begin(self) -> None:
        self.soak.shared_servers.redis.set_clock(self.dice.choice([-HOUR, -HOUR, -700.0, -60.0, 120.0, 240.0]))

    def end(self) -> None:
        self.soak.shared_servers.redis.set_clock(0.0)


class ReadOnly(Kind):
    """Redis is a replica for a while, as the old primary is after a failover: it reads and refuses to write."""

    name, done, every, lasts = "read_only", "times in which Redis was read-only", 25.0, (1.0, 4.0)

    def begin(self) -> None:
        self.soak.shared_servers.redis.command("REPLICAOF 127.0.0.1 1")  # nobody is there: it keeps what it has

    def end(self) -> None:
        self.soak.shared_servers.redis.command("REPLICAOF NO ONE")


class Full(Kind):
    """Redis has no memory left for a while: it reads and deletes, and refuses what needs some."""

    name, done, every, lasts = "full", "times in which Redis was full", 25.0, (1.0, 4.0)

    def begin(self) -> None:
        self.soak.shared_servers.redis.command("CONFIG SET maxmemory 1")

    def end(self) -> None:
        self.soak.shared_servers.redis.command("CONFIG SET maxmemory 0")


class Workspaces(Kind):
    """The workspace of a job is deleted while it runs, or its whole output."""

    name, done, every = "workspaces", "workspaces deleted", 8.0

    def strike(self) -> None:
        shared = {job.shares.key for job in self.soak.jobs if job.shares}
        running = [job for job in self.soak.jobs if job.id in self.soak.open and not job.gone]
        alone = [job for job in running if not job.shares and job.key not in shared]
        if not alone:
            return
        job = self.dice.choice(alone)
        with suppress(BatchpipeError):  # Redis may be away
            record = self.soak.lane.store.jobs.get(job.id)
            job.gone = True
            victim = Path(self.dice.choice([record.workspace, record.workspace, record.output]))
            for _ in range(3):  # somebody may write there meanwhile
                shutil.rmtree(victim, ignore_errors=True)
            self.soak.report.done[self.done] += 1


class Names(Kind):
    """Outputs of earlier jobs are used again, under another name of the same folder; some have files of a stranger."""

    name, done = "names", "outputs used again"
    share = 0.25
    strange = 0.05

    def for_job(self, job: Job) -> None:
        if self.dice.random() < self.strange:
            job.output.mkdir()
            job.foreign = job.output / self.dice.choice(["output.jsonl", "errors.jsonl", "notes.txt"])
            job.foreign.write_text(f"a stranger's, in the place of {job.key}\n")
            return
        first = [other for other in self.soak.jobs if not (other.gone or other.foreign) and other.output.exists()]
        if first and self.dice.random() < self.share:
            self._share(job, self.dice.choice(first))

    def _share(self, job: Job, other: Job) -> None:
        job.shares, job.output = other, other.output
        job.options["output"] = self._another_name(other.output, job.key)
        self.soak.report.done[self.done] += 1

    def _another_name(self, folder: Path, unique: str) -> str:
        way = self.dice.choice(["same", "slash", "url", "dots", "link", "link above"])
        beside = folder.parent / f"way-{unique}"
        if way == "slash":
            return f"{folder}//"
        if way == "url":
            return folder.as_uri()
        if way == "dots":
            beside.mkdir()
            return f"{beside}/../{folder.name}"
        if way == "link":
            beside.symlink_to(folder)
            return str(beside)
        if way == "link above":
            beside.symlink_to(folder.parent)
            return f"{beside}/{folder.name}"
        return str(folder)


class Receivers(Kind):
    """Jobs of a site: some workers have not loaded it, and in the others its receivers fail as often as not."""

    name, done = "receivers", "jobs with receivers that fail"
    share = 0.25
    not_loaded = 0.3

    def prepare(self) -> None:
        self.folder = self.soak.lane.folder / "heard"
        self.folder.mkdir()
        self._fail = self.folder / "fail"
        self._fail.touch()

    def calm(self) -> None:
        """A site's workers are all deployed by now, and nothing fails."""
        self._fail.unlink(missing_ok=True)
        self.not_loaded = 0.0
        for place in range(1, len(self.soak.workers)):
            self.soak.restart(place)

    def for_job(self, job: Job) -> None:
        if self.dice.random() < self.share:
            job.heard, job.options["heard"] = self.folder, True
            self.soak.report.done[self.done] += 1

    def for_worker(self, place: int) -> dict[str, Any]:
        # the first always has it, so that somebody comes
        return {"receivers": str(self.folder)} if place == 0 or self.dice.random() > self.not_loaded else {}


class Lag(Kind):
    """Batches have ended and count their rows as answered, but their files come later, or grow later."""

    name, done = "lag", "files that came late"
    share = 0.15
    seconds = (1.0, 6.0)

    def prepare(self) -> None:
        faults, plan = self.soak.lane.sandbox.faults, self.soak.plan
        for kind in ("file_id_lags", "file_lags"):
            for fraction in (0.0, 0.6):
                seconds = max(0.5, self.dice.uniform(*self.seconds) * plan.slow)
                faults.add(kind, seconds=seconds, fraction=fraction, probability=self.share / 2)


class Keys(Kind):
    """A worker restarts with the key of another project for a while: it sees no batch and no file of ours, uploads and
    creates in that project, and whoever comes after it does not see those. When the soak is over, one key sees both.
    """

    name, done, every, lasts = "keys", "restarts with another project's key", 40.0, (3.0, 8.0)
    other: ClassVar[dict[str, str]] = {"OPENAI_API_KEY": "sk-of-another-project", "OPENAI_PROJECT_ID": "proj_other"}

    def __init__(self, soak: Soak) -> None:
        super().__init__(soak)
        self._place: int | None = None

    def begin(self) -> None:
        self._place = self.dice.randrange(len(self.soak.workers))
        self.soak.restart(self._place)

    def end(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self.soak.restart(place)

    def calm(self) -> None:
        super().calm()
        self.soak.lane.sandbox.join_projects()

    def environment(self, place: int) -> dict[str, str]:
        return self.other if place == self._place else {}


KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Names, Workspaces, Clock, ReadOnly, Full, Keys, Lag, Receivers)
}
