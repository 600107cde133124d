"""What a recovery found and did: plain data, printed by the command."""

from __future__ import annotations

from dataclasses import dataclass, field

#: The code of jobs that belong to another Redis.
FOREIGN = "foreign"
#: Why a job is left alone without anything being wrong (codes of ``Skipped``).
FINE = frozenset({"known", "finished", "sandbox_gone", FOREIGN})


@dataclass(frozen=True)
class Rebuilt:
    """A job with records that were (or, in a dry run, would be) written again."""

    job: str
    output: str
    queue: str
    own_queue: bool  #: a job of ``run``: only ``run`` or ``wait`` starts a worker for its queue
    round: int
    stages: dict[str, int]  #: how many shards are at each stage


@dataclass(frozen=True)
class Skipped:
    """A job that was found and not rebuilt; ``code`` is for programs, ``why`` for people."""

    job: str
    code: str
    why: str
    redis: str | None = None  #: label of the other Redis that it belongs to


@dataclass(frozen=True)
class Orphan:
    """A batch of ours that is not final and that no record knows; ``cancelled`` ones have the same fields."""

    account: str
    batch_id: str
    job: str
    shard: int
    status: str | None


@dataclass(frozen=True)
class GoneBatch:
    """A batch that an unfinished shard's record names and the provider no longer knows."""

    account: str
    batch_id: str
    job: str
    shard: int


@dataclass(frozen=True)
class OrphanFile:
    """An input file of ours that no batch has used and no job will use."""

    account: str
    file_id: str
    name: str
    job: str


@dataclass(frozen=True)
class Unread:
    """An account that could not be read."""

    account: str
    code: str
    why: str


@dataclass
class Report:
    """Everything that one call found and did."""

    dry_run: bool = False
    rebuilt: list[Rebuilt] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    orphans: list[Orphan] = field(default_factory=list)
    foreign_batches: list[Orphan] = field(default_factory=list)  #: of jobs of another Redis: left alone
    gone: list[GoneBatch] = field(default_factory=list)
    orphan_files: list[OrphanFile] = field(default_factory=list)
    cancelled: list[Orphan] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)

    @property
    def lost(self) -> list[Skipped]:
        """Unfinished jobs that could not be rebuilt."""
        return [job for job in self.skipped if job.code not in FINE]
