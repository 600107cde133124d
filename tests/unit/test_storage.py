"""Files that are whole or not there, local and remote, and errors that say what to do."""

from __future__ import annotations

import os
import stat
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from batchpipe.errors import InvalidInput, StorageTrouble
from batchpipe.storage import (
    Folder,
    LineFile,
    input_info,
    temporary,
)
from batchpipe.storage.local import hold_lock

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


class ObjectStoreFile(AbstractBufferedFile):  # type: ignore[misc]
    """Like those of S3: appears when it is closed."""

    buffer: Any

    def _upload_chunk(self, final: bool = False) -> bool:
        if final:
            self.fs.objects[self.path] = self.buffer.getvalue()
        return final

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.objects[self.path][start:end])

    def discard(self) -> None:
        self.buffer = None


class ObjectStore(AbstractFileSystem):  # type: ignore[misc]
    """A small S3: objects without folders."""

    protocol = "s3"
    objects: ClassVar[dict[str, bytes]] = {}

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> Any:
        if mode == "rb" and path not in self.objects:
            raise FileNotFoundError(path)
        return ObjectStoreFile(self, path, mode, block_size=block_size or 1 << 20, **kwargs)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if path.startswith("denied"):
            raise PermissionError("Access Denied")
        if path in self.objects:
            return {"name": path, "size": len(self.objects[path]), "type": "file"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        names = [name for name in self.objects if name.startswith(path.rstrip("/") + "/")]
        return [self.info(name) for name in names] if detail else names

    def _rm(self, path: str) -> None:
        del self.objects[path]


@pytest.fixture
def bucket() -> Iterator[str]:
    fsspec.register_implementation("s3", ObjectStore, clobber=True)
    ObjectStore.objects.clear()
    yield "s3://bucket/jobs"
    ObjectStore.objects.clear()
    sys.modules["fsspec.registry"]._registry.pop("s3")


@pytest.fixture(params=["local", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    place = {
        "local": str(tmp_path / "work"),
        "file": (tmp_path / "with blank").as_uri(),
        "memory": f"memory://{uuid.uuid4().hex}",
    }
    return Folder(place[request.param], private=True)


def put(folder: Folder, name: str, data: bytes) -> None:
    with folder.writer(name) as file:
        file.write(data)


def get(folder: Folder, name: str) -> bytes:
    with folder.reader(name) as file:
        return file.read()


class TestFolder:
    def test_what_was_written_is_read(self, folder: Folder) -> None:
        """In folders that are made on the way."""
        put(folder, "a/b.txt", b"one\ntwo")
        assert get(folder, "a/b.txt") == b"one\ntwo"
        assert (folder.exists("a/b.txt"), folder.size("a/b.txt")) == (True, 7)
        assert (folder.names(), folder.names("a")) == (["a"], ["b.txt"])
        assert get(folder.child("a"), "b.txt") == b"one\ntwo"

    def test_a_file_appears_when_it_is_complete(self, folder: Folder) -> None:
        """Until then the old one is there."""
        put(folder, "x", b"old")
        with folder.writer("x") as file:
            file.write(b"new")
            assert get(folder, "x") == b"old"
        assert get(folder, "x") == b"new"
        assert folder.names() == ["x"]

    def test_a_writer_that_fails_leaves_nothing(self, folder: Folder) -> None:
        """Neither the file nor what was written of it."""

        def fail() -> None:
            with folder.writer("x") as file:
                file.write(b"half")
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert (folder.names(), folder.exists("x")) == ([], False)

    def test_a_reader_can_go_to_any_place(self, folder: Folder) -> None:
        """And two readers of one file do not disturb each other."""
        put(folder, "x", b"0123456789\n" * 100_000)
        with folder.reader("x") as one, folder.reader("x") as other:
            one.seek(11 * 99_999)
            assert (one.readline(), other.read(5)) == (b"0123456789\n", b"01234")
            assert (one.tell(), other.tell()) == (11 * 100_000, 5)
            one.seek(3)
            assert (one.read(3), other.read(3)) == (b"345", b"567")

    def test_removing_is_thorough_and_forgiving(self, folder: Folder) -> None:
        """Whole folders go, and what is not there is no error."""
        put(folder, "a/b", b"x")
        put(folder, "a/c/d", b"x")
        put(folder, "e", b"x")
        for name in ("a", "e", "e", "nothing/at/all"):
            folder.remove(name)
        assert (folder.names(), folder.names("nothing")) == ([], [])

    def test_a_missing_file_is_trouble_with_a_code(self, folder: Folder) -> None:
        """The message names the place."""
        for call in (lambda: get(folder, "no"), lambda: folder.size("no")):
            with pytest.raises(StorageTrouble, match=r"no: no such file") as caught:
                call()
            assert caught.value.code == "file_missing"

    def test_a_name_cannot_lead_out(self, folder: Folder) -> None:
        """Names come from records, and records from Redis."""
        for name in ("../x", "a/../../x", "/etc/passwd"):
            with pytest.raises(ValueError, match="not a name"):
                folder.path(name)

    def test_a_local_copy_has_the_content(self, folder: Folder) -> None:
        """The file itself where it is local, else one without a name: a process that is killed leaves nothing."""
        put(folder, "x", b"data" * 1_000_000)
        with folder.local_handle("x") as handle:
            assert handle.read() == b"data" * 1_000_000
            handle.seek(4)
            assert handle.read(4) == b"data"
            assert folder.is_local == (os.fstat(handle.fileno()).st_nlink == 1)

    def test_a_draft_can_pause_where_the_storage_can_continue(self, folder: Folder) -> None:
        """What was written stays, and the next write goes on behind it."""
        draft = folder.draft("x")
        draft.write(b"one ")
        assert folder.is_local == draft.pause()
        draft.write(b"two")
        draft.pause()
        draft.commit()
        assert get(folder, "x") == b"one two"
        draft.discard()
        assert folder.exists("x")

    def test_scratch_leaves_no_name(self, tmp_path: Path) -> None:
        """It is filled, read by lines and at any place, and gone."""
        with temporary(str(tmp_path)) as scratch:
            scratch.sink.write(b"one\ntwo\nthree")
            assert scratch.at(4, 3) == b"two"
            assert list(scratch.lines()) == [b"one\n", b"two\n", b"three"]
            assert scratch.at(8, 5) == b"three"
            assert list(tmp_path.iterdir()) == []

    def test_leftovers_of_killed_writers_can_be_removed(self, folder: Folder) -> None:
        """Those of other names stay."""
        put(folder, "sub/.x.1-aa.part", b"half")
        put(folder, "sub/.y.1-aa.part", b"half")
        folder.remove_drafts("sub/x")
        assert folder.names("sub") == [".y.1-aa.part"]

    def test_a_folder_that_can_be_written_to_passes(self, folder: Folder) -> None:
        """And nothing is left of the trial."""
        folder.check_writable("output.jsonl")
        assert folder.names() == []


class TestLocalFolder:
    def test_private_files_are_for_their_owner(self, tmp_path: Path) -> None:
        """0700 for each folder that is made, 0600 for files, whatever the umask would allow."""
        folder = Folder(str(tmp_path / "a/b"), private=True)
        put(folder, "c/d", b"x")
        LineFile(tmp_path / "a/b/log").append(b"x")
        modes = [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("a", "a/b", "a/b/c", "a/b/c/d", "a/b/log")]
        assert modes == [0o700, 0o700, 0o700, 0o600, 0o600]

    def test_an_output_has_the_usual_modes(self, tmp_path: Path) -> None:
        """Its owner set the umask for that."""
        umask = os.umask(0o022)
        try:
            put(Folder(str(tmp_path / "out")), "x", b"x")
        finally:
            os.umask(umask)
        assert stat.S_IMODE((tmp_path / "out/x").stat().st_mode) == 0o644

    def test_a_long_name_is_no_trouble(self, tmp_path: Path) -> None:
        """The draft's name is longer than the file's, and has to fit too."""
        put(Folder(str(tmp_path)), "x" * 255, b"x")
        assert (tmp_path / ("x" * 255)).exists()

    def test_a_link_is_removed_and_not_what_it_leads_to(self, tmp_path: Path) -> None:
        """A folder that somebody linked in stays whole."""
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/x").touch()
        (tmp_path / "work").mkdir()
        (tmp_path / "work/link").symlink_to(tmp_path / "precious")
        Folder(str(tmp_path / "work")).remove("link")
        assert (tmp_path / "precious/x").exists()
        assert not (tmp_path / "work/link").is_symlink()

    def test_lines_are_added_each_by_itself(self, tmp_path: Path) -> None:
        """A line that a crash cut short does not swallow the next."""
        lines = LineFile(tmp_path / "log")
        lines.append(b"one\n")
        with open(tmp_path / "log", "ab") as file:
            file.write(b"cut")
        lines.append(b"two")
        assert (tmp_path / "log").read_bytes() == b"one\ncut\ntwo\n"

    def test_lines_are_added_while_another_waits_for_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else each of many threads would wait for the disk alone, one after the other."""
        lines, synced = LineFile(tmp_path / "log"), list[bytes]()

        def sync(handle: int) -> None:
            synced.append((tmp_path / "log").read_bytes())
            if len(synced) == 1:
                lines.append(b"two")

        monkeypatch.setattr(os, "fsync", sync)
        lines.append(b"one")
        assert synced == [b"one\n", b"one\ntwo\n"]

    def test_a_line_that_the_disk_has_no_room_for_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The system writes what fits, and says how much."""
        monkeypatch.setattr(os, "write", lambda handle, text: len(text) - 1)
        with pytest.raises(StorageTrouble, match="no space left"):
            LineFile(tmp_path / "log").append(b"one")

    def test_a_full_disk_is_trouble_that_passes(self, tmp_path: Path) -> None:
        """The message names the file and the reason."""
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        draft = Folder(str(tmp_path)).draft("x")
        draft.file.close()
        draft.file = open("/dev/full", "wb")  # noqa: SIM115
        draft.write(b"x")
        with pytest.raises(StorageTrouble, match="x: no space left on device"):
            draft.commit()
        assert not (tmp_path / "x").exists()

    def test_a_scratch_that_does_not_fit_is_our_trouble(self, tmp_path: Path) -> None:
        """Whoever fills it must not take it for a fault of the provider."""
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        from batchpipe.storage.scratch import Scratch

        with open("/dev/full", "wb", buffering=0) as full:
            scratch = Scratch(full, "here")
            with pytest.raises(StorageTrouble, match="here: no space left"):
                scratch.sink.write(b"x")

    def test_an_output_below_a_file_is_the_users_mistake(self, tmp_path: Path) -> None:
        """Time does not repair that."""
        (tmp_path / "file").touch()
        for place in ("file", "file/below"):
            with pytest.raises(InvalidInput, match="output: ") as caught:
                Folder(str(tmp_path / place)).check_writable()
            assert (caught.value.code, caught.value.field) == ("output_unwritable", "output")

    def test_threads_that_make_the_same_folders_are_not_in_each_others_way(self, tmp_path: Path) -> None:
        """The first requests of a web server that has just been set up."""
        for number in range(20):
            place = str(tmp_path / str(number) / "jobs" / "job" / ".batchpipe")
            start = threading.Barrier(8)

            def make(name: int, place: str = place, start: threading.Barrier = start) -> None:
                start.wait()
                Folder(f"{place}/{name}", private=True).make()

            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(make, range(8))) == [None] * 8

    def test_a_folder_in_the_place_of_an_output_file_is_a_mistake_too(self, tmp_path: Path) -> None:
        """It is told before anything is sent."""
        (tmp_path / "output.jsonl").mkdir()
        with pytest.raises(InvalidInput, match="is a directory"):
            Folder(str(tmp_path)).check_writable("output.jsonl")

    @as_root
    def test_a_read_only_output_is_a_mistake(self, tmp_path: Path) -> None:
        """Permissions are for a person to change."""
        (tmp_path / "out").mkdir(mode=0o500)
        with pytest.raises(InvalidInput, match="permission denied"):
            Folder(str(tmp_path / "out")).check_writable()


class TestObjectStore:
    def test_an_object_appears_on_close(self, bucket: str) -> None:
        """Written in place: renaming would copy it."""
        folder = Folder(bucket)
        folder.make()
        put(folder, "a/x", b"data" * 10)
        assert (get(folder, "a/x"), folder.names("a")) == (b"data" * 10, ["x"])
        assert list(ObjectStore.objects) == ["bucket/jobs/a/x"]

    def test_a_discarded_object_never_appears(self, bucket: str) -> None:
        """Not even when the half-written file is thrown away by Python."""
        folder = Folder(bucket)

        def fail() -> None:
            with folder.writer("x") as file:
                file.write(b"half" * 10)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        draft = folder.draft("y")
        draft.write(b"half")
        draft.discard()
        del draft
        assert ObjectStore.objects == {}

    def test_an_input_that_may_not_be_read_is_a_mistake(self, bucket: str) -> None:
        """It is not tried again."""
        with pytest.raises(InvalidInput, match="may not be read"):
            input_info("s3://denied/x")


def test_a_temporary_file_has_no_name(tmp_path: Path) -> None:
    """Nothing is left of it, even if the process is killed."""
    with temporary(str(tmp_path)) as scratch:
        scratch.sink.write(b"x")
        assert list(tmp_path.iterdir()) == []


def test_a_file_is_safe_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder after that. An empty one has only its name to lose, and that is in the folder."""
    synced, fsync = list[str](), os.fsync

    def noted(handle: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    folder = Folder(str(tmp_path / "out"))
    for name, text in (("full", b"row"), ("empty", b"")):
        with folder.writer(name) as file:
            file.write(text)
    assert [name.split(".")[1] if name.startswith(".") else name for name in synced] == ["full", "out", "out"]
    assert (tmp_path / "out" / "empty").read_bytes() == b""


def test_a_line_is_safe_on_disk_before_its_writer_goes_on_and_others_do_not_wait_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is free while the line is synced, so that one sync serves many."""
    lines, synced = LineFile(tmp_path / "list"), list[tuple[bool, bytes]]()

    def noted(handle: int) -> None:
        with hold_lock(tmp_path / ".list.lock") as free:
            synced.append((free, os.pread(handle, 100, 0)))

    monkeypatch.setattr(os, "fsync", noted)
    lines.append(b"one")
    assert synced == [(True, b"one\n")]
