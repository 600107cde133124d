"""Turns that take long: those that get on are let, those that do not are ended, shown, and given longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from batchpipe.config.limits import LONGEST_GROWTH
from batchpipe.errors import AmbiguousResult
from batchpipe.model.provider import BatchPage
from batchpipe.model.records import State
from batchpipe.model.steps import JOB_DEADLINE_SECONDS
from batchpipe.pipeline import job_runner
from batchpipe.pipeline import merging as merging_module
from batchpipe.pipeline.look_turn import LookTurn
from batchpipe.pipeline.runner import MAX_OVERRUNS
from batchpipe.store import ClaimDenied, Connection, Lease, Store
from batchpipe.store.leases import Leases
from batchpipe.testing import FakeBatch, FakeOpenAI, Pump
from tests.redis_server import new_redis

Rows = Callable[..., list[dict[str, object]]]


class Watched(Leases):
    """Knows the lease that was granted last."""

    lease: Lease

    def claim_job(self, *args: Any, **named: Any) -> Any:
        return self._noted(super().claim_job(*args, **named))

    def claim_shard(self, *args: Any, **named: Any) -> Any:
        return self._noted(super().claim_shard(*args, **named))

    def _noted(self, answer: Lease | ClaimDenied) -> Lease | ClaimDenied:
        if isinstance(answer, Lease):
            self.lease = answer
        return answer


class Slow:
    """A pump whose time passes within turns; leases are renewed meanwhile, as their threads do."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, api: FakeOpenAI | None = None) -> None:
        self.store = Store(Connection(new_redis()))
        self.leases = self.store.leases = Watched(self.store.connection, self.store.due)
        self.pump = Pump(folder, store=self.store, max_rows=2, api=api)
        for module in ("lease", "leases"):
            monkeypatch.setattr(f"batchpipe.store.{module}.host_clock", lambda: self.pump.at)

    def passes(self, seconds: float, *, getting_on: bool) -> None:
        for _ in range(int(seconds / 45)):
            self.pump.advance(45)
            if getting_on:
                self.leases.lease.check()
            elif not self.leases.lease.lost:
                self.leases.lease._renew()

    def events(self, job_id: str) -> list[str]:
        return [event["event"] for event in self.store.events.read(job_id)]


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(tmp_path, monkeypatch)


def merging(slow: Slow, monkeypatch: pytest.MonkeyPatch, seconds: float, *, getting_on: bool) -> list[float]:
    """Let each merge take so long. Answers the list of the times when one began."""
    begun: list[float] = []
    merge = vars(merging_module)["merge"]

    def slowly(*args: Any, **named: Any) -> Any:
        begun.append(slow.pump.at)
        slow.passes(seconds, getting_on=getting_on)
        named["check"]()
        return merge(*args, **named)

    monkeypatch.setattr(merging_module, "merge", slowly)
    return begun


def test_a_merge_that_gets_on_is_let_however_long_it_takes(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, chat_rows: Rows
) -> None:
    begun = merging(slow, monkeypatch, 10 * JOB_DEADLINE_SECONDS, getting_on=True)
    job_id = slow.pump.submit(chat_rows(2))
    slow.pump.run_until_idle()
    assert (slow.pump.job(job_id).stage, len(begun)) == (State.SUCCEEDED, 1)


def test_a_merge_that_stands_still_is_ended_shown_and_given_longer(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, chat_rows: Rows
) -> None:
    """It would start over for ever, and nobody would hear of it."""
    begun = merging(slow, monkeypatch, 3 * JOB_DEADLINE_SECONDS, getting_on=False)
    shown: list[str] = []
    job_id = slow.pump.submit(chat_rows(2))
    save = slow.store.leases.save

    def saved(lease: Lease, changes: Any) -> Any:
        answer = save(lease, changes)
        if (trouble := slow.pump.job(job_id).trouble) is not None:
            shown.append(f"{trouble.code}: {trouble.message}")
        return answer

    slow.store.leases.save = saved  # type: ignore[method-assign]
    slow.pump.run_until_idle()
    assert slow.pump.job(job_id).stage == State.SUCCEEDED
    assert len(begun) == 3  # one, two and four times the first deadline
    assert slow.events(job_id).count("deadline") == 2
    assert shown[0].startswith("deadline: merge made no progress")


