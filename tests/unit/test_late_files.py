"""Files that lag what the provider counts: whole jobs wait for them, say so, and pay nothing twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from batchpipe.errors import Unavailable
from batchpipe.model.provider import Batch
from batchpipe.model.records import Counts
from batchpipe.testing import FakeOpenAI, Pump
from batchpipe.testing.things import FakeBatch, FakeFile

BODY = {"model": "m", "messages": []}
ROWS = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": BODY} for n in range(10)]
ALL = {row["custom_id"]: "ok" for row in ROWS}
MINUTES = 20 * 60.0


class Lagging(FakeOpenAI):
    """Counts ten of ten at once; its output file has a name, and all of its lines, only after a while."""

    def __init__(self, *, named: float = 0.0, whole: float = 0.0) -> None:
        super().__init__(autofinish=True)
        self.named, self.whole = named, whole
        self.ended_at: float | None = None

    def _as_batch(self, batch: FakeBatch) -> Batch:
        if self.ended_at is None and batch.is_final:
            self.ended_at = self.clock()
        shown = super()._as_batch(batch)
        return shown if self._is_past(self.named) else msgspec.structs.replace(shown, output_file_id=None)

    def _file(self, file_id: str) -> FakeFile:
        file = super()._file(file_id)
        if file.purpose == "batch" or self._is_past(self.whole):
            return file
        lines = file.data.splitlines(keepends=True)
        return FakeFile(file.name, b"".join(lines[: len(lines) // 2]), file.purpose, file.created_at)

    def _is_past(self, seconds: float) -> bool:
        return self.ended_at is not None and self.clock() - self.ended_at >= seconds


@pytest.mark.parametrize(
    "api",
    [Lagging(named=40.0), Lagging(named=MINUTES), Lagging(whole=40.0), Lagging(named=60.0, whole=MINUTES)],
    ids=["named after 40 s", "named after minutes", "whole after 40 s", "both after minutes"],
)
def test_rows_that_are_counted_as_answered_are_waited_for_and_not_sent_again(tmp_path: Path, api: Lagging) -> None:
    """One batch, and every row of it is landed."""
    pump = Pump(tmp_path, api=api)
    job_id = pump.submit(ROWS)
    pump.run_until_idle()
    assert pump.outcomes(job_id) == ALL
    assert (set(api.billed.values()), len(api.batches)) == ({1}, 1)


def test_that_files_are_waited_for_is_said(tmp_path: Path) -> None:
    """In the record, which status shows, and in the job's own log, once."""
    api = Lagging(named=MINUTES)
    pump = Pump(tmp_path, api=api)
    job_id = pump.submit(ROWS)
    with pytest.raises(TimeoutError):
        pump.run_until_idle(300.0)
    (shard,) = pump.shards(job_id)
    assert shard.trouble is not None
    assert shard.trouble.code == "files_late"
    assert "10 answers counted" in shard.trouble.message
    assert [event["event"] for event in pump.store.events.read(job_id)].count("files_late") == 1


def test_time_in_which_nobody_looked_is_no_patience(tmp_path: Path) -> None:
    """Redis' clock leaps by a day, or the workers are away for one: files that come later are landed."""
    api = Lagging(named=90_000.0)
    pump = Pump(tmp_path, api=api, files_patience_seconds=7_200)
    job_id = pump.submit(ROWS)
    with pytest.raises(TimeoutError):
        pump.run_until_idle(300.0)
    pump.at += 86_400.0
    pump.run_until_idle()
    assert (pump.outcomes(job_id), len(api.batches)) == (ALL, 1)


def away_once(api: Lagging) -> None:
    """The first look fails: the network comes back after the workers."""
    retrieve = api.retrieve

    def fail(batch_id: str) -> Batch:
        api.retrieve = retrieve  # type: ignore[method-assign]
        raise Unavailable("no route to the provider", code="not_sent")

    api.retrieve = fail  # type: ignore[method-assign]


def busy_once(pump: Pump) -> None:
    """The first turn may not look: of many shards that come back at once only some may."""
    pump.store.accounts.take_rate_token("default", per_second=0.1)


def lost(pump: Pump) -> None:
    """The message went with the workers: the sweep of those that come publishes it anew, before anybody looks."""
    pump.waiting.clear()
    assert pump.sweep() == 1


