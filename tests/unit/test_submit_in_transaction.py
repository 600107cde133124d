"""A submit within a transaction is recorded when that commits, and leaves nothing behind when it rolls back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from batchpipe.client.client import Client, Job
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import InvalidInput, JobNotFound, OutputInUse, StoreUnavailable
from batchpipe.pipeline import copied_inputs
from batchpipe.pipeline.copied_inputs import NOTES, UNRECORDED_SECONDS, remove_unrecorded
from batchpipe.store import Store
from batchpipe.store.jobs import Jobs, Recorded

ROW = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini"}}


class Transaction:
    """What a framework gives us: functions to call on commit, thrown away on rollback."""

    def __init__(self) -> None:
        self.open = True
        self._commits: list[Callable[[], None]] = []

    def hold(self, commit: Callable[[], None]) -> bool:
        if self.open:
            self._commits.append(commit)
        return self.open

    def commit(self) -> None:
        self.open = False
        while self._commits:
            self._commits.pop(0)()

    def roll_back(self) -> None:
        self.open = False
        self._commits.clear()


@pytest.fixture
def client(redis_url: str, prefix: str, tmp_path: Path) -> Client:
    settings = Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path / "home")
    return Client(settings)


@pytest.fixture
def transaction() -> Iterator[Transaction]:
    made = Transaction()
    current_site().on_commit = made.hold
    yield made
    current_site().on_commit = None
    current_site().app = None


def spools(client: Client) -> list[Path]:
    return list(client.settings.home.rglob("input.jsonl"))


def notes(client: Client) -> list[str]:
    """The jobs whose copies are noted as not recorded."""
    return sorted(path.name for path in (client.settings.home / NOTES).iterdir())


def sweep_later(client: Client, seconds: float = UNRECORDED_SECONDS + 60) -> None:
    """What a sweep does with copies so much later."""
    remove_unrecorded(client.settings, client.store, time.time() + seconds)


def test_a_committed_submit_is_recorded_then(client: Client, transaction: Transaction) -> None:
    """The handle is there at once, and says what it waits for."""
    job = client.submit([ROW])
    assert isinstance(job, Job)
    assert job.state == "pending"
    assert client.list_jobs() == []
    for ask in (job.refresh, job.cancel, job.wait, job.result, job.logs, lambda: list(job.iter_logs(follow=True))):
        with pytest.raises(JobNotFound, match="when the transaction around it commits"):
            ask()

    transaction.commit()

    assert job.refresh().state == "pending"
    assert [found.id for found in client.list_jobs()] == [job.id]
    assert len(spools(client)) == 1


def test_a_rolled_back_submit_leaves_nothing(
    client: Client, transaction: Transaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record, and a day later a sweep removes the rows that were written to a file."""
    job = client.submit([ROW])
    assert len(spools(client)) == 1

    transaction.roll_back()
    monkeypatch.setattr(copied_inputs, "UNRECORDED_SECONDS", -60)  # the day has passed
    client.sweep()

    assert spools(client) == []
    assert list((client.settings.home / "jobs").iterdir()) == []
    assert client.list_jobs() == []
    with pytest.raises(JobNotFound):
        job.wait()


def test_a_submit_outside_a_transaction_keeps_its_rows(client: Client, transaction: Transaction) -> None:
    """Where a framework could hold it back and does not, and where there is no framework."""
    transaction.open = False
    client.submit([ROW])
    current_site().on_commit = None
    client.submit([ROW])

    assert len(spools(client)) == 2
    assert len(client.list_jobs()) == 2


# -- Redis does not take it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True], ids=["at once", "on commit"])
def test_a_submit_that_cannot_reach_redis_keeps_its_copy_for_the_sweep(
    held: bool, tmp_path: Path, transaction: Transaction
) -> None:
    """Whether Redis has recorded the job after all, nobody can know at that moment."""
    settings = Settings(_env_file=None, redis_url=SecretStr("redis://127.0.0.1:1/0"), home=tmp_path / "home")
    client, transaction.open = Client(settings), held

    def order() -> None:
        client.submit([ROW])
        transaction.commit()

    with pytest.raises(StoreUnavailable):
        order()
    assert [path.parent.name for path in spools(client)] == notes(client)
    assert len(notes(client)) == 1


class Troubled(Jobs):
    """Loses the answer to a submit, before or after Redis has it."""

    recorded = False

    def record(self, *args: Any, **options: Any) -> Recorded:
        if self.recorded:
            super().record(*args, **options)
        raise StoreUnavailable("Redis: TimeoutError: Timeout reading from socket")


class TroubledClient(Client):
    made: Store | None = None

    @property
    def store(self) -> Store:
        return self.made or super().store


@pytest.mark.parametrize("recorded", [False, True])
def test_after_a_submit_without_an_answer_the_copy_stays_if_there_is_a_record(client: Client, recorded: bool) -> None:
    """Else nobody would ever read it: a sweep removes it after a day."""
    troubled = TroubledClient(client.settings)
    troubled.made = Store(client.store.connection)
    troubled.made.jobs = jobs = Troubled(client.store.connection, client.store.due)
    jobs.recorded = recorded
    with pytest.raises(StoreUnavailable):
        troubled.submit([ROW])
    assert len(spools(client)) == len(notes(client)) == 1

    sweep_later(client)

    assert [job.record.input for job in client.list_jobs()] == [str(path) for path in spools(client)]
    assert len(spools(client)) == recorded
    assert notes(client) == []


