"""What a stranger can do through an input, a name, a folder, a request or a page: as little as possible.

One section for each way in; docs/security.md names the tests.
"""

from __future__ import annotations

import gzip
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from batchpipe.client.job import Job
from batchpipe.errors import InvalidInput, LeaseLost, StorageTrouble
from batchpipe.model.records import State
from batchpipe.pipeline.steps.prepare import validate
from batchpipe.storage import Folder, InputRules, input_info, open_input
from batchpipe.storage.addresses import is_public
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]

# -- 27: input URLs ------------------------------------------------------------------------------------------------

MB = 1 << 20


class Site(http.server.BaseHTTPRequestHandler):
    """A site that means no good."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    encodings: list[str]
    stop: threading.Event

    def do_HEAD(self) -> None:
        self.send_error(405)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.encodings.append(self.headers.get("Accept-Encoding", ""))
        name = self.path.rpartition("/")[2]
        if name in ("leave", "inside"):
            there = "/secret" if name == "leave" else "/in/plain"
            self._head(302, 0, Location=there)
            return
        if name in ("drip", "silent", "endless"):
            self._head(200, 1_000_000_000)
            self._pour(name)
            return
        packed = {"bomb": b"0" * 50 * MB, "fair": b"a fair row\n" * 1000}
        data = gzip.compress(packed[name]) if name in packed else b"a row\n"
        coding = {"Content-Encoding": "gzip"} if name in packed else {"Content-Encoding": "br"} if name == "br" else {}
        self._head(200, len(data), **coding)
        self._write(data)

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()

    def _pour(self, name: str) -> None:
        while not self.stop.wait(0.1 if name == "drip" else 60.0 if name == "silent" else 0.0):
            if not self._write(b"x" * (MB if name == "endless" else 1)):
                return

    def _write(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
        except OSError:
            return False
        return True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def site() -> Iterator[tuple[str, type[Site]]]:
    class OneSite(Site):
        asked, encodings, stop = [], [], threading.Event()

    kind = OneSite
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    kind.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def read(url: str, rules: InputRules, check: Callable[[], None] = lambda: None) -> bytes:
    with open_input(url, rules, check) as stream:
        return stream.read()


def test_a_site_that_sends_a_byte_now_and_then_is_left(site: tuple[str, type[Site]]) -> None:
    """It holds a thread of a worker for a minute, and not for ever."""
    with pytest.raises(StorageTrouble, match="too slow") as caught:
        read(f"{site[0]}/drip", InputRules(rate=1_000, window=1.0))
    assert caught.value.code == "transfer_timeout"


@pytest.mark.parametrize("page", ["drip", "silent"])
def test_a_cancel_ends_a_read_that_is_under_way(site: tuple[str, type[Site]], page: str) -> None:
    """Also while nothing comes at all."""
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 2:
            raise LeaseLost("cancelled")

    with pytest.raises(LeaseLost):
        read(f"{site[0]}/{page}", InputRules(), check)


def test_a_redirect_does_not_leave_the_roots(site: tuple[str, type[Site]]) -> None:
    """The page behind it is not even asked for; within the roots one is followed."""
    url, kind = site
    rules = InputRules(roots=(f"{url}/in",), private_addresses=True)
    assert read(f"{url}/in/inside", rules) == b"a row\n"
    for call in (read, input_info):
        with pytest.raises(InvalidInput, match="does not lie under an allowed root") as caught:
            call(f"{url}/in/leave", rules)
        assert caught.value.code == "not_allowed"
    assert "/secret" not in kind.asked
    assert read(f"{url}/in/leave", InputRules()) == b"a row\n"  # who sets no roots allows all


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "0177.0.0.1", "0", "0.0.0.0"),
        *("[::1]", "[::ffff:127.0.0.1]", "[::]"),
    ],
)
def test_under_roots_no_address_is_reached_that_is_not_public(site: tuple[str, type[Site]], host: str) -> None:
    """However it is written, and whatever a name leads to: what is connected to is what was looked at."""
    url, kind = site
    place = f"http://{host}:{url.rpartition(':')[2]}"
    for call in (read, input_info):
        with pytest.raises(InvalidInput, match=r"not public|IPv6") as caught:
            call(f"{place}/x", InputRules(roots=(place,)))
        assert caught.value.code in ("not_allowed", "input_unusable")  # fsspec takes no literal of IPv6
    assert kind.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((text, True) for text in ("8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8")),
        *((text, False) for text in ("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1")),
        *((text, False) for text in ("fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")),
        *((text, False) for text in ("224.0.0.1", "240.0.0.1", "ff02::1", "127.1", "")),
    ],
)
def test_addresses_within_addresses_are_looked_at(address: str, public: bool) -> None:
    """An IPv6 address may carry one of IPv4."""
    assert is_public(address) is public


def test_what_is_sent_compressed_grows_within_bounds(site: tuple[str, type[Site]]) -> None:
    """It is not asked for; what comes so is read up to a bound, and what cannot be read is refused."""
    url, kind = site
    with pytest.raises(InvalidInput, match="MAX_EXPANSION") as caught:
        read(f"{url}/bomb", InputRules(most_expansion=100))
    assert caught.value.code == "input_too_large"
    assert read(f"{url}/fair", InputRules(most_expansion=100)) == b"a fair row\n" * 1000
    with pytest.raises(InvalidInput, match="sent as br"):
        read(f"{url}/br", InputRules())
    assert set(kind.encodings) == {"identity"}


def test_an_input_that_does_not_end_is_refused(site: tuple[str, type[Site]], tmp_path: Path) -> None:
    """Whatever a site says of its size; a local one, too."""
    with pytest.raises(InvalidInput, match="MAX_INPUT_BYTES"):
        read(f"{site[0]}/endless", InputRules(most_bytes=10 * MB))
    with pytest.raises(InvalidInput, match="MAX_INPUT_BYTES"):
        input_info(f"{site[0]}/endless", InputRules(most_bytes=10 * MB))
    (tmp_path / "x").write_bytes(b"x" * 11)
    with pytest.raises(InvalidInput, match="MAX_INPUT_BYTES"):
        read(str(tmp_path / "x"), InputRules(most_bytes=10))


def test_a_line_is_refused_before_it_fills_the_memory(site: tuple[str, type[Site]]) -> None:
    """It is read up to its bound, and no further."""
    with pytest.raises(InvalidInput, match="MAX_LINE_BYTES"):
        validate(f"{site[0]}/endless", "/v1/x", rules=InputRules(most_line=3 * MB))


def test_a_job_is_bound_by_the_settings(site: tuple[str, type[Site]], tmp_path: Path, chat_rows: Rows) -> None:
    """They reach the worker's reads."""
    url, _ = site
    pump = Pump(tmp_path, allowed_roots=(f"{url}/in", str(tmp_path)))
    job_id = pump.submit(b"", input=f"{url}/in/leave")
    pump.run_until_idle()
    error = pump.job(job_id).error
    assert error is not None
    assert (error.code, "ALLOW_PRIVATE_ADDRESSES" in error.message) == ("not_allowed", True)


