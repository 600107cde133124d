"""The records of jobs and shards: frozen data, changed by ``evolve()``; and which stages may follow each other.

The same structs are what Redis holds (one hash each, see ``store/``). Times are unix seconds of Redis' clock.
"""

from __future__ import annotations

import os
import re
import time
from enum import StrEnum
from typing import Any, Self

import msgspec

from batchpipe.model.admission import Full

#: Version of the records. Readers tolerate older ones: every field has a default.
VERSION = 1

#: What a job has where its submit says nothing, and the settings have no say.
DEFAULT_ENDPOINT, DEFAULT_WINDOW, DEFAULT_ACCOUNT = "/v1/chat/completions", "24h", "default"

#: How often notifying a site's receivers may be postponed: about an hour of tries.
MAX_NOTIFY_ATTEMPTS = 60

#: No countdown is longer, in seconds: it must stay far below the broker's visibility time-out.
LONGEST_PAUSE = 600.0

#: The index by which the job itself is claimed, published and made due, like a shard.
JOB = -1


class State(StrEnum):
    """The state of a job, named after the last fact that is true."""

    PENDING = "pending"  #: recorded; the input has not been read yet
    PREPARING = "preparing"  #: the input is being checked and split
    RUNNING = "running"  #: shards are planned; their progress is the job's
    FINALIZING = "finalizing"  #: every shard of the round is collected; results are being merged
    SUCCEEDED = "succeeded"  #: every row is ok
    PARTIAL = "partial"  #: ended; some rows ok, some not
    FAILED = "failed"  #: no row is ok, or the input was refused
    CANCELLED = "cancelled"  #: ended by the user; finished rows are kept
    CANCELLING = "cancelling"  #: never stored: what status shows while the cancel flag is set

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({State.SUCCEEDED, State.PARTIAL, State.FAILED, State.CANCELLED})


class Stage(StrEnum):
    """The stage of a shard, named after the last fact that is true."""

    PLANNED = "planned"  #: its file is in the workspace
    UPLOADED = "uploaded"  #: the provider holds its file
    CREATED = "created"  #: the provider has accepted the batch; we only wait now
    ENDED = "ended"  #: the batch is final at the provider; its files wait for us
    COLLECTED = "collected"  #: every row of it is accounted for in the workspace


class Status:
    """The provider's final statuses of a batch. Any other status, also an unknown one, means that it still runs."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CANCELED = "canceled"  #: Azure's spelling
    FINAL = frozenset({COMPLETED, FAILED, EXPIRED, CANCELLED, CANCELED})


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, for programs (``code``) and people (``message``)."""

    code: str
    message: str


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The provider's ``request_counts``; null until it gives them."""

    total: int | None = None
    completed: int | None = None
    failed: int | None = None