@pytest.mark.parametrize("first", ["the provider is away", "others look", "the message is lost"])
def test_nor_is_it_where_the_first_turn_after_it_does_not_look(tmp_path: Path, first: str) -> None:
    """That time is forgiven for good, not for the one turn that comes after it."""
    api = Lagging(named=90_000.0)
    pump = Pump(tmp_path, api=api, files_patience_seconds=7_200)
    job_id = pump.submit(ROWS)
    with pytest.raises(TimeoutError):
        pump.run_until_idle(300.0)
    pump.at += 86_400.0
    if first == "the provider is away":
        away_once(api)
    else:
        (busy_once if first == "others look" else lost)(pump)
    pump.run_until_idle()
    assert (pump.outcomes(job_id), len(api.batches)) == (ALL, 1)


def test_files_that_never_come_end_as_missing_rows_that_are_not_sent_again(tmp_path: Path) -> None:
    """After the patience of the settings."""
    api = Lagging(named=9e9)
    pump = Pump(tmp_path, api=api, files_patience_seconds=7_200)
    begun, job_id = pump.at, pump.submit(ROWS)
    pump.run_until_idle()
    assert set(pump.outcomes(job_id).values()) == {"missing"}
    assert (len(api.batches), 7_200 < pump.at - begun < 8_200) == (1, True)
    (shard,) = pump.shards(job_id)
    assert shard.error is not None
    assert shard.error.code == "output_file_missing"


def test_a_cancelled_job_lands_what_comes_and_ends(tmp_path: Path) -> None:
    """Within minutes, though the patience is of hours."""
    pump = Pump(tmp_path, api=Lagging(whole=9e9))
    job_id = pump.submit(ROWS)
    with pytest.raises(TimeoutError):
        pump.run_until_idle(300.0)
    begun = pump.at
    pump.cancel(job_id)
    pump.run_until_idle(1_200.0)
    outcomes = list(pump.outcomes(job_id).values())
    assert (outcomes.count("ok"), outcomes.count("missing"), pump.at - begun < 700) == (5, 5, True)


def test_sweeps_do_not_publish_what_waits_for_late_files(tmp_path: Path) -> None:
    """Each look into the list would else be a look at the batch, for hours."""
    api = Lagging(named=3_600.0)
    pump = Pump(tmp_path, api=api)
    pump.submit(ROWS)
    for _ in range(60):
        pump.advance(30.0)
        pump.sweep()
        while pump.step() is not None:
            pass
    assert api.count("retrieve") < 40


class Silent(Lagging):
    """As Lagging, and it counts nothing, for ever or until its files have names."""

    def __init__(self, counts: Counts, *, named: float = 0.0, whole: float = 0.0, counted: bool = False) -> None:
        super().__init__(named=named, whole=whole)
        self.counts, self.counted = counts, counted

    def _as_batch(self, batch: FakeBatch) -> Batch:
        shown = super()._as_batch(batch)
        counts = self.counted and self._is_past(self.named)
        return shown if counts else msgspec.structs.replace(shown, counts=self.counts)


@pytest.mark.parametrize(
    "api",
    [
        Silent(Counts(), named=40.0),
        Silent(Counts(), named=MINUTES),
        Silent(Counts(), whole=40.0),
        Silent(Counts(total=0, completed=0, failed=0), named=MINUTES, counted=True),
        Silent(Counts(total=10, completed=0, failed=0), named=40.0, counted=True),
    ],
    ids=["no counts", "no counts for minutes", "no counts and half a file", "zeros for minutes", "zeros of ten"],
)
def test_a_batch_that_is_completed_and_counts_nothing_is_waited_for(tmp_path: Path, api: Silent) -> None:
    """It says that all was done: rows without a line are not taken for rows that were not run."""
    pump = Pump(tmp_path, api=api)
    job_id = pump.submit(ROWS)
    pump.run_until_idle()
    assert pump.outcomes(job_id) == ALL
    assert (set(api.billed.values()), len(api.batches)) == ({1}, 1)


@pytest.mark.parametrize("counts", [Counts(), Counts(total=0, completed=0, failed=0)], ids=["none", "zeros"])
def test_a_completed_batch_that_never_tells_anything_is_not_paid_for_again(tmp_path: Path, counts: Counts) -> None:
    """Its rows end missing, with that reason, and can be landed."""
    api = Silent(counts, named=9e9)
    pump = Pump(tmp_path, api=api)
    job_id = pump.submit(ROWS)
    pump.run_until_idle()
    (shard,) = pump.shards(job_id)
    assert (len(api.batches), shard.missing, shard.resend) == (1, 10, 0)
    assert shard.error is not None
    assert (shard.error.code, "may be paid" in shard.error.message) == ("output_file_missing", True)
