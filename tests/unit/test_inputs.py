"""Inputs, local and on the web: how they are read, what is refused, and where they may lie."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchpipe.errors import BatchpipeError, InvalidInput, SettingsError, StorageTrouble
from batchpipe.storage import (
    allowed,
    check_allowed,
    input_info,
    local_path,
    open_input,
)

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


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
            ("/broken", StorageTrouble, "input_unreachable"),
            ("/cut", StorageTrouble, "input_unreachable"),
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


def test_a_file_url_of_another_host_is_refused() -> None:
    """It would be read from this host, at another place."""
    with pytest.raises(InvalidInput, match="another host"), open_input("file://server/share/x"):
        pass