# -- copies of inputs whose job is not recorded --------------------------------------------------------------------


def test_the_note_of_a_copy_goes_with_the_record(client: Client) -> None:
    """So what has a note was never recorded, as far as this host knows."""
    client.submit([ROW])

    assert len(spools(client)) == 1
    assert notes(client) == []


def test_a_copy_is_kept_for_a_day(client: Client, transaction: Transaction) -> None:
    """A transaction may last; until then every sweep leaves its input alone."""
    job = client.submit([ROW])
    sweep_later(client, 86_000)
    client.sweep()

    transaction.commit()

    assert job.refresh().state == "pending"
    assert [Path(job.record.input)] == spools(client)


def test_the_copy_of_a_job_that_its_redis_has_lost_stays(client: Client) -> None:
    """Recover needs it: only what was noted as never recorded is removed."""
    client.submit([ROW])
    redis = client.store.connection.client
    redis.delete(*redis.scan_iter(f"{client.settings.prefix}*"))

    sweep_later(client)

    assert len(spools(client)) == 1


def test_a_copy_noted_for_another_redis_stays(client: Client, transaction: Transaction, prefix: str) -> None:
    """That one may know its job."""
    client.submit([ROW])
    other = Client(client.settings.model_copy(update={"prefix": f"other-{prefix}"}))

    sweep_later(other)
    assert len(spools(client)) == 1

    sweep_later(client)
    assert spools(client) == []


def test_a_workspace_with_more_than_the_copy_is_never_removed(client: Client, transaction: Transaction) -> None:
    """Whatever a note says, somebody has worked there."""
    client.submit([ROW])
    [copy] = spools(client)
    (copy.parent / "manifest.json").write_text("{}")

    sweep_later(client)

    assert copy.exists()
    assert notes(client) == []


def test_an_output_with_results_in_it_is_never_removed(client: Client, transaction: Transaction) -> None:
    """Its note outlived a kill, its record and its workspace are gone: what was paid for stays."""
    job = client.submit([ROW])
    transaction.roll_back()
    shutil.rmtree(job.record.workspace)
    results = Path(job.record.output, "output.jsonl")
    results.write_bytes(b"paid\n")

    sweep_later(client)

    assert results.read_bytes() == b"paid\n"


def test_a_process_looks_through_the_notes_once_a_minute(
    client: Client, transaction: Transaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each young note costs a question to Redis, and there may be thousands."""
    job = client.submit([ROW])
    transaction.roll_back()
    monkeypatch.setattr(copied_inputs, "UNRECORDED_SECONDS", 60_000)
    client.sweep()
    monkeypatch.setattr(copied_inputs, "UNRECORDED_SECONDS", -60)
    client.sweep()
    assert notes(client) == [job.id]
    monkeypatch.setattr(copied_inputs, "LOOK_SECONDS", 0)
    client.sweep()
    assert notes(client) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"redis": 1}'])
def test_a_damaged_note_stops_no_sweep(client: Client, transaction: Transaction, damage: str) -> None:
    """A full disk may have cut it; nothing is removed for it."""
    job = client.submit([ROW])
    (client.settings.home / NOTES / job.id).write_text(damage)

    sweep_later(client)
    client.sweep()

    assert len(spools(client)) == 1


def test_bad_rows_are_refused_within_the_transaction(client: Client, transaction: Transaction) -> None:
    """Who called submit is there to be told; on commit it would be too late."""
    with pytest.raises(InvalidInput, match="the input has no rows"):
        client.submit([])


def test_an_id_whose_key_was_taken_meanwhile_leads_to_the_first_job(client: Client, transaction: Transaction) -> None:
    """Two requests in two transactions: both handles are good, one job is paid for."""
    first, second = client.submit([ROW], key="nightly"), client.submit([ROW], key="nightly")
    assert first.id != second.id
    given = second.id

    transaction.commit()

    assert second.logs() == first.logs() != []
    assert second.refresh().id == first.id
    assert client.get_job(given).id == first.id
    assert len(client.list_jobs()) == 1
    assert len(spools(client)) == 1
    assert client.cancel(given).state == "cancelling"
    assert client.get_job(first.id).state == "cancelling"
    aliases = list(client.store.connection.client.scan_iter(f"{client.settings.prefix}alias:*"))
    assert [client.store.connection.client.ttl(alias) > 86_400 for alias in aliases] == [True]


def test_a_key_that_is_known_is_answered_at_once(client: Client, transaction: Transaction) -> None:
    """Nothing needs to wait for the commit: the job is there."""
    transaction.open = False
    first = client.submit([ROW], key="k")
    transaction.open = True

    assert client.submit([ROW], key="k").refresh().id == first.id


def test_an_output_taken_meanwhile_is_told_to_who_commits(
    client: Client, transaction: Transaction, tmp_path: Path
) -> None:
    """It is refused like any other, and what was spooled for it goes."""
    client.submit([ROW], output=tmp_path / "out")
    client.submit([ROW], output=tmp_path / "out")

    with pytest.raises(OutputInUse):
        transaction.commit()
    assert len(spools(client)) + len(list((tmp_path / "out").rglob("input.jsonl"))) == 1
