"""The example of a Django site, started by its one command and used like a person uses it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path

import psutil
import pytest

from tests.acceptance.user_machine import request_lines, until
from tests.browser import open_browser, text_of
from tests.redis_server import RedisServer, free_port

EXAMPLE = Path(__file__).parents[2] / "examples" / "django_site"
JOBS = "/admin/batchpipe/job/"

pytestmark = pytest.mark.slow


class Shop:
    """The running example."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "log"
        ours = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.environment = {**ours, "HOME": str(folder)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, EXAMPLE / "start.py", "--port", self.url.rpartition(":")[2], "--data", folder],
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=folder,
            )

    def is_open(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "The catalogue is at" in self.log.read_text() and " ready." in self.log.read_text() and self._answers()

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(self.url, timeout=5).status == 200)
        except OSError:
            return False

    def processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def worker(self) -> psutil.Process:
        [found] = [process for process in self.processes() if "worker" in process.cmdline()]
        return found


class Browser:
    """A client that keeps cookies and fills in forms, and no more."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(self, path: str) -> str:
        return self._read(urllib.request.Request(self.url + path))

    def submit(self, path: str, *, page: str = "/", **fields: str) -> str:
        """Send a form that stands on a page, with the token that stands in it."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(page))
        assert token is not None, f"no form on {page}"
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": token[1], **fields}).encode()
        return self._read(urllib.request.Request(self.url + path, data, {"Referer": self.url + page}))

    def status(self, path: str, data: bytes | None = None) -> int:
        try:
            with self._opener.open(urllib.request.Request(self.url + path, data), timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def _read(self, request: urllib.request.Request) -> str:
        with self._opener.open(request, timeout=30) as answer:
            return str(answer.read().decode())

    def log_in(self) -> None:
        form = "/admin/login/?next=/"
        assert "Describe all" in self.submit(form, page=form, username="admin", password="admin")

    def described(self) -> int:
        return int(_found(r'id="described">(\d+)<', self.get("/")))


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    running = Shop(tmp_path_factory.mktemp("shop"))
    try:
        until(running.is_open, 60, "the example is open")
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
            running.process.wait(60)


def test_products_get_their_descriptions(shop: Shop) -> None:
    """A click submits from the database, the site's own worker runs the job, a receiver writes the answers back."""
    browser = Browser(shop.url)
    assert browser.status("/describe/", b"") == 403  # no token
    assert "Log in</a> to have them described" in browser.get("/")
    browser.log_in()
    assert browser.described() == 0
    page = browser.submit("/describe/")
    job = _found(r"(job_\w+)</a>", page)
    assert json.loads(browser.get(f"/batchpipe/{job}/"))["tags"] == {"user": 1}

    until(lambda: browser.described() == 20, what="all products are described")

    view = json.loads(browser.get(f"/batchpipe/{job}/"))
    assert (view["state"], view["rows"]["ok"]) == ("succeeded", 20)
    assert "Every product has its description" in browser.submit("/describe/")
    assert [one["id"] for one in json.loads(browser.get("/batchpipe/"))["jobs"]] == [job]
    assert Browser(shop.url).status(f"/batchpipe/{job}/") == 401
    lines = browser.get(f"{JOBS}{job}/output.jsonl").splitlines()
    assert {json.loads(line)["custom_id"] for line in lines} == {f"product-{number}" for number in range(1, 21)}
    # connections that a receiver has used do not stay behind to grow old
    until(lambda: not [file for file in shop.worker().open_files() if "db.sqlite3" in file.path])


def test_a_person_watches_a_job_in_a_real_browser(shop: Shop) -> None:
    """The bar moves, the admin shows the same job, and cancelling it keeps what is finished."""
    from selenium.webdriver.common.by import By

    shots = os.environ.get("SHOTS")
    with open_browser(1300, 900) as browser:

        def see(path: str, name: str = "") -> str:
            if path:
                browser.get(shop.url + path)
            if shots and name:
                browser.save_screenshot(f"{shots}/django-{name}.png")
            return text_of(browser)

        def shows(text: str, name: str = "") -> None:
            """The page that a click leads to is not there at once."""
            until(lambda: text in see("", name), what=f"the page shows {text!r}")

        def click(text: str) -> None:
            browser.find_element(By.XPATH, f"//button[normalize-space()='{text}']").click()

        see("/admin/login/?next=/")
        browser.find_element(By.NAME, "username").send_keys("admin")
        browser.find_element(By.NAME, "password").send_keys("admin")
        browser.find_element(By.CSS_SELECTOR, "input[type=submit]").click()
        shows("products have a description.")
        if "Forget all" in see("/"):
            click("Forget all")
        shows("0 of 20 products have a description.", "example-before")
        click("Describe all")
        until(lambda: "rows answered" in see("/", "example-running"), what="the provider counts")
        text = see(JOBS, "admin-list-running")
        assert "product descriptions" in text
        assert "running" in text
        browser.find_element(By.CSS_SELECTOR, "#result_list tbody a").click()
        shows("of 20 rows answered", "admin-job-running")
        click("Cancel this job")
        shows("Rows that are finished by then are kept, and paid for.", "admin-cancel")
        click("Yes, cancel")
        shows("is being cancelled; rows that are finished are kept", "admin-cancelled")
        address = browser.current_url.removeprefix(shop.url)
        until(lambda: "output.jsonl" in see(address), what="the job has landed")
        text = see("", "admin-job")
        assert "State cancelled" in text
        assert re.search(r"Rows 20: \d+ ok, \d+ failed, \d+ missing", text)
        click("Retry failed rows")
        shows("retries the failed rows", "admin-retried")
        see(JOBS, "admin-list")
        until(lambda: "20 of 20 products" in see("/", "example-done"), what="the rest is described, too")


def test_ctrl_c_ends_all_of_it(shop: Shop) -> None:
    processes = shop.processes()
    assert len(processes) >= 3
    shop.process.send_signal(signal.SIGINT)

    assert shop.process.wait(60) == 0
    _, alive = psutil.wait_procs(processes, 20)
    assert alive == []
    assert "Traceback" not in shop.log.read_text()


def test_manage_py_runs_a_job_in_the_foreground(tmp_path: Path, redis_server: RedisServer) -> None:
    """Its worker is a `manage.py batchpipe worker`: the site's own app, in a process of its own."""
    ours = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    ours |= {"HOME": str(tmp_path), "CATALOGUE_DATA": str(tmp_path), "REDIS_URL": redis_server.database()}
    ours |= {"BATCHPIPE_HOME": str(tmp_path / "home"), "BATCHPIPE_POLL_MIN_SECONDS": "0.2"}
    (tmp_path / "in.jsonl").write_bytes(request_lines(3))
    command = [str(EXAMPLE / "manage.py"), "batchpipe", "run", "in.jsonl", "-o", "out", "--sandbox", "--json"]
    done = subprocess.run(
        [sys.executable, *command, "--settings", "proj.settings"],
        env=ours,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    assert (view["state"], view["rows"]["ok"]) == ("succeeded", 3)
    [log] = (tmp_path / "home" / "logs").glob("*.log")
    assert "app:         proj" in log.read_text()
