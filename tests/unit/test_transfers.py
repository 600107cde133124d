"""Transfers over real HTTP: slow ones end well, dripping ones are cut, broken ones go on where they were."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import LeaseLost, StorageTrouble, Unavailable
from batchpipe.model.least_rate import LeastRate
from batchpipe.model.provider import ProviderReads
from batchpipe.pipeline.fetching import FETCHES_AT_ONCE, Fetcher
from batchpipe.provider import Api
from batchpipe.sandbox import Sandbox
from batchpipe.storage import Folder, partial

MB = 1 << 20
DATA = random.Random(1).randbytes(3 * MB)


def nothing() -> None:
    """A lease that is never lost."""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(validating_seconds=0) as running:
        yield running


@pytest.fixture
def make(sandbox: Sandbox) -> Iterator[Callable[..., Api]]:
    made: list[Api] = []

    def build(**options: Any) -> Api:
        made.append(Api(Account(api_key=SecretStr("key"), base_url=sandbox.base_url), **options))
        return made[-1]

    yield build
    for api in made:
        api.close()


def content_calls(sandbox: Sandbox) -> int:
    return sum(call.route.endswith("/content") for call in sandbox.calls)


def fetched(api: Api, folder: Folder, file_id: str, **options: Any) -> bytes:
    with Fetcher(api, folder, "s", nothing, **options) as files:
        file, whole = files.fetch(file_id)
        assert whole
        return file.at(0, 64 * MB)


def broken(api: Api, folder: Folder, file_id: str, **options: Any) -> Unavailable:
    with pytest.raises(Unavailable) as raised:
        fetched(api, folder, file_id, **options)
    return raised.value


def test_a_connection_that_breaks_after_each_mb_goes_on_where_it_was(
    make: Callable[..., Api], sandbox: Sandbox, tmp_path: Path
) -> None:
    """However often it breaks, each try asks for what is still missing."""
    api, folder = make(), Folder(str(tmp_path))
    file_id = api.upload(io.BytesIO(DATA), "x", nothing)
    sandbox.faults.add("truncate", bytes=MB // 2)
    assert fetched(api, folder, file_id) == DATA
    assert content_calls(sandbox) == 6
    assert folder.names("downloads") == []


def test_what_one_turn_has_got_the_next_one_need_not_fetch(
    make: Callable[..., Api], sandbox: Sandbox, tmp_path: Path
) -> None:
    """Also in a remote workspace, where this host keeps it. A file that is done leaves nothing behind."""
    for folder, elsewhere in [
        (Folder(str(tmp_path / "here")), None),
        (Folder(f"memory://{tmp_path.name}"), Folder(str(tmp_path / "there"), private=True)),
    ]:
        api = make()
        file_id = api.upload(io.BytesIO(DATA), "x", nothing)
        fault = sandbox.faults.add("truncate", bytes=100_000)
        assert "goes on there" in str(broken(api, folder, file_id, elsewhere=elsewhere))
        sandbox.faults.remove(fault)
        drip = sandbox.faults.add("truncate", bytes=len(DATA) - FETCHES_AT_ONCE * 100_000)  # the rest, and no more
        assert fetched(api, folder, file_id, elsewhere=elsewhere) == DATA
        sandbox.faults.remove(drip)
        kept = elsewhere.names() if elsewhere else folder.names("downloads")
        assert kept == []


def test_a_server_that_ignores_range_is_not_mixed_up(
    make: Callable[..., Api], sandbox: Sandbox, tmp_path: Path
) -> None:
    """It begins at byte 0 each time; what is shown names what a person can change."""
    api, folder = make(), Folder(str(tmp_path))
    file_id = api.upload(io.BytesIO(DATA), "x", nothing)
    sandbox.faults.add("no_range")
    cut = sandbox.faults.add("truncate", bytes=MB)
    error = broken(api, folder, file_id)
    assert "MAX_ROWS" in str(error)
    sandbox.faults.remove(cut)
    assert fetched(api, folder, file_id) == DATA


@pytest.mark.parametrize("size", [None, 10 * MB])
def test_a_size_that_is_not_stated_or_wrong_is_no_reason_to_mix(
    make: Callable[..., Api], sandbox: Sandbox, tmp_path: Path, size: int | None
) -> None:
    """More is asked for than there is (416): the file is fetched from its beginning."""
    api, folder = make(), Folder(str(tmp_path))
    file_id = api.upload(io.BytesIO(DATA), "x", nothing)
    sandbox.faults.add("replace", route="GET /v1/files/{id}", json={"id": file_id, "bytes": size})
    with Fetcher(api, folder, "s", nothing) as files:
        file, extent = files.fetch(file_id)
        assert (file.at(0, 64 * MB), extent) == (DATA, "unknown" if size is None else "short")


def test_a_part_of_another_version_is_not_taken(make: Callable[..., Api], sandbox: Sandbox, tmp_path: Path) -> None:
    """The file's tag is not what it was."""
    api, folder = make(), Folder(str(tmp_path))
    file_id = api.upload(io.BytesIO(DATA), "x", nothing)
    cut = sandbox.faults.add("truncate", bytes=100_000)
    broken(api, folder, file_id)
    sandbox.faults.remove(cut)
    other = bytes(len(DATA))
    sandbox.files.path(file_id).write_bytes(other)
    assert fetched(api, folder, file_id) == other