class BatchError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a batch's ``errors.data``. If there are very many, all lines are kept, but only the first texts."""

    code: str | None = None
    message: str | None = None
    line: int | None = None
    param: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What jobs and shards share: the fields that the scripts of ``store/`` read and write."""

    v: int = VERSION
    stage: str = ""
    epoch: int = 0  #: increased with each publication; a message of another epoch is void
    next_at: float = 0.0  #: when its message is meant to run
    wait: float = 0.0  #: the countdown that led to ``next_at``
    token: str | None = None  #: the lease, while a worker holds it
    lease_until: float | None = None
    lease_end: float | None = None  #: the turn's deadline: no renewal beyond it, unless the turn makes progress
    republish: bool = False  #: a caller wanted it to run while it was leased: its holder publishes again
    tries: int = 0  #: claims of this stage that ended with an unexpected error
    lost: int = 0  #: claims of this stage with a holder that vanished
    overran: int = 0  #: how many of these had run into their deadline; each doubles the next one
    pubs: int = 0  #: re-publications of this stage since the last claim
    task_ids: list[str] = []
    trouble: Problem | None = None  #: why it makes no progress just now; cleared when it does
    gone_at: float | None = None  #: since when a file of its workspace is missing
    gone_seen: float | None = None  #: when that was last found

    def evolve(self, **changes: Any) -> Self:
        """A copy with these fields changed."""
        return msgspec.structs.replace(self, **changes)


class JobRecord(Record, frozen=True, kw_only=True):
    """What a user submitted, and how far it is."""

    id: str
    stage: str = State.PENDING.value
    name: str | None = None
    account: str = DEFAULT_ACCOUNT
    endpoint: str = DEFAULT_ENDPOINT
    completion_window: str = DEFAULT_WINDOW
    metadata: dict[str, str] = {}
    extra: dict[str, Any] = {}
    tags: dict[str, Any] = {}
    key: str | None = None
    queue: str = "batchpipe"
    input: str = ""  #: path or URL of the JSONL
    bytes: int | None = None  #: of the input, if known at its submit
    spooled: bool = False  #: the input is our own copy of an iterator or stdin
    inputs: list[str] = []  #: all of them, in order, where there are several: paths, URLs and patterns
    recipe: str = ""  #: digest of the recipe in its workspace; "": rows are requests, and any answer counts
    rows_file: str = ""  #: the data rows of its input, in the workspace: for results, and where the input has gone
    formats: list[str] = []  #: of the tables of results beside the JSONL: csv, parquet
    excel: bool = False  #: a CSV is safe to open in a spreadsheet
    retry_of: str | None = None  #: the job whose rows that are not ok it sends again
    retries: list[str] = []  #: the jobs that do so with its own, the oldest first
    retried: dict[str, int] = {}  #: rows by outcome, those of ended retries in place of its own
    input_here: bool = False  #: only this host works on the job (``run``): a missing input is bad input
    output: str = ""
    owns: list[str] = []  #: all names of its output, which it owns until it is closed (``closed``)
    results: str = ""  #: where its result files lie; "": there are none (yet)
    real: str = ""  #: that place without links, as the worker saw it: where they still lie if a link changes
    written: list[list[int]] = []  #: bytes of its two result files, each time that they were put in place
    aside: str = ""  #: the earlier job with results that it moves out of its output
    copied: bool = False  #: they are complete at their new place
    workspace: str = ""
    order_files: list[str] = []  #: for each round, how its rows are spread over its shards; in the workspace
    max_rows: int = 50_000
    max_bytes: int = 200_000_000
    attempts: int = 3
    priority: int = 0  #: of its shards where they wait for room at the provider: the higher goes first
    on_done: dict[str, Any] | None = None
    notify_sites: list[
        str
    ] = []  #: receivers to notify of its end: those of the site that submitted it; none: any that are registered
    notify: list[str] = []  #: targets that are told of it: names in the settings, or URLs
    cancel: bool = False
    hold: Problem | None = None  #: why it sends nothing more until a person decides
    hold_at: float | None = None  #: since when
    send_no_more: bool = False  #: it makes no further batch: what is there is collected
    notified: bool = False  #: job.json is written, on_done is sent
    notify_attempts: int = (
        0  #: how often notifying a site's receivers of its end was postponed; not tried beyond ``MAX_NOTIFY_ATTEMPTS``
    )
    receiver_errors: int = 0  #: how often of these a receiver raised
    cleanup_attempts: int = 0  #: how often deleting its files at the provider was postponed
    closed: bool = False  #: notified and tidied up: nothing is left to do
    round: int = 0
    shards: int = 0  #: number of shards planned so far; the next index
    open: int = 0  #: shards of this round that are not collected
    total: int | None = None
    ok: int | None = None
    failed: int | None = None
    missing: int | None = None
    invalid: int | None = None  #: of the failed ones, those with an answer that is not what was asked for
    usage: dict[str, int] = {}
    incomplete: dict[str, int] = {}  #: rows that are ok and ended early, by reason
    answered: int = 0  #: rows of its shards that are answered (see ``model/progress``), kept by the scripts
    answered_at: float | None = None  #: when counts of a shard were last read
    answered_before: list[tuple[float, int]] = []  #: then so many were answered: at most two, five minutes apart
    reasons: dict[str, int] = {}  #: rows that are not ok, by reason (see ``model/reasons``)
    error: Problem | None = None
    created_at: float = 0.0
    preparing_at: float | None = None
    running_at: float | None = None
    finalizing_at: float | None = None
    ended_at: float | None = None

    @property
    def has_copies(self) -> bool:
        """Whether its submit has written files to the workspace."""
        return self.spooled or bool(self.recipe)

    @property
    def state(self) -> State:
        """The stored state, or ``cancelling`` while a cancel is under way."""
        stored = State(self.stage)
        return State.CANCELLING if self.cancel and not stored.ended else stored


#: The name of a shard's file at the provider: job, index, try. See ``ShardRecord.upload_name``.
UPLOAD_NAME = re.compile(r"batchpipe-(\w+)-(\d+)-(\d+)\.jsonl")


class ShardRecord(Record, frozen=True, kw_only=True):
    """A part of a job that fits into one batch of the provider."""

    job: str
    index: int
    stage: str = Stage.PLANNED.value
    round: int = 1
    refused_once: bool = False  #: its rows were in a batch that was refused because of other rows
    file: str = ""  #: its requests, relative to the workspace
    rows: int = 0
    bytes: int = 0
    model: str | None = None
    try_: int = msgspec.field(default=1, name="try")
    file_id: str | None = None
    uploads: int = 0  #: upload calls begun; if there are fewer file ids, one may have left a file that no record knows
    unused_files: list[str] = []  #: uploaded, but no batch was made from them
    unfound: int = 0  #: how often in a row the provider did not know its input file, batch or result file
    unseen_at: float | None = None  #: since when the account's key does not see its batch or file (404)
    refused_at: float | None = None  #: since when it waits for a refusal that may pass
    backoff: int = 0  #: how often in a row it was postponed; sets the pause
    intent_at: float | None = None  #: first intent to create under the current key
    intent_ahead: float = 0.0  #: how much our time may have been ahead of the provider's then
    calls: list[str] = []  #: create calls under the current key that have no clear answer
    latest_call: str | None = None  #: the last of them; else the next two are not about it
    call_over_at: float | None = None  #: from then on that call is not under way any more
    called_as: str | None = None  #: ``Provider.identity`` of all of them
    empty_at: float | None = None  #: first look after the latest call that found no batch
    walk_from: float | None = None  #: it waits for a walk through the account's list that began then or later
    #: ids that unclear answers to those calls named (True: were about), to be read before any further call
    named: dict[str, bool] = {}
    other_at: float | None = None  #: since when create calls are answered with batches of other shards
    refusal: Problem | None = None  #: a clear refusal while an older call is still unanswered
    batch_id: str | None = None
    spent: list[str] = []  #: ids of batches that were abandoned on purpose; never adopted
    status: str | None = None  #: the provider's status
    counts: Counts = Counts()
    snapshot_at: float | None = None  #: when status and counts were read
    news_at: float | None = None  #: when a webhook said that its batch has ended
    over_at: float | None = None  #: when a final status of its batch was first recorded
    made_at: float | None = None  #: when its batch was made, began to run and ended, by the provider's clock
    in_progress_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None  #: when its completion window ends, as the provider says
    stalled_at: float | None = None  #: since when its batch is said to be late
    stall: Problem | None = None  #: how it is late
    end_seen: bool = False  #: status, counts, files and errors are those of one look at the ended batch
    news: bool = False  #: the provider has said of its own accord that the batch has ended: it is read at once
    slot_at: float | None = None  #: its next look at the provider is booked for then
    parked: bool = False  #: it has no message: looks watch its batch, and its due time is the safety net
    park_until: float | None = None  #: no look moves its due time beyond that
    cancel_sent: bool = False
    cancelled_elsewhere: bool = False  #: its batch was cancelled, and not by us: that was reported
    landing: bool = (
        False  #: it was abandoned before, and its batch is read again: the rows are added to those that are there
    )
    overdue_at: float | None = None  #: when it was found that the batch has not ended after its window
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[BatchError] = []
    late_at: float | None = None  #: since when it waits for files that lag behind the provider's counts
    fetched: dict[str, str] = {}  #: result file -> length and digest of what came last, to notice a change
    ok: int | None = None
    failed: int | None = None
    missing: int | None = None
    invalid: int | None = None  #: of the failed ones, those with an answer that is not what was asked for
    resend: int = 0  #: rows that are not ok and worth sending again
    needs: dict[str, int] = {}  #: what it last asked for at its admission: kind -> amount
    waits_since: float | None = None  #: since when it waits in the queue of its account and model
    admitted_at: float | None = None  #: when it was last given what it needs
    full: Full | None = None  #: only on its way to the script that ends a turn: the provider's queue was full
    usage: dict[str, int] = {}
    cost: int | None = None  #: its rows at list prices, in pico-dollars; null: not known
    incomplete: dict[str, int] = {}  #: rows that are ok and ended early, by reason: a few known ones, and ``other``
    answered: int | None = None  #: of its rows, what the job's sum has
    reasons: dict[str, int] = {}  #: rows that are not ok, by reason
    collected_file: str | None = None  #: its outcomes, one line a row, relative to the workspace
    error: Problem | None = None
    planned_at: float | None = None
    uploaded_at: float | None = None
    created_at: float | None = None
    ended_at: float | None = None
    collected_at: float | None = None

    @property
    def key(self) -> str:
        """Identifies the batch of this shard and try at the provider (``batchpipe_key`` in its metadata)."""
        return f"{self.job}:{self.index}:{self.try_}"

    @property
    def born_at(self) -> float | None:
        """When its batch was made, in our time: one that was found later was made before it was recorded, and the
        provider's clock may be wrong. With the fields ``made_at``, ``intent_at`` and ``created_at``."""
        if self.made_at is None or self.created_at is None or self.intent_at is None:
            return self.created_at
        return min(max(self.made_at, self.intent_at), self.created_at)

    @property
    def upload_name(self) -> str:
        """The name of its file at the provider: if metadata are not shown, it tells which shard a batch belongs to."""
        return f"batchpipe-{self.job}-{self.index}-{self.try_}.jsonl"


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a step: the stage to go to, the fields to write, and the pause before the next look.

    The same stage again means: retry after ``after`` seconds.
    """

    stage: Stage
    after: float = 0.0
    changes: dict[str, Any] = {}
    events: list[tuple[str, dict[str, Any]]] = []
    hold: Problem | None = None  #: the job must send nothing more until a person decides, for this reason
    pause: Problem | None = None  #: the account must be paused, for this reason
    parked: str = ""  #: why no message follows: it is published when it has what it waits for, or is overdue


def window_seconds(window: str) -> float:
    """The seconds of a completion window such as 24h or 7d; a day if it has no number and unit."""
    found = re.fullmatch(r"(\d{1,4})([smhd])", window.strip().lower())
    return int(found[1]) * {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}[found[2]] if found else 86_400.0


#: No window is longer: an end that cannot be a time (seconds from now, milliseconds) is ignored.
MOST_WINDOW_SECONDS = 30 * 86_400.0


def window_end(born: float, window: str, said: float | None) -> float:
    """When the window of a batch ends that was made at ``born``: as the provider has ``said``, if that can be."""
    if said is not None and born < said < born + MOST_WINDOW_SECONDS:
        return said
    return born + window_seconds(window)


_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_job_id() -> str:
    """``job_`` + 9 characters of time (milliseconds) + 10 random ones: sorts by time, safe in URLs and file names."""
    number, head = time.time_ns() // 1_000_000, ""
    for _ in range(9):
        number, digit = divmod(number, 36)
        head = _ALPHABET[digit] + head
    tail = "".join(_ALPHABET[byte % 36] for byte in os.urandom(10))
    return f"job_{head}{tail}"
