"""Limits that refusals teach beside that of tokens: batches at once, creations an hour, uploads a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from batchpipe.errors import BATCH_LIMIT, Unavailable
from batchpipe.model.admission import Room
from batchpipe.model.provider import Batch
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]


class StrictOpenAI(FakeOpenAI):
    """A provider that limits unfinished batches, and creations and uploads within a minute. Batches run until they are
    told to end."""

    def __init__(
        self, *, batches: int = 10**6, says: bool = True, others: int = 0, creations: int = 10**6, uploads: int = 10**6
    ) -> None:
        super().__init__()
        self.batches_at_once, self.says, self.others = batches, says, others
        self.most = {"creations": creations, "uploads": uploads}
        self.times: dict[str, list[float]] = {"creations": [], "uploads": []}
        self.refused = 0

    def create_batch(self, **arguments: Any) -> Batch:
        self._take("creations")
        if len(self.running) + self.others >= self.batches_at_once:
            self.refused += 1
            words = f"The limit of {self.batches_at_once} unfinished batches is reached."
            raise Unavailable(words if self.says else "too many", code=BATCH_LIMIT, status=400)
        return super().create_batch(**arguments)

    def upload(self, handle: IO[bytes], name: str, check: Callable[[], None]) -> str:
        self._take("uploads")
        return super().upload(handle, name, check)

    def _take(self, what: str) -> None:
        """As the real one answers: headers, and the time to wait."""
        now, times = self.clock(), self.times[what]
        times[:] = [at for at in times if at > now - 60.0]
        if len(times) < self.most[what]:
            times.append(now)
            return
        self.refused += 1
        wait = times[0] + 60.0 - now
        headers = {
            "x-ratelimit-limit-requests": str(self.most[what]),
            "x-ratelimit-reset-requests": f"{max(times[-1] + 60.0 - now, 1.0):.0f}s",
        }
        raise Unavailable("HTTP 429: slow down", code="rate_limit_exceeded", status=429, after=wait, limits=headers)

    @property
    def running(self) -> list[str]:
        return [batch.id for batch in self.batches.values() if not batch.is_final]


def run_to_the_end(pump: Pump, api: StrictOpenAI, job: str, *, rounds: int = 100) -> None:
    for _ in range(rounds):
        pump.run_for(60.0)
        if pump.job(job).state.ended:
            return
        for batch in api.running:
            api.finish(batch)
    raise TimeoutError(f"{pump.job(job).state}")


def room(pump: Pump, kind: str) -> Room:
    return next(room for room in pump.store.admission.rooms("default") if room.kind == kind)


@pytest.mark.parametrize("says", [True, False])
def test_a_refusal_of_one_batch_too_many_teaches_how_many_there_may_be(
    says: bool, tmp_path: Path, chat_rows: Rows
) -> None:
    """By the number in its words; else nine tenths of those that were there. Then none is refused any more."""
    api = StrictOpenAI(batches=3, says=says)
    pump = Pump(tmp_path, api=api, max_rows=1)
    job = pump.submit(chat_rows(12))
    pump.run_for(60.0)
    assert (room(pump, "batches").learned, len(api.running)) == (3, 3)
    refused = api.refused
    run_to_the_end(pump, api, job)
    assert (pump.job(job).ok, api.count("upload")) == (12, 12)
    assert api.refused <= refused + (0 if says else 1)
    assert room(pump, "batches").held == 0


def test_who_waits_for_a_batch_to_end_says_so_and_goes_on_at_once_when_one_has(tmp_path: Path, chat_rows: Rows) -> None:
    api = StrictOpenAI(batches=1)
    pump = Pump(tmp_path, api=api, max_rows=1)
    job = pump.submit(chat_rows(2))
    pump.run_for(60.0)
    (waiting,) = pump.store.admission.waiting_of([(job, 0), (job, 1)]).values()
    assert waiting.kind == "batches"
    api.finish(api.running[0])
    pump.advance(600.0)
    pump.run_due()  # no sweep
    assert len(api.batches) == 2


def test_batches_of_others_leave_room_for_one_that_tries_with_growing_pauses(tmp_path: Path, chat_rows: Rows) -> None:
    api = StrictOpenAI(batches=5, others=5)
    pump = Pump(tmp_path, api=api, max_rows=1)
    job = pump.submit(chat_rows(8))
    pump.run_for(3_600.0)
    assert not api.batches
    assert api.refused < 30
    api.others = 0
    pump.run_for(1_200.0)
    assert len(api.batches) > 0
    run_to_the_end(pump, api, job)
    assert pump.job(job).ok == 8


@pytest.mark.parametrize("what", ["creations", "uploads"])
def test_a_429_closes_its_room_until_the_time_that_it_names_and_teaches_the_rate(
    what: str, tmp_path: Path, chat_rows: Rows
) -> None:
    """Twenty shards that wait do not each find out by themselves."""
    api = StrictOpenAI(**{what: 4})  # type: ignore[arg-type]
    pump = Pump(tmp_path, api=api, max_rows=1)
    job = pump.submit(chat_rows(20))
    pump.run_for(60.0)
    assert api.refused == 1
    assert room(pump, what).learned == (4 * 60 if what == "creations" else 4)
    run_to_the_end(pump, api, job)
    assert (pump.job(job).ok, api.count("upload"), api.count("create_batch")) == (20, 20, 20)
    assert api.refused <= 8


def test_a_429_without_a_time_or_a_rate_teaches_nothing(tmp_path: Path, chat_rows: Rows) -> None:
    """It is tried again like after any trouble."""
    api = StrictOpenAI()
    pump = Pump(tmp_path, api=api, max_rows=1)
    api.fail_next("create_batch", Unavailable("HTTP 429: no", code="http_429", status=429), times=2)
    job = pump.submit(chat_rows(3))
    pump.run_for(60.0)
    assert len(api.running) == 3
    assert room(pump, "creations").learned is None
    run_to_the_end(pump, api, job)