def test_a_lease_that_is_lost_in_a_download_leaves_what_has_come(
    make: Callable[..., Api], sandbox: Sandbox, tmp_path: Path
) -> None:
    api, folder, calls = make(), Folder(str(tmp_path)), [0]
    file_id = api.upload(io.BytesIO(DATA), "x", nothing)

    def lost() -> None:
        calls[0] += 1
        if calls[0] > 10:
            raise LeaseLost

    with pytest.raises(LeaseLost), Fetcher(api, folder, "s", lost) as files:
        files.fetch(file_id)
    [name, _] = folder.names("downloads")
    with partial(folder.child("downloads"), name) as kept:
        assert 0 < kept.have < len(DATA)
    assert fetched(api, folder, file_id) == DATA


def test_what_is_there_is_what_was_made_safe(tmp_path: Path) -> None:
    """A host that lost its power may show zeros where nothing was written: only what was noted counts."""
    folder = Folder(str(tmp_path))
    with partial(folder, "x.part") as file:
        file.next_try(most=MB)
        file.begin('"v1"', resumable=True)
        file.write(b"abc")
        file.save()
        file.write(b"\0" * 10)
    with partial(folder, "x.part") as file:
        assert (file.have, file.etag) == (3, '"v1"')
        file.next_try(most=MB)
        file.resume()
        file.write(b"def")
        assert file.scratch.at(0, 99) == b"abcdef"
        file.next_try(most=MB)
        file.write(b"new")  # a try that does not resume
    with partial(folder, "x.part") as file:
        assert file.have == 0


@pytest.mark.parametrize("noted", [b"", b"{}", b'{"bytes": -1, "etag": null}', b'{"bytes": 9, "etag": null}', b"[1]"])
def test_a_note_that_makes_no_sense_is_none(tmp_path: Path, noted: bytes) -> None:
    (tmp_path / "x.part").write_bytes(b"abc")
    (tmp_path / "x.part.json").write_bytes(noted)
    with partial(Folder(str(tmp_path)), "x.part") as file:
        assert file.have == 0


def test_two_workers_never_write_into_one_file(tmp_path: Path) -> None:
    """One that has lost its lease may not know it yet."""
    folder = Folder(str(tmp_path))
    with partial(folder, "x.part") as first, partial(folder, "x.part") as second:
        for file, text in ((first, b"first"), (second, b"second")):
            file.next_try(most=MB)
            file.write(text)
            file.save()
        assert (first.scratch.at(0, 9), second.scratch.at(0, 9)) == (b"first", b"second")
    with partial(folder, "x.part") as third:
        assert third.have == len(b"first")


def test_a_file_that_does_not_end_is_broken_off(tmp_path: Path) -> None:
    with partial(Folder(str(tmp_path)), "x.part") as file:
        file.next_try(most=10)
        with pytest.raises(Unavailable, match="does not end"):
            file.write(b"x" * 11)


def test_a_full_disk_gets_its_room_back(tmp_path: Path) -> None:
    class Full:
        def file_bytes(self, file_id: str) -> int:
            return 9

        def download(self, file_id: str, sink: Any, check: Callable[[], None]) -> int:
            sink.write(b"abc")
            raise StorageTrouble("no space left")

    folder = Folder(str(tmp_path))
    with pytest.raises(StorageTrouble), Fetcher(cast(ProviderReads, Full()), folder, "s", nothing) as files:
        files.fetch("file-1")
    assert folder.names("downloads") == []


# -- rates ---------------------------------------------------------------------------------------------------------


def test_a_line_that_is_slow_but_fast_enough_is_never_cut() -> None:
    """However long it takes."""
    at = [0.0]
    watch = LeastRate("download", 1_000, nothing, clock=lambda: at[0])
    for _ in range(60_000):
        at[0] += 1
        watch(1_001)
    at[0] += 60
    with pytest.raises(Unavailable, match="TRANSFER_BYTES_PER_SECOND") as raised:
        watch(1)
    assert raised.value.code == "transfer_timeout"


def test_a_dripping_download_is_cut(make: Callable[..., Api], sandbox: Sandbox, tmp_path: Path) -> None:
    """Its socket is never silent for long."""
    api = make(transfer_seconds=0.5)
    file_id = api.upload(io.BytesIO(DATA), "x", nothing)
    sandbox.faults.add("drip", bytes=10, seconds=0.05)
    assert broken(api, Folder(str(tmp_path)), file_id).code == "transfer_timeout"


def test_a_slow_download_outlasts_its_time_out(make: Callable[..., Api], sandbox: Sandbox, tmp_path: Path) -> None:
    """It takes many times as long as the provider may take to answer."""
    api = make(transfer_seconds=0.3)
    file_id = api.upload(io.BytesIO(DATA[:20_000]), "x", nothing)
    sandbox.faults.add("drip", bytes=1_000, seconds=0.1)
    assert fetched(api, Folder(str(tmp_path)), file_id) == DATA[:20_000]


def test_an_upload_over_a_slow_line_outlasts_its_time_out(make: Callable[..., Api], sandbox: Sandbox) -> None:
    """What the system has taken for sending counts as sent, so this file is larger than its buffers."""
    api, data = make(transfer_seconds=2.0), bytes(24 * MB)
    sandbox.faults.add("slow_upload", bytes=4 * MB, seconds=1)
    assert sandbox.files.get(api.upload(io.BytesIO(data), "x", nothing)).bytes == len(data)


def test_an_upload_that_drips_is_cut(make: Callable[..., Api], sandbox: Sandbox) -> None:
    api, data = make(transfer_seconds=1.0, transfer_rate=4 * MB), bytes(64 * MB)
    sandbox.faults.add("slow_upload", bytes=MB, seconds=1)
    with pytest.raises(Unavailable) as raised:
        api.upload(io.BytesIO(data), "x", nothing)
    assert raised.value.code == "transfer_timeout"