def test_a_prepare_that_never_gets_on_is_refused_with_what_can_be_done(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, chat_rows: Rows
) -> None:
    """Nothing of it was paid."""

    def hangs(*args: Any, **named: Any) -> Any:
        slow.passes(2 * LONGEST_GROWTH * JOB_DEADLINE_SECONDS, getting_on=False)
        named["check"]()

    monkeypatch.setattr(job_runner, "prepare", hangs)
    job_id = slow.pump.submit(chat_rows(2))
    slow.pump.run_until_idle(max_seconds=10**8)
    job = slow.pump.job(job_id)
    assert job.stage == State.FAILED
    assert job.error is not None
    assert f"{MAX_OVERRUNS} times" in job.error.message
    assert "it may need faster storage, or several smaller inputs" in job.error.message


def test_a_look_for_an_unanswered_create_that_takes_long_gets_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_rows: Rows
) -> None:
    """A list of many pages, on a slow provider: each page is progress. The rows are paid for once."""

    class Long(FakeOpenAI):
        def batch_page(self, after: str | None = None) -> BatchPage:
            if looking[0]:
                made.passes(90, getting_on=False)
            return super().batch_page(after)

    # its turn is renewed in the background, where no clock is moved
    monkeypatch.setattr(
        "batchpipe.pipeline.looks.LookTurn", lambda *args, **more: LookTurn(*args, **more | {"lease": 1e4})
    )
    looking = [True]
    slow = made = Slow(tmp_path, monkeypatch, Long(autofinish=True))
    for _ in range(1_500):
        slow.pump.api.batches[f"batch_of_{len(slow.pump.api.batches)}"] = a_strangers(slow.pump)
    sweep = slow.pump.sweep

    def swept() -> int:
        looking[0] = False
        try:
            return sweep()
        finally:
            looking[0] = True

    slow.pump.sweep = swept  # type: ignore[method-assign]
    job_id = slow.pump.submit(chat_rows(2))
    slow.pump.api.fail_next("create_batch", AmbiguousResult("no answer"))
    slow.pump.run_until_idle()
    assert slow.pump.job(job_id).stage == State.SUCCEEDED
    assert slow.pump.api.billed["r0"] == slow.pump.api.billed["r1"] == 1
    assert "deadline" not in slow.events(job_id)


def a_strangers(pump: Pump) -> FakeBatch:
    """A batch of somebody else that was made just now."""
    made = f"batch_of_{len(pump.api.batches)}"
    return FakeBatch(
        id=made,
        input_file_id=f"file-{made}",
        requests=[],
        metadata={"batchpipe_key": "job_other:0:1"},
        arguments={},
        created_at=pump.at,
        status="completed",
    )


@pytest.mark.parametrize("method", ["upload", "download"])
def test_a_transfer_that_gets_on_is_not_cut_by_its_own_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_rows: Rows, method: str
) -> None:
    """Ten hours over a slow line, in one turn."""

    class Line(FakeOpenAI):
        def upload(self, handle: IO[bytes], name: str, check: Callable[[], None]) -> str:
            if method == "upload":
                made.passes(36_000, getting_on=True)
            return super().upload(handle, name, check)

        def download(self, file_id: str, sink: Any, check: Callable[[], None]) -> int:
            if method == "download":
                made.passes(36_000, getting_on=True)
            return super().download(file_id, sink, check)

    slow = made = Slow(tmp_path, monkeypatch, Line(autofinish=True))
    job_id = slow.pump.submit(chat_rows(2))
    slow.pump.run_until_idle()
    assert slow.pump.job(job_id).stage == State.SUCCEEDED
    assert slow.pump.api.count(method) == 1
    assert "deadline" not in slow.events(job_id)
