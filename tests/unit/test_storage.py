"""Files that are whole or not there, local and remote, and errors that say what to do."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import stat
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpipe.errors import BatchpipeError, InvalidInput, SettingsError, StorageTrouble
from batchpipe.storage import (
    Folder,
    Pacer,
    RepeatFinder,
    allowed,
    check_allowed,
    input_info,
    local_path,
    open_input,
    read_lines,
    temporary,
)

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
        """The file itself where it is local, else one that is gone afterwards."""
        put(folder, "x", b"data" * 1_000_000)
        with folder.local_copy("x") as path:
            assert Path(path).read_bytes() == b"data" * 1_000_000
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert folder.is_local == os.path.exists(path)

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

    def test_scratch_leaves_no_name(self, folder: Folder) -> None:
        """It is filled, read by lines and at any place, and gone."""
        with folder.scratch() as scratch:
            scratch.sink.write(b"one\ntwo\nthree")
            assert scratch.at(4, 3) == b"two"
            assert list(scratch.lines()) == [b"one\n", b"two\n", b"three"]
            assert scratch.at(8, 5) == b"three"
            assert folder.names() == []

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
        folder.append_line("log", b"x")
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
        folder = Folder(str(tmp_path))
        folder.append_line("log", b"one\n")
        with open(tmp_path / "log", "ab") as file:
            file.write(b"cut")
        folder.append_line("log", b"two")
        assert (tmp_path / "log").read_bytes() == b"one\ncut\ntwo\n"

    def test_lines_cannot_be_added_to_objects(self) -> None:
        """They would have to be written whole each time."""
        with pytest.raises(BatchpipeError, match="local files only"):
            Folder("memory://x").append_line("log", b"x")

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
        from batchpipe.storage.folder import Scratch

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


class TestReadLines:
    def test_only_newlines_end_lines(self) -> None:
        """Carriage returns and Unicode separators are data."""
        text = "a\r\nb\u2028c\u0085d\re\n\nf".encode()
        assert text.split(b"\n") == list(read_lines(io.BytesIO(text)))

    @given(st.binary(), st.integers(1, 9))
    @settings(max_examples=200)
    def test_every_byte_comes_back(self, data: bytes, limit: int) -> None:
        """With a limit in pieces, without one in lines."""
        lines = list(read_lines(io.BytesIO(data)))
        assert (data if data.endswith(b"\n") else data + b"\n") == b"".join(x + b"\n" for x in lines) or not data
        pieces = list(read_lines(io.BytesIO(data), limit))
        assert all(len(piece) <= limit for piece in pieces)
        assert data.replace(b"\n", b"") == b"".join(pieces)


def test_the_pacer_calls_now_and_then() -> None:
    """For small lines at least every 1,024, for large ones about each MB."""
    calls: list[int] = []
    pace = Pacer(lambda: calls.append(1))
    for _ in range(2049):
        pace(b"")
    assert len(calls) == 2
    pace(b"x" * (1 << 20))
    assert len(calls) == 3


class Web(http.server.SimpleHTTPRequestHandler):
    """Files, a place that is forbidden, one that breaks off, and one that has no HEAD."""

    def do_GET(self) -> None:
        if self.path == "/forbidden":
            self.send_error(403)
        elif self.path == "/broken":
            self.send_error(500)
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"short")
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if self.path.startswith("/signed"):
            self.send_error(403)
        else:
            super().do_HEAD()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    pytest.importorskip("aiohttp")
    place = tmp_path_factory.mktemp("web")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Web, directory=str(place)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", place
    server.shutdown()
    thread.join()
    server.server_close()


class TestInputs:
    def test_a_path_and_a_file_url_are_the_same(self, tmp_path: Path) -> None:
        """Percent signs of the URL are decoded."""
        path = tmp_path / "a b%.jsonl"
        path.write_bytes(b"x\ny")
        for url in (str(path), path.as_uri()):
            with open_input(url) as stream:
                assert list(stream) == [b"x\n", b"y"]
            assert (3, path.stat().st_mtime) == input_info(url)

    def test_a_missing_input_is_for_the_pipeline_to_judge(self, tmp_path: Path) -> None:
        """Another worker may have it."""
        (tmp_path / "file").touch()
        for url in (str(tmp_path / "no"), str(tmp_path / "file/below"), "memory://no/such"):
            for call in (input_info, lambda url: open_input(url).__enter__()):
                with pytest.raises(StorageTrouble, match="no such file") as caught:
                    call(url)
                assert caught.value.code == "input_missing"

    def test_a_directory_is_refused_with_a_hint(self, tmp_path: Path) -> None:
        """People do that."""
        with pytest.raises(InvalidInput, match="is a directory; give a JSONL file"), open_input(str(tmp_path)):
            pass

    def test_a_pipe_is_refused_rather_than_waited_for(self, tmp_path: Path) -> None:
        """It can be read only once, and perhaps never."""
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InvalidInput, match="not a regular file"), open_input(str(tmp_path / "pipe")):
            pass

    @as_root
    def test_an_input_without_permission_is_refused(self, tmp_path: Path) -> None:
        """Time does not repair that."""
        (tmp_path / "x").touch(mode=0o000)
        with pytest.raises(InvalidInput, match="permission denied"), open_input(str(tmp_path / "x")):
            pass

    def test_an_unknown_kind_of_url_is_refused(self) -> None:
        """It cannot become a file by waiting."""
        with pytest.raises(InvalidInput, match="no path or URL"), open_input("nosuch://x/y"):
            pass

    def test_a_missing_package_is_named(self) -> None:
        """The remedy can be copied from the message."""
        with pytest.raises(SettingsError, match=r'pip install "batchpipe\[gcs\]"'), open_input("gs://bucket/x"):
            pass

    def test_a_web_page_is_streamed(self, web: tuple[str, Path]) -> None:
        """Also where the site allows GET only, as signed URLs do."""
        url, place = web
        data = b"".join(json.dumps({"row": i}).encode() + b"\n" for i in range(200_000))
        for name in ("plain", "signed"):
            (place / name).write_bytes(data)
            with open_input(f"{url}/{name}") as stream:
                assert data == b"".join(stream)
            assert len(data) == input_info(f"{url}/{name}")[0]

    @pytest.mark.parametrize(
        ("path", "kind", "code"),
        [
            ("/nothing", StorageTrouble, "input_missing"),
            ("/forbidden", InvalidInput, "input_denied"),
            ("/broken", StorageTrouble, "storage_trouble"),
            ("/cut", StorageTrouble, "storage_trouble"),
        ],
    )
    def test_trouble_on_the_web_is_told_apart(
        self, web: tuple[str, Path], path: str, kind: type[BatchpipeError], code: str
    ) -> None:
        """Missing, forbidden, broken now, and cut short, which must not look like the end."""
        with pytest.raises(kind) as caught, open_input(web[0] + path) as stream:
            stream.read()
        assert caught.value.code == code

    def test_a_site_that_does_not_answer_is_trouble(self) -> None:
        """It may come back."""
        with pytest.raises(StorageTrouble), open_input("http://127.0.0.1:9/x"):
            pass


class TestAllowed:
    def test_no_roots_allow_everything(self) -> None:
        """That is the default."""
        assert allowed("/etc/passwd", [])

    @pytest.mark.parametrize(
        "path", ["root", "root/a", "root/new/x", "root/../root/a", "root/b/../a", "other/../root/a"]
    )
    def test_what_lies_under_a_root_is_allowed(self, tmp_path: Path, path: str) -> None:
        """Whether it exists or not, by path or URL."""
        (tmp_path / "root/b").mkdir(parents=True)
        (tmp_path / "other").mkdir()
        for url in (f"{tmp_path}/{path}", f"file://{tmp_path}/{path}"):
            assert allowed(url, ["s3://bucket", str(tmp_path / "root")])
            assert allowed(url, [f"file://{tmp_path}/root/"])

    @pytest.mark.parametrize("path", ["", "rootless", "root/../x", "root/link/x", "root/a/../../x"])
    def test_what_leads_out_is_not(self, tmp_path: Path, path: str) -> None:
        """By its name, by dots or by a link."""
        (tmp_path / "root/a").mkdir(parents=True)
        (tmp_path / "out").mkdir()
        (tmp_path / "root/link").symlink_to(tmp_path / "out")
        assert not allowed(f"{tmp_path}/{path}", [str(tmp_path / "root")])

    @pytest.mark.parametrize("url", ["s3://bucket/in", "s3://bucket/in/a.jsonl", "S3://bucket/in/b?v=1"])
    def test_urls_have_roots_too(self, url: str) -> None:
        """Compared by whole names."""
        assert allowed(url, ["/data", "s3://bucket/in/"])

    @pytest.mark.parametrize(
        "url",
        [
            "s3://bucket/input",
            "s3://bucket",
            "s3://bucket2/in/a",
            "gs://bucket/in/a",
            "s3://bucket/in/../x",
            "s3://bucket/in/%2e%2e/x",
            "s3://bucket/in/%252e%252e/x",
            "s3://bucket/in/..\\x",
            "simplecache::s3://bucket/in/a",
            "bucket/in/a",
            "https://s3@bucket/in/a",
            "file://elsewhere/in/a",
        ],
    )
    def test_urls_that_only_look_right_are_refused(self, url: str) -> None:
        """Prefixes, dots in disguise, chains, other servers."""
        assert not allowed(url, ["/data", "s3://bucket/in/"])

    def test_a_refusal_names_what_was_refused(self) -> None:
        """For programs there is a code."""
        with pytest.raises(InvalidInput, match="input: /etc/passwd") as caught:
            check_allowed("/etc/passwd", ["/data"], "input")
        assert caught.value.code == "not_allowed"


def test_a_local_path_may_look_strange() -> None:
    """Colons and percent signs belong to names; only :// makes a URL."""
    names = ["a:b", "a::b", "50%", "./x", "C:x"]
    assert names == [local_path(name) for name in names]
    assert (local_path("s3://b/x"), local_path("file:///x%20y")) == (None, "/x y")


