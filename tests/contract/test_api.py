"""What every provider does: the same on FakeOpenAI and on the real Api (the real SDK) against the sandbox server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import Gone, LeaseLost, Refused, Unavailable
from batchpipe.model.provider import Batch
from batchpipe.model.records import BatchError, Counts, Status
from batchpipe.provider import Api
from batchpipe.sandbox import Sandbox
from batchpipe.testing import FakeOpenAI

Rows = Callable[..., list[dict[str, object]]]


def nothing() -> None:
    """A lease that is never lost."""


class Provider:
    """An api and the means to end its batches; batches stay as they are until then."""

    api: Any

    def end(self, batch_id: str, status: str, errors: list[dict[str, Any]] | None = None) -> None:
        raise NotImplementedError

    def change_project(self) -> None:
        """From now on the key is of another project."""
        raise NotImplementedError

    def upload(self, rows: list[dict[str, object]] | bytes, check: Callable[[], None] = nothing) -> str:
        data = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        file_id: str = self.api.upload(io.BytesIO(data), "batchpipe-job_x-0-1.jsonl", check)
        return file_id

    def create(self, file_id: str, metadata: dict[str, str] | None = None, **extra: Any) -> Batch:
        snapshot: Batch = self.api.create_batch(
            endpoint="/v1/chat/completions",
            completion_window="24h",
            input_file_id=file_id,
            metadata=metadata or {},
            extra=extra,
        )
        return snapshot

    def download(self, file_id: str | None) -> bytes:
        sink = io.BytesIO()
        assert file_id is not None
        count = self.api.download(file_id, sink, nothing)
        assert count == len(sink.getvalue()) == self.api.file_bytes(file_id)
        return sink.getvalue()


class FakeProvider(Provider):
    def __init__(self) -> None:
        self.api = FakeOpenAI()

    def change_project(self) -> None:
        self.api.project = "another"

    def end(self, batch_id: str, status: str, errors: list[dict[str, Any]] | None = None) -> None:
        if status == Status.FAILED:
            self.api.fail(batch_id, errors or [])
        else:
            self.api.finish(batch_id, status, after=None if status == Status.COMPLETED else 0)


class SdkProvider(Provider):
    def __init__(self, sandbox: Sandbox) -> None:
        self.api = Api(Account(api_key=SecretStr("sk-test"), base_url=sandbox.base_url))
        self._sandbox = sandbox
        self._stuck = sandbox.faults.add("stuck")

    def change_project(self) -> None:
        self._sandbox.faults.add("other_project")

    def end(self, batch_id: str, status: str, errors: list[dict[str, Any]] | None = None) -> None:
        if status == Status.COMPLETED:
            self._sandbox.faults.remove(self._stuck)
        self._sandbox.batches.end(batch_id, status, errors)


@pytest.fixture(params=["fake", "sdk"])
def provider(request: pytest.FixtureRequest) -> Iterator[Provider]:
    if request.param == "fake":
        yield FakeProvider()
        return
    provider = SdkProvider(request.getfixturevalue("sandbox"))
    yield provider
    provider.api._client.close()


def test_a_file_comes_back_byte_for_byte(provider: Provider) -> None:
    """Up, its size, and down again."""
    data = b'{"custom_id": "\xc3\xa9"}\r\n\n' * 9_000
    file_id = provider.upload(data)
    assert provider.download(file_id) == data


def test_a_deleted_file_is_gone(provider: Provider) -> None:
    """Deleting it twice says so, too."""
    file_id = provider.upload(b"{}\n")
    provider.api.delete_file(file_id)
    assert provider.api.file_bytes(file_id) is None  # only the content says that a file is gone
    with pytest.raises(Gone):
        provider.api.download(file_id, io.BytesIO(), nothing)
    with pytest.raises(Gone):
        provider.api.delete_file(file_id)


def test_unknown_batches_are_gone(provider: Provider) -> None:
    """Reading and cancelling tell it alike."""
    with pytest.raises(Gone):
        provider.api.retrieve("batch_unknown")
    with pytest.raises(Gone):
        provider.api.cancel_batch("batch_unknown")


def test_transfers_end_with_the_lease(provider: Provider) -> None:
    """What ``check`` raises comes through as it is."""

    def lost() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        provider.upload(b"{}\n" * 100_000, lost)
    file_id = provider.upload(b"{}\n" * 100_000)
    with pytest.raises(LeaseLost):
        provider.api.download(file_id, io.BytesIO(), lost)


def test_a_created_batch_is_told_with_its_input_and_metadata(provider: Provider, chat_rows: Rows) -> None:
    """By create, by retrieve and by the list."""
    file_id = provider.upload(chat_rows(2))
    created = provider.create(file_id, {"batchpipe_key": "job_x:0:1", "team": "a"})
    listed = next(iter(provider.api.iter_batches(0.0)))
    for snapshot in (created, provider.api.retrieve(created.id), listed):
        assert snapshot.id == created.id
        assert snapshot.input_file_id == file_id
        assert snapshot.metadata == {"batchpipe_key": "job_x:0:1", "team": "a"}
        assert snapshot.status not in Status.FINAL
        assert snapshot.created_at == created.created_at is not None


def test_a_key_of_another_project_sees_neither_files_nor_batches(provider: Provider, chat_rows: Rows) -> None:
    """404 for both, and empty lists: what it answers is no proof of anything."""
    file_id = provider.upload(chat_rows(1))
    batch = provider.create(file_id)
    assert provider.api.file_status(file_id) == "processed"
    provider.change_project()
    for call in (provider.api.retrieve, provider.api.cancel_batch):
        with pytest.raises(Gone):
            call(batch.id)
    with pytest.raises(Gone):
        provider.api.file_status(file_id)
    assert list(provider.api.iter_batches(0.0)) == list(provider.api.iter_files(0.0)) == []
    with pytest.raises(Unavailable) as caught:
        provider.create(file_id)
    assert caught.value.code == "file_not_found"


def test_an_unknown_input_file_may_only_be_late(provider: Provider) -> None:
    """A clear no that may pass: nothing was created."""
    with pytest.raises(Unavailable) as caught:
        provider.create("file-unknown")
    assert caught.value.code == "file_not_found"
    assert list(provider.api.iter_batches(0.0)) == []


def test_the_list_is_newest_first_over_all_pages(provider: Provider, chat_rows: Rows) -> None:
    """A page holds a hundred."""
    file_id = provider.upload(chat_rows(1))
    made = [provider.create(file_id).id for _ in range(103)]
    assert [batch.id for batch in provider.api.iter_batches(0.0)] == made[::-1]


def test_a_page_begins_after_the_batch_that_it_is_told(provider: Provider, chat_rows: Rows) -> None:
    """Wherever that is; the last page says that it is the last. What is listed is what a read shows."""
    file_id = provider.upload(chat_rows(1))
    made = [provider.create(file_id, {"batchpipe_key": str(number)}).id for number in range(103)][::-1]
    first = provider.api.batch_page()
    assert ([batch.id for batch in first.batches], first.more) == (made[:100], True)
    listed = (provider.api.batch_page().batches[7] for _ in range(100))
    assert any(batch == provider.api.retrieve(made[7]) for batch in listed)  # it may move on between the two
    inner = provider.api.batch_page(made[49])
    assert ([batch.id for batch in inner.batches], inner.more) == (made[50:], False)
    assert provider.api.batch_page(made[-1]).batches == []
    with pytest.raises(Refused):
        provider.api.batch_page("batch_unknown")


def test_the_list_ends_after_the_page_that_is_old_enough(provider: Provider, chat_rows: Rows) -> None:
    """An account has months of batches; only the recent ones are asked for."""
    file_id = provider.upload(chat_rows(1))
    made = [provider.create(file_id).id for _ in range(103)]
    assert [batch.id for batch in provider.api.iter_batches(1e12)] == made[:2:-1]


def test_a_completed_batch_has_its_answers_and_counts(provider: Provider, chat_rows: Rows) -> None:
    """No error file where no row failed."""
    batch = provider.create(provider.upload(chat_rows(3)))
    provider.end(batch.id, Status.COMPLETED)
    snapshot = provider.api.retrieve(batch.id)
    assert (snapshot.status, snapshot.error_file_id) == (Status.COMPLETED, None)
    assert snapshot.counts == Counts(total=3, completed=3, failed=0)
    lines = [json.loads(line) for line in provider.download(snapshot.output_file_id).splitlines()]
    assert {line["custom_id"] for line in lines} == {"r0", "r1", "r2"}
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in lines)


def test_rows_that_did_not_run_stand_in_the_error_file(provider: Provider, chat_rows: Rows) -> None:
    """With the reason, and without a response."""
    batch = provider.create(provider.upload(chat_rows(2)))
    provider.end(batch.id, Status.EXPIRED)
    snapshot = provider.api.retrieve(batch.id)
    assert (snapshot.status, snapshot.output_file_id) == (Status.EXPIRED, None)
    lines = [json.loads(line) for line in provider.download(snapshot.error_file_id).splitlines()]
    assert {(line["custom_id"], line["error"]["code"]) for line in lines} == {
        ("r0", "batch_expired"),
        ("r1", "batch_expired"),
    }


def test_a_cancelled_batch_ends_cancelled(provider: Provider, chat_rows: Rows) -> None:
    """After a while; no row of this one ran."""
    batch = provider.create(provider.upload(chat_rows(2)))
    provider.api.cancel_batch(batch.id)
    provider.end(batch.id, Status.CANCELLED)
    snapshot = provider.api.retrieve(batch.id)
    assert (snapshot.status, snapshot.output_file_id) == (Status.CANCELLED, None)


def test_a_refused_batch_says_why(provider: Provider, chat_rows: Rows) -> None:
    """With the lines it does not like."""
    batch = provider.create(provider.upload(chat_rows(2)))
    provider.end(batch.id, Status.FAILED, [{"code": "invalid_url", "message": "no", "line": 2, "param": "url"}])
    snapshot = provider.api.retrieve(batch.id)
    assert (snapshot.status, snapshot.output_file_id, snapshot.error_file_id) == (Status.FAILED, None, None)
    assert snapshot.errors == [BatchError(code="invalid_url", message="no", line=2, param="url")]


def test_cancelling_a_living_batch_twice_is_fine(provider: Provider, chat_rows: Rows) -> None:
    """It is then cancelling, or already cancelled."""
    batch = provider.create(provider.upload(chat_rows(1)))
    for _ in range(2):
        try:
            status = provider.api.cancel_batch(batch.id).status
        except Refused:  # it has ended in this very moment
            status = provider.api.retrieve(batch.id).status
        assert status in ("cancelling", *Status.FINAL)


def test_an_ended_batch_refuses_to_be_cancelled(provider: Provider, chat_rows: Rows) -> None:
    """It is not gone and not busy: it has ended, and is to be read."""
    batch = provider.create(provider.upload(chat_rows(1)))
    provider.end(batch.id, Status.COMPLETED)
    with pytest.raises(Refused) as caught:
        provider.api.cancel_batch(batch.id)
    assert not isinstance(caught.value, Gone)


def test_a_ping_is_answered(provider: Provider) -> None:
    """With a good key nothing is raised."""
    provider.api.ping()
