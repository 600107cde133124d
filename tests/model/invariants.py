"""What must hold after every script, and when all is still: the promises of the protocol, held against the records.

Each script is told here with the records before and after it. The watch keeps books of its own about leases and paid
calls, so that a script which forgets to look at the lease is found out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from batchpipe.model.records import ENDED, Stage, State, Status

Fields = dict[str, str]

#: Redis' clock runs on for that long, at most, between our reading and the script's.
TICK = 0.05
#: The longest wait that any step asks for, with its jitter, and the longest margin.
LONGEST_DUE = 660.0 + 1_800.0 + 60.0

_ENDED = {state.value for state in ENDED}
#: Where a stage may lead besides ``collected``; going back is allowed with a new try only.
_NEXT_STAGE = {
    (Stage.PLANNED, Stage.UPLOADED),
    (Stage.UPLOADED, Stage.CREATED),
    (Stage.CREATED, Stage.ENDED),
}
_BACK = {(Stage.CREATED, Stage.UPLOADED), (Stage.UPLOADED, Stage.PLANNED)}
_NEXT_STATE = {
    (State.PENDING, State.PREPARING),
    (State.PREPARING, State.RUNNING),
    (State.PREPARING, State.FINALIZING),  # cancelled before it had shards
    (State.RUNNING, State.FINALIZING),
    (State.FINALIZING, State.RUNNING),  # a further round
    *((State.FINALIZING, state) for state in ENDED),
}
#: Scripts that write under a lease only: their token is among their arguments.
_FENCED = ("renew", "save", "advance", "intent", "draft_shards", "plan", "record_job_end", "expire_shards", "close_job")
_ROUND_FIELDS = ("round", "total", "order_files", "order_file", "shards", "open")


class Broken(BaseException):
    """A promise of the protocol does not hold. No Exception: a turn takes any of these for its trouble, and goes on."""


def hold(promise: bool, words: str, *facts: object) -> None:
    if not promise:
        raise Broken(f"{words}: {', '.join(map(repr, facts))[:1_500]}" if facts else words)


@dataclass
class Records:
    """All records of the one job at one moment, as Redis holds them."""

    job: Fields = field(default_factory=dict)
    shards: dict[str, Fields] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)

    def record(self, name: str) -> Fields:
        return self.job if name == "job" else self.shards.get(name, {})

    def names(self) -> list[str]:
        return ["job", *self.shards]

    def unfinished(self) -> set[str]:
        """What the sweep must know: all but collected shards, and a job, unless it is closed or runs, and all its
        shards were made due.
        """
        open_shards = {name for name, shard in self.shards.items() if shard["stage"] != Stage.COLLECTED}
        stands = self.job.get("stage") not in (None, State.RUNNING) and self.job.get("closed") != "1"
        return open_shards | ({"job"} if stands or self.due_from() is not None else set())

    def due_from(self) -> int | None:
        """The first of the shards of a running job that may not be due yet; None: all of them are."""
        first = self.job.get("due_from") if self.job.get("stage") == State.RUNNING else None
        return int(first) if first is not None else None

    def to_be_made_due(self) -> set[str]:
        """Shards that may not be due yet: the job, which is, stands for them."""
        first = self.due_from()
        return {name for name in self.shards if int(name) >= first} if first is not None else set()


@dataclass
class Paid:
    """A batch at the provider, and how it came to be."""

    id: str
    key: str
    late: bool  #: its maker was frozen between its look at the clock and the call
    job_cancelled: bool  #: the job was being cancelled when the intent was written


class Watch:
    """Books of leases and paid calls; raises ``Broken``."""

    def __init__(self) -> None:
        self.seen = Records()
        self.paid: list[Paid] = []
        self.facts: Counter[str] = Counter()  #: what happened in this schedule, for the tests of the model itself
        self._live: dict[str, tuple[str, float]] = {}  #: record -> token and end of its lease
        self._intents: dict[str, bool] = {}  #: token -> whether the job was being cancelled when it meant to call
        self._finalized: Counter[str] = Counter()

    # -- scripts ---------------------------------------------------------------------------------------------------

    def script(self, name: str, record: str, args: Sequence[Any], answer: Any, after: Records, now: float) -> None:
        """Check one script: what it was given, what it answered, what it changed."""
        before, self.seen = self.seen, after
        self._fenced(name, record, args, before, after, now)
        self._leases(name, record, args, answer, before, after, now)
        for each in before.names():
            if each == "job" and not before.job:
                continue
            self._epoch(each, before.record(each), after.record(each))
        for index, shard in after.shards.items():
            self._shard(before.shards.get(index), shard)
        self._job(name, answer, before, after)
        self._due(after, now)

    def _fenced(self, name: str, record: str, args: Sequence[Any], before: Records, after: Records, now: float) -> None:
        if name not in _FENCED or before == after:
            return
        token, until = self._live.get(record, ("", 0.0))
        hold(token in args and until > now - TICK, f"{name} wrote without a live lease", record, now - until)

    def _leases(
        self, name: str, record: str, args: Sequence[Any], answer: Any, before: Records, after: Records, now: float
    ) -> None:
        verdict = answer[0] if isinstance(answer, list) and answer else answer
        live, until = self._live.get(record, ("", 0.0))
        if name == "claim" and verdict == "ok":
            token = after.record(record)["token"]
            hold(token == live or until <= now + TICK, "two leases live at once", record, until - now)
            self._live[record] = (token, now + float(answer[3]))
        elif name == "renew" and verdict == "ok":
            self._live[record] = (live, now + float(answer[1]))
        elif name in ("advance", "plan", "close_job") and verdict in ("ok", "cancel") and live and live in args:
            del self._live[record]
        elif name == "settle":
            self.facts[f"settle {verdict}"] += 1
            if verdict in ("ok", "late") and before != after:
                self._live.pop(record, None)
        elif name == "intent" and verdict == "ok":
            # repeated after a lost answer it is still the one intent
            self._intents.setdefault(live, before.job.get("cancel") == "1")
        elif name == "bump_epoch" and verdict == "ok":
            hold(until <= now + TICK, "an epoch was bumped while a lease lives", record)
        elif name == "bump_epoch" and verdict == "lease":
            self.facts["republish mark"] += 1

    def _epoch(self, name: str, before: Fields, after: Fields) -> None:
        hold(bool(after), "a record vanished", name)
        hold(int(after["epoch"]) >= int(before["epoch"]), "an epoch decreased", name)

    def _shard(self, before: Fields | None, after: Fields) -> None:
        if before is None:
            hold(after["stage"] == Stage.PLANNED, "a shard began elsewhere", after)
            return
        old, new = Stage(before["stage"]), Stage(after["stage"])
        fresh = int(after.get("try", "1")) > int(before.get("try", "1"))
        if old != new:
            hold(old is not Stage.COLLECTED, "a shard was collected and went on", after)
            hold(
                new is Stage.COLLECTED or (old, new) in _NEXT_STAGE or ((old, new) in _BACK and fresh),
                "stage",
                old,
                new,
            )
        if old is not Stage.COLLECTED and new is Stage.COLLECTED:
            rows = sum(int(after.get(name, "0")) for name in ("ok", "failed", "missing"))
            hold(rows == int(after["rows"]), "rows are lost", after)
        self._batch(before.get("batch_id"), after.get("batch_id"), after, fresh)
        if before.get("status") in Status.FINAL and before.get("batch_id") == after.get("batch_id"):
            hold(after.get("status") in Status.FINAL, "a final status was replaced", before["status"], after)
        if after.get("parked") == "1":
            self.facts["parked"] += before.get("parked") != "1"
            hold(new is Stage.CREATED and "token" not in after, "a shard is parked that is at work", after)

    def _batch(self, before: str | None, after: str | None, shard: Fields, fresh: bool) -> None:
        spent = shard.get("spent", "[]")
        if after is not None:
            hold(after not in spent, "a spent batch was adopted", after)
        if before == after:
            return
        if after is None:
            hold(fresh and str(before) in spent, "a recorded batch was forgotten", before)
            return
        hold(before is None, "a recorded batch was replaced", before, after)
        key = f"{shard['job']}:{shard['index']}:{shard.get('try', '1')}"
        hold([paid.key for paid in self.paid if paid.id == after] == [key], "not the shard's batch", after, key)

    def _job(self, name: str, answer: Any, before: Records, after: Records) -> None:
        old, new = before.job.get("stage"), after.job.get("stage")
        if old is None or new is None:
            return
        open_shards = int(after.job.get("open", "0"))
        hold(open_shards >= 0, "open shards below zero", open_shards)
        if new == State.RUNNING:
            of_round = [shard for shard in after.shards.values() if shard["round"] == after.job["round"]]
            uncollected = sum(shard["stage"] != Stage.COLLECTED for shard in of_round)
            hold(open_shards == uncollected, "the count of open shards is wrong", open_shards, uncollected)
            hold(open_shards > 0, "a round has no open shard, and no merge")
        if old != new:
            hold((old, new) in _NEXT_STATE, "a job took a forbidden way", old, new)
        if new == State.FINALIZING and (old != new or (name == "plan" and before != after)):
            hold(all(shard["stage"] == Stage.COLLECTED for shard in after.shards.values()), "merge before the end")
        if (old, new) == (State.RUNNING, State.FINALIZING):
            self._finalized[after.job["round"]] += 1
            hold(self._finalized[after.job["round"]] == 1, "merge began twice in a round")
        if name == "plan" and before.job.get("cancel") == "1":
            changed = [field for field in _ROUND_FIELDS if before.job.get(field) != after.job.get(field)]
            hold(not changed, "a cancelled job was given a round", changed)
        if after.job.get("closed") == "1":
            hold(new in _ENDED, "a job was closed before its end", new)
        if new in _ENDED and old != new and after.job.get("cancel") == "1":
            hold(new == State.CANCELLED, "the cancel flag did not win", new)

    def _due(self, after: Records, now: float) -> None:
        if not after.job:
            return
        wanted, due = after.unfinished(), set(after.due)
        hold(wanted - after.to_be_made_due() <= due <= wanted, "the due set is not what is unfinished", wanted ^ due)
        for name, score in after.due.items():
            hold(score < now + LONGEST_DUE, "due in a far future", name, score - now)
            if after.record(name).get("parked") == "1" and after.record(name).get("status") in Status.FINAL:
                hold(score <= now + TICK, "a parked shard whose batch has ended is not due", name, score - now)
            until = after.record(name).get("lease_until")
            if until is not None and float(until) > now + TICK:
                hold(abs(score - float(until)) < 0.001, "a living lease is not what is due", name, score, until)

    # -- the provider ----------------------------------------------------------------------------------------------

    def calls(self, in_time: bool) -> None:
        """A create call is about to go out; whatever delays it from now on, no look at a clock can help."""
        hold(in_time, "a worker called although more than half of its lease was over")

    def called(self, batch: str, key: str, token: str, late: bool) -> None:
        """A create call had its effect. On time means: the caller's lease was less than half over."""
        hold(token in self._intents, "a paid call without an intent", batch)
        self.paid.append(Paid(batch, key, late, self._intents[token]))
        self.facts["call late" if late else "call"] += 1
        hold(not self._intents[token], "a cancelled job paid for a new batch", batch)
        on_time = [paid.id for paid in self.paid if paid.key == key and not paid.late]
        hold(len(on_time) <= 1, "the same rows were paid twice", on_time)

    def cancelled(self, batch: str) -> None:
        """A batch is about to be cancelled at the provider."""
        recorded = batch in {shard.get("batch_id") for shard in self.seen.shards.values()}
        hold(not recorded or self.seen.job.get("cancel") == "1", "a recorded batch was cancelled", batch)
        if not recorded:
            self.facts["orphan cancelled"] += 1

    # -- the end ---------------------------------------------------------------------------------------------------

    def still(self, statuses: dict[str, str], *, metadata: bool = True) -> None:
        """All is quiet: everything has ended, and of all batches under a key one is kept at most.

        For each late call one batch may be left over that has ended before a look could cancel it; where the list shows
        no ``metadata``, looks know no orphans, so it may also run on.
        """
        late = Counter(paid.key for paid in self.paid if paid.late)
        left_over: Counter[str] = Counter()
        job = self.seen.job
        hold(job["stage"] in _ENDED and job.get("closed") == "1", "the job is stuck", job)
        stuck = [shard for shard in self.seen.shards.values() if shard["stage"] != Stage.COLLECTED]
        hold(not stuck, "shards are stuck", stuck)
        hold(not self.seen.due, "something is still due", self.seen.due)
        hold(job.get("open", "0") == "0", "shards are open", job)
        recorded = {shard.get("batch_id") for shard in self.seen.shards.values()}
        spent = "".join(shard.get("spent", "") for shard in self.seen.shards.values())
        for paid in self.paid:
            dead = statuses[paid.id] in {Status.FAILED, Status.CANCELLED, "cancelling"}
            if dead or paid.id in recorded or paid.id in spent:
                continue
            hold(statuses[paid.id] in Status.FINAL or not metadata, "a live batch is nobody's", paid)
            left_over[paid.key] += 1
            hold(left_over[paid.key] <= late[paid.key], "more batches are left over than calls were late", paid, late)