class TestRepeatFinder:
    @given(st.lists(st.integers(0, 60), max_size=200), st.integers(1, 20))
    @settings(max_examples=200, deadline=None)
    def test_exactly_the_repeated_ids_are_suspected(self, numbers: list[int], run: int) -> None:
        """However the ids are spread over the runs."""
        with RepeatFinder(run) as finder:
            for number in numbers:
                finder.note(f"id-{number}")
            expected = {hash(f"id-{number}") for number in numbers if numbers.count(number) > 1}
            assert expected == finder.suspects(lambda: None)

    def test_many_ids_are_compared_run_by_run(self) -> None:
        """Two equal ones among 200,000, far apart."""
        with RepeatFinder(10_000) as finder:
            for number in range(200_000):
                finder.note(str(number))
            finder.note("17")
            calls: list[int] = []
            assert {hash("17")} == finder.suspects(lambda: calls.append(1))
            assert len(calls) > 10

    def test_the_same_id_over_and_over_does_not_fill_the_memory(self) -> None:
        """Each run holds it once."""
        with RepeatFinder(1000) as finder:
            for _ in range(100_000):
                finder.note("x")
            assert {hash("x")} == finder.suspects(lambda: None)


def test_a_temporary_file_has_no_name(tmp_path: Path) -> None:
    """Nothing is left of it, even if the process is killed."""
    with temporary(str(tmp_path)) as scratch:
        scratch.sink.write(b"x")
        assert list(tmp_path.iterdir()) == []


def test_a_file_url_of_another_host_is_refused() -> None:
    """It would be read from this host, at another place."""
    with pytest.raises(InvalidInput, match="another host"), open_input("file://server/share/x"):
        pass
