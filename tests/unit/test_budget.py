"""One budget of reads for an account: whatever reads takes from it, and a fresh job does not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import AmbiguousResult
from batchpipe.model.records import Stage
from batchpipe.testing import FakeOpenAI, Pump
from batchpipe.testing.things import FakeFile

Rows = Callable[..., list[dict[str, object]]]
RATE = 0.1  # reads a second: one each ten seconds, and one at once
READS = ("retrieve", "file_status", "file_name", "iter_files", "batch_page")


def pump_of(folder: Path, api: FakeOpenAI) -> Pump:
    account = Account(api_key=SecretStr("k"), looks_per_second=RATE)
    return Pump(folder, api=api, max_rows=2, accounts={"default": account})


def pass_time(pump: Pump, seconds: float) -> int:
    """Messages at their time. Returns how often the provider was read."""
    ends, before = pump.at + seconds, sum(map(pump.api.count, READS))
    while pump.at < ends:
        if pump.step() is None:
            pump.advance(0.5)
    return sum(map(pump.api.count, READS)) - before


def empty_the_budget(pump: Pump) -> None:
    """Others have just read."""
    for _ in range(3):
        pump.store.accounts.take_rate_token("default", per_second=RATE, what="news")


class Late(FakeOpenAI):
    """Counts all answers; its files have half of them."""

    def _file(self, file_id: str) -> FakeFile:
        file = super()._file(file_id)
        lines = file.data.splitlines(keepends=True)
        return file if file.purpose == "batch" else FakeFile(file.name, b"".join(lines[: len(lines) // 2]))


def test_downloads_that_read_their_batches_again_keep_to_the_budget(tmp_path: Path, chat_rows: Rows) -> None:
    """Each waits for files that are late; together they read no more often than one alone may."""
    pump = pump_of(tmp_path, Late())
    job_id = pump.submit(chat_rows(40))
    pass_time(pump, 3.0)
    for batch_id in list(pump.api.batches):
        pump.api.finish(batch_id)
    pass_time(pump, 300.0)
    assert {shard.stage for shard in pump.shards(job_id)} == {Stage.ENDED}
    assert 20 <= pass_time(pump, 300.0) <= 33


def test_a_turn_whose_slot_is_far_away_comes_back_then_and_takes_it(tmp_path: Path, chat_rows: Rows) -> None:
    """It does not ask again, and what it has waited for is not forgotten."""
    pump = pump_of(tmp_path, Late())
    job_id = pump.submit(chat_rows(1))
    pass_time(pump, 3.0)
    for batch_id in list(pump.api.batches):
        pump.api.finish(batch_id)
    while pump.shards(job_id)[0].late_at is None:
        pass_time(pump, 1.0)
    trouble, late_at = pump.shards(job_id)[0].trouble, pump.shards(job_id)[0].late_at
    empty_the_budget(pump)
    assert pass_time(pump, 5.0) == 0
    shard = pump.shards(job_id)[0]
    assert (shard.trouble, shard.late_at) == (trouble, late_at)
    assert shard.slot_at is not None
    assert shard.next_at == pytest.approx(shard.slot_at, abs=1.0)
    pass_time(pump, shard.slot_at - pump.at - 1.0)
    assert pass_time(pump, 2.0) == 1
    assert pump.shards(job_id)[0].slot_at is None


def test_a_fresh_file_that_is_not_ready_is_asked_for_at_once_and_paid_for_later(
    tmp_path: Path, chat_rows: Rows
) -> None:
    """A new job does not wait for what others have read."""

    class Pending(FakeOpenAI):
        def _add(self, name: str, data: bytes, purpose: str = "batch_output") -> str:
            file_id = super()._add(name, data, purpose)
            self.files[file_id].status = "pending"
            return file_id

    pump = pump_of(tmp_path, Pending())
    empty_the_budget(pump)
    pump.submit(chat_rows(1))
    before = pump.store.accounts.take_rate_token("default", per_second=RATE)[1]
    pass_time(pump, 1.0)
    assert pump.api.count("file_status") == 1
    assert pump.store.accounts.take_rate_token("default", per_second=RATE)[1] == pytest.approx(before + 19.0, abs=1.5)


def test_an_id_that_an_unclear_answer_named_is_read_within_the_budget(tmp_path: Path, chat_rows: Rows) -> None:
    """All that one turn reads has one slot: it gets on however little there is."""

    class Named(FakeOpenAI):
        def create_batch(self, **arguments: Any) -> Any:
            batch = super().create_batch(**arguments)
            error = AmbiguousResult("a broken body")
            error.named = {batch.id: True}
            raise error

    pump = pump_of(tmp_path, Named())
    job_id = pump.submit(chat_rows(8))
    empty_the_budget(pump)
    assert pass_time(pump, 15.0) == 0
    assert pass_time(pump, 65.0) <= 7
    assert {shard.stage for shard in pump.shards(job_id)} == {Stage.CREATED}
    assert len(pump.api.batches) == 4