# -- 28: paths that are checked by name, then opened by name -------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A folder that is allowed, and one that is not, with a secret in it."""
    for name in ("allowed", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret\n")
    return tmp_path / "allowed", tmp_path / "outside"


def test_a_link_that_is_swapped_in_reads_nothing_outside_the_roots(places: tuple[Path, Path]) -> None:
    """However often, and at whatever moment it is swapped; as a file, and as a folder on the way."""
    inside, outside = places
    (inside / "honest").mkdir()
    for name in ("honest/secret", "mine"):
        (inside / name).write_bytes(b"mine\n")
    stop, rules = threading.Event(), InputRules(roots=(str(inside),))

    def swap() -> None:
        targets = [("link", "mine", outside / "secret"), ("folder", "honest", outside)]
        while not stop.is_set():
            for good in (True, False):
                for name, honest, evil in targets:
                    (inside / f"{name}.new").symlink_to(honest if good else evil)
                    os.replace(inside / f"{name}.new", inside / name)

    thread = threading.Thread(target=swap)
    thread.start()
    found = set()
    try:
        for _ in range(1_000):
            for name in ("link", "folder/secret"):
                try:
                    found.add(read(str(inside / name), rules))
                except (InvalidInput, StorageTrouble) as error:
                    found.add(error.code.encode())
    finally:
        stop.set()
        thread.join()
    assert b"secret\n" not in found
    assert b"mine\n" in found


def test_a_link_that_takes_the_place_of_what_was_looked_at_is_not_followed(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the very moment between the look and the opening."""
    inside, outside = places
    (inside / "x").write_bytes(b"mine\n")
    resolve = os.path.realpath

    def slow(path: Any, **how: Any) -> Any:
        real = resolve(path, **how)
        if str(path).endswith("/x") and not (inside / "x").is_symlink():
            (inside / "x").unlink()
            (inside / "x").symlink_to(outside / "secret")
        return real

    monkeypatch.setattr(os.path, "realpath", slow)
    with pytest.raises(StorageTrouble) as caught:
        read(str(inside / "x"), InputRules(roots=(str(inside),)))
    assert caught.value.code == "place_changed"
    with pytest.raises(InvalidInput, match="allowed root"):
        read(str(inside / "x"), InputRules(roots=(str(inside),)))


def test_links_within_the_roots_are_followed(places: tuple[Path, Path]) -> None:
    """People have them."""
    inside, _ = places
    (inside / "x").write_bytes(b"mine\n")
    (inside / "link").symlink_to("x")
    assert read(str(inside / "link"), InputRules(roots=(str(inside),))) == b"mine\n"


def test_a_file_takes_its_name_where_it_was_begun(places: tuple[Path, Path], tmp_path: Path) -> None:
    """The folder is swapped for a link while it is written."""
    inside, outside = places
    folder = Folder(str(inside / "out"), roots=(str(inside),))
    draft = folder.draft("output.jsonl")
    draft.write(b"paid for\n")
    (inside / "out").rename(inside / "moved")
    (inside / "out").symlink_to(outside)
    draft.commit()
    assert (inside / "moved/output.jsonl").read_bytes() == b"paid for\n"
    for call in (
        lambda: folder.draft("x"),
        lambda: folder.remove("secret"),
        lambda: folder.copy("secret", "stolen"),
        lambda: folder.child("below").make(),
        lambda: folder.reader("secret").__enter__(),
    ):
        with pytest.raises(StorageTrouble, match="allowed root"):
            call()
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_swapped_output_gets_nothing_while_a_job_runs(tmp_path: Path, chat_rows: Rows) -> None:
    """Nor does it lose anything: when the folder is back, the job ends well."""
    (data := tmp_path / "data").mkdir()
    (outside := tmp_path / "outside").mkdir()
    pump = Pump(data, allowed_roots=(str(data),), max_rows=2, api=FakeOpenAI(autofinish=True))
    job_id = pump.submit(chat_rows(4))
    out = data / job_id / "out"
    while pump.job(job_id).stage != State.RUNNING.value:
        assert pump.step() is not None
    out.rename(out.with_name("moved"))
    out.symlink_to(outside)
    for _ in range(30):
        if pump.step() is None:
            pump.advance(60)
    assert list(outside.iterdir()) == []
    out.unlink()
    out.with_name("moved").rename(out)
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.SUCCEEDED.value
    assert len(pump.outcomes(job_id)) == 4


def test_results_that_were_swapped_for_a_link_are_not_read(tmp_path: Path, chat_rows: Rows) -> None:
    """A page that offers them for download would hand out any file of the host."""
    (data := tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text('{"custom_id": "r0", "response": "secret"}\n')
    pump = Pump(data, allowed_roots=(str(data),))
    job_id = pump.submit(chat_rows(1))
    pump.run_until_idle()
    job = Job(pump.job(job_id), cast(Any, pump))
    assert len(list(job.results())) == 1
    result = data / job_id / "out/output.jsonl"
    result.unlink()
    result.symlink_to(tmp_path / "secret")
    with pytest.raises(StorageTrouble, match="allowed root"):
        list(job.results())
    with pytest.raises(StorageTrouble, match="allowed root"), job.results_folder().reader("output.jsonl"):
        pass


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(places: tuple[Path, Path]) -> None:
    """Opening one waits for a writer."""
    inside, _ = places
    os.mkfifo(inside / "output.jsonl")
    with Folder(str(inside), roots=(str(inside),)).reader("output.jsonl") as file:
        assert file.read() == b""


# -- 31: trouble that cannot pass ----------------------------------------------------------------------------------


def loop(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return str(folder / "loop")


@pytest.mark.parametrize(
    "place",
    [
        lambda folder: str(folder / ("x" * 300)),
        loop,
        lambda folder: str(folder) + "/x" * 3_000,
        lambda folder: "http://[broken/x",
        lambda folder: "nosuch://x",
        lambda folder: str(folder),
    ],
    ids=["name-too-long", "loop", "path-too-long", "broken-url", "unknown-kind", "folder"],
)
@pytest.mark.parametrize("roots", [False, True])
def test_an_input_that_can_never_be_read_fails_its_job_at_once(
    tmp_path: Path, place: Callable[[Path], str], roots: bool
) -> None:
    """In one line; nobody waits for it."""
    pump = Pump(tmp_path, allowed_roots=(str(tmp_path),) if roots else ())
    job_id = pump.submit(b"", input=place(tmp_path))
    pump.run_until_idle(60.0)
    job = pump.job(job_id)
    assert (job.stage, job.closed) == (State.FAILED.value, True)
    assert job.error is not None
    assert len(job.error.message.splitlines()) == 1


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/x", "http://127.0.0.1:9/x"])
def test_an_input_that_cannot_be_reached_is_waited_for_an_hour(tmp_path: Path, url: str) -> None:
    """Then the job fails, and `run` returns."""
    pump = Pump(tmp_path)
    job_id = pump.submit(b"", input=url)
    begun = pump.at
    pump.run_until_idle(7_200.0 + 3_600.0)
    assert pump.job(job_id).stage == State.FAILED.value
    assert pump.at - begun > 3_600


@pytest.mark.parametrize("kind", ["name-too-long", "loop", "through-a-file"])
def test_an_output_that_can_never_be_written_fails_its_job_at_once(tmp_path: Path, chat_rows: Rows, kind: str) -> None:
    """Before anything is sent."""
    (tmp_path / "file").touch()
    wrong = {"name-too-long": str(tmp_path / ("x" * 300)), "through-a-file": str(tmp_path / "file/out")}
    pump = Pump(tmp_path)
    output = wrong.get(kind) or loop(tmp_path)
    job_id = pump.submit(chat_rows(1), output=output, workspace=str(tmp_path / "work"), owns=["x"])
    pump.run_until_idle(60.0)
    assert pump.job(job_id).stage == State.FAILED.value
    assert pump.api.calls == [] or "create" not in str(pump.api.calls)


def test_paid_rows_of_an_output_that_became_unwritable_go_to_the_workspace(tmp_path: Path, chat_rows: Rows) -> None:
    """The record says where, and the job ends."""
    pump = Pump(tmp_path)
    work = tmp_path / "work"
    job_id = pump.submit(chat_rows(3), workspace=str(work))
    out = tmp_path / job_id / "out"
    while pump.job(job_id).stage != State.FINALIZING.value:
        if pump.step() is None:
            pump.advance(1.0)
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    out.touch()
    pump.run_until_idle(7_200.0)
    job = pump.job(job_id)
    assert (job.stage, job.closed, job.results) == (State.SUCCEEDED.value, True, str(work / "results"))
    assert len(pump.outcomes(job_id)) == 3
