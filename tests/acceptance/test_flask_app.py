"""Flask: the example as a visitor meets it, in a browser and with a worker; and ``flask batchpipe`` in an app."""

from __future__ import annotations

import csv
import io
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from selenium.webdriver.common.by import By

from tests.acceptance.user_machine import Machine, Process, until
from tests.browser import open_browser

EXAMPLE = Path(__file__).parents[2] / "examples" / "flask_app"
REVIEWS = EXAMPLE / "static" / "reviews.csv"
TABLE = 'product,review\nLamp,<b>Bright</b> & good\n=1+1,Formula\nMug,"Two\nlines"\n'


class Example:
    """The example, started with its one command."""

    def __init__(self, machine: Machine) -> None:
        self.process: Process = machine.start_python(EXAMPLE / "start.py", "--port", "0", "--rows-per-second", "4")
        until(lambda: "Ready" in self.process.out or not self.process.running, what="the example is ready")
        found = re.search(r"http://\S+/", self.process.out)
        assert found, self.process.err
        self.url = found[0]
        self.children = self.process.children()

    def stop(self) -> None:
        if self.process.running:
            self.process.interrupt()
            self.process.finish()

    def visitor(self) -> Visitor:
        return Visitor(self.url)


class Visitor:
    """A browser-like client: it keeps cookies, and sends forms with their token."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, follow_redirects=True, timeout=20)

    def token(self) -> str:
        found = re.search(r'name="token" value="(\w+)"', self.http.get("/").text)
        assert found
        return found[1]

    def send(
        self, table: bytes, *, name: str = "reviews.csv", question: str = "mood", token: str | None = None
    ) -> httpx2.Response:
        data = {"token": self.token() if token is None else token, "question": question}
        return self.http.post("/", data=data, files={"table": (name, table, "text/csv")})

    def ask(self, table: bytes, *, name: str = "reviews.csv") -> str:
        """Send a table; answers the job's id, which the page's address ends with."""
        answer = self.send(table, name=name)
        assert answer.status_code == 200, answer.text
        return str(answer.url).rpartition("/")[2]

    def state(self, job: str) -> str:
        return str(self.http.get(f"/batchpipe/{job}/").json()["state"])

    def wait(self, job: str, state: str) -> None:
        until(lambda: self.state(job) == state, what=f"the job is {state}")


@pytest.fixture(scope="module")
def example(new_machine: Callable[..., Machine]) -> Iterator[Example]:
    made = Example(new_machine("flask"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def asked(example: Example) -> tuple[Visitor, str]:
    """A visitor with a job that has ended."""
    visitor = example.visitor()
    job = visitor.ask(TABLE.encode(), name="<script>alert(1)</script>.csv")
    visitor.wait(job, "succeeded")
    return visitor, job


def test_a_table_is_sent_and_its_job_watched_in_a_browser(example: Example) -> None:
    """The bar moves while the job runs, and the answers come without a click."""
    with open_browser() as browser:
        browser.get(example.url)
        browser.find_element(By.ID, "table").send_keys(str(REVIEWS))
        browser.find_element(By.CSS_SELECTOR, "input[value=reply]").click()
        browser.find_element(By.CSS_SELECTOR, "main button").click()
        shown: set[str] = set()

        def ended() -> bool:
            shown.add(browser.execute_script("return document.getElementById('rows')?.textContent ?? ''"))
            return bool(browser.execute_script("return document.querySelector('.downloads') !== null"))

        until(ended, what="the page shows the downloads")
        assert any(re.fullmatch(r"([1-9]|1[0-5]) of 16 rows answered", text) for text in shown), shown
        assert browser.find_element(By.ID, "state").text == "succeeded"
        assert "reviews.csv: What would a good answer be?" in browser.title
        rows = browser.find_elements(By.CSS_SELECTOR, "tbody tr")
        assert len(rows) == 16
        assert rows[0].text.startswith("Kettle Aurora Boils in two minutes")
        browser.get(example.url)
        assert browser.find_element(By.CSS_SELECTOR, ".jobs").text.endswith("succeeded")
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_what_a_visitor_wrote_is_shown_as_text(asked: tuple[Visitor, str]) -> None:
    """Names of files and reviews are no markup."""
    visitor, job = asked
    pages = visitor.http.get("/").text + visitor.http.get(f"/reviews/{job}").text

    assert "&lt;script&gt;alert(1)" in pages
    assert "&lt;b&gt;Bright&lt;/b&gt; &amp; good" in pages
    assert "<script>alert" not in pages
    assert "<b>Bright" not in pages


def test_answers_are_downloaded_beside_what_was_asked(asked: tuple[Visitor, str]) -> None:
    """In the order of the table; no cell of the CSV is run by a spreadsheet."""
    visitor, job = asked
    table = list(csv.DictReader(io.StringIO(visitor.http.get(f"/reviews/{job}/answers.csv").text, newline="")))
    lines = [json.loads(line) for line in visitor.http.get(f"/reviews/{job}/answers.jsonl").text.splitlines()]

    assert [row["product"] for row in table] == ["Lamp", "'=1+1", "Mug"]
    assert [row["product"] for row in lines] == ["Lamp", "=1+1", "Mug"]
    assert table[2]["review"] == "Two\nlines"
    assert all(row["state"] == "ok" and row["answer"] for row in lines)
    assert visitor.http.get(f"/reviews/{job}/answers.exe").status_code == 404


def test_nobody_sees_the_job_of_another(example: Example, asked: tuple[Visitor, str]) -> None:
    """Neither its pages nor its answers nor its status, and nobody else can cancel it."""
    _, job = asked
    stranger = example.visitor()
    token = stranger.token()

    for path in (f"/reviews/{job}", f"/reviews/{job}/answers.csv", "/reviews/job_unknown"):
        assert stranger.http.get(path).status_code == 404
    assert stranger.http.post(f"/reviews/{job}/cancel", data={"token": token}).status_code == 404
    assert stranger.http.get(f"/batchpipe/{job}/").json()["error"]["code"] == "forbidden"
    assert stranger.http.get("/batchpipe/").json() == {"jobs": []}
    assert "reviews.csv" not in stranger.http.get("/").text.partition("<form")[0]


def test_a_form_from_elsewhere_is_refused(example: Example) -> None:
    """Another site can send a form with the visitor's cookie, but cannot know its token."""
    visitor = example.visitor()
    visitor.token()

    assert visitor.send(TABLE.encode(), token="made-up").status_code == 400
    assert visitor.send(TABLE.encode(), token="").status_code == 400


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (b"", "Choose a CSV file first."),
        (b"product,text\na,b\n", "product and review. No review in: product, text."),
        (b"product,review\n", "The table has no rows."),
        (b"product,review\na,b\nc,\n", "Line 3: the review is empty."),
        (b"product,review\na,caf\xe9\n", "Line 2 is not UTF-8"),
        (b'product,review\na,"open\n', "After line 1: unexpected end of data."),
        (b"product,review\n" + b"x" * 6_000_000, "larger than 5 MB"),
    ],
    ids=["none", "columns", "empty", "review", "encoding", "quote", "size"],
)
def test_a_table_that_does_not_fit_is_explained(example: Example, table: bytes, says: str) -> None:
    """In the page, in words for the person who sent it; nothing is submitted."""
    visitor = example.visitor()
    answer = visitor.send(table, name="reviews.csv" if table else "")

    assert answer.status_code in (413, 422)
    assert says in answer.text
    assert visitor.http.get("/batchpipe/").json() == {"jobs": []}


def test_a_cancelled_job_keeps_what_was_answered(example: Example) -> None:
    """The button of the page ends it, and the page says where it ended."""
    visitor = example.visitor()
    job = visitor.ask(b"product,review\n" + b"Lamp,Good\n" * 600)
    until(lambda: visitor.http.get(f"/batchpipe/{job}/").json()["shards"], what="the batch is planned")
    visitor.http.post(f"/reviews/{job}/cancel", data={"token": visitor.token()})
    visitor.wait(job, "cancelled")

    page = visitor.http.get(f"/reviews/{job}").text
    assert re.search(r"\d+ of 600 rows answered", page)
    assert "Download CSV" in page


def test_ctrl_c_ends_all_of_it(example: Example) -> None:
    """Web server, worker and Redis; and the port is free again."""
    example.process.interrupt()

    assert example.process.finish().code == 0
    until(lambda: not any(child.is_running() for child in example.children), what="its processes have ended")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", urlsplit(example.url).port or 0)) != 0


# -- flask batchpipe -----------------------------------------------------------------------------------------------

#: What a team has: an application factory, with the Celery app that Flask's documentation shows, made after ours.
SITE = """
import os
from celery import Celery, Task
from flask import Flask, current_app
from batchpipe.contrib.flask import BatchPipe, job_cancelled, job_failed, job_partial, job_succeeded

def create_app():
    app = Flask("shop")
    app.config["BATCHPIPE_REDIS_URL"] = app.config["BROKER"] = os.environ.pop("BATCHPIPE_REDIS_URL")
    BatchPipe(app)
    celery_init_app(app)
    return app

def celery_init_app(app):
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)
    celery_app = Celery(app.name, task_cls=FlaskTask, broker=app.config["BROKER"])
    celery_app.conf.broker_connection_retry_on_startup = True
    celery_app.set_default()
    app.extensions["celery"] = celery_app

@job_succeeded.connect
@job_partial.connect
@job_failed.connect
@job_cancelled.connect
def told(app, job):
    with open("told", "a") as file:
        file.write(f"{app.name} {current_app.name} {job.id} {job.state}\\n")
"""
MAKE_CELERY = "from shop import create_app\ncelery_app = create_app().extensions['celery']\n"


@pytest.fixture(scope="module")
def shop(new_machine: Callable[..., Machine]) -> Machine:
    """A site with its own worker, started as Flask's documentation says."""
    machine = new_machine("shop")
    machine.write("shop.py", SITE.encode())
    machine.write("make_celery.py", MAKE_CELERY.encode())
    worker = ("-m", "celery", "-A", "make_celery", "worker", "--pool", "threads", "--concurrency", "4")
    machine.await_ready(machine.start_python(*worker, "--loglevel", "INFO"))
    return machine


def flask(machine: Machine, *arguments: str | Path) -> Process:
    return machine.start_python("-m", "flask", "--app", "shop", "batchpipe", *arguments)


def observed(machine: Machine) -> str:
    file = machine.folder / "told"
    return file.read_text() if file.exists() else ""


def test_the_sites_worker_runs_what_the_flask_command_submits(shop: Machine) -> None:
    """And its signal comes with the context of the app."""
    job = flask(shop, "submit", shop.input(rows=6), "-o", shop.folder / "out").finish().out.strip()

    assert flask(shop, "wait", job, "--timeout", "40").finish().code == 0
    until(lambda: observed(shop), what="the signal is received")
    assert f"shop shop {job} succeeded" in observed(shop)
    assert set(shop.billed(job).values()) == {1}


def test_a_run_in_a_flask_app_brings_a_worker_of_that_app(shop: Machine) -> None:
    """It finds the app again, and its signals are sent, too; the exit code is that of ``batchpipe run``."""
    done = flask(shop, "run", shop.input(rows=3, name="run.jsonl"), "-o", shop.folder / "run-out").finish()

    assert done.code == 0, done.err
    [log] = (shop.home / "logs").glob("*.log")
    assert re.search(r"app: +shop:", log.read_text())
    assert re.search(r"job (\S+) succeeded", done.err)[1] in observed(shop)  # type: ignore[index]


@pytest.mark.slow
def test_a_plain_worker_leaves_telling_to_one_that_has_loaded_the_app(new_machine: Callable[..., Machine]) -> None:
    """It ends the job and says so; no signal is lost for it."""
    machine = new_machine("plain")
    machine.write("shop.py", SITE.encode())
    machine.write("make_celery.py", MAKE_CELERY.encode())
    plain = machine.worker()
    job = flask(machine, "submit", machine.input(rows=2), "-o", machine.folder / "out").finish().out.strip()
    until(lambda: "receivers not notified yet" in machine.run("status", job).out, what="a try is noted")
    assert machine.json("status", job)["state"] == "succeeded"
    plain.popen.terminate()
    assert plain.finish().code == 0
    assert (plain.err + plain.out).count("WARNING batchpipe.tasks.notifying: ") == 1
    machine.start_python("-m", "celery", "-A", "make_celery", "worker", "--pool", "threads")

    until(lambda: observed(machine), what="the signal is received")
    assert observed(machine) == f"shop shop {job} succeeded\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("status", "job_unknown"), 1, "Error: no job job_unknown is known here"),
        (("status",), 2, "flask batchpipe status [OPTIONS] JOB"),
        (("nonsense",), 2, "No such command 'nonsense'"),
    ],
)
def test_errors_of_the_flask_command_are_those_of_batchpipe(
    shop: Machine, arguments: tuple[str, ...], code: int, says: str
) -> None:
    """The same exit codes, no traceback."""
    done = flask(shop, *arguments).finish()

    assert done.code == code
    assert says in done.err
    assert "Traceback" not in done.err


def test_a_wrong_setting_is_one_line_of_the_flask_command(shop: Machine) -> None:
    """Not a traceback through the application factory."""
    shop.write("wrong.py", SITE.replace('BATCHPIPE_REDIS_URL"] =', 'BATCHPIPE_REDSI_URL"] =').encode())
    done = shop.start_python("-m", "flask", "--app", "wrong", "batchpipe", "list").finish()

    assert done.code == 1
    assert done.err.startswith('Error: app.config["BATCHPIPE_REDSI_URL"]: there is no such setting')
    assert len(done.err.splitlines()) == 1


def test_help_of_the_flask_command_is_that_of_batchpipe(shop: Machine) -> None:
    """Flask lists one command; its help lists ours."""
    listed = shop.start_python("-m", "flask", "--app", "shop", "--help").finish()
    helped = flask(shop, "--help").finish()

    assert re.search(r"batchpipe +Run and watch", listed.out)
    assert "flask batchpipe [OPTIONS] COMMAND" in helped.out
    assert "Cancel a job" in helped.out


# -- docs/flask.md -------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "flask.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


def test_the_app_of_the_page_runs_without_a_celery_app(new_machine: Callable[..., Machine]) -> None:
    """Its upload becomes a job, `flask batchpipe worker` runs that, and the receiver gets the answers."""
    machine = new_machine("page")
    assert machine.redis_url is not None
    machine.environment["FLASK_BATCHPIPE_REDIS_URL"] = machine.redis_url
    machine.write("shop.py", FILES["shop.py"].encode())
    worker = flask(machine, "worker", "--concurrency", "2")
    machine.await_ready(worker)
    script = """
import json, sys, shop
with open(sys.argv[1], "rb") as file:
    print(json.dumps(shop.create_app().test_client().post("/ask", data={"requests": (file, "rows")}).get_json()))
"""
    job = machine.python(script, machine.input(rows=2))["job"]

    assert flask(machine, "wait", job, "--timeout", "40").finish().code == 0
    until(lambda: re.search(r"r1: \w+", worker.err + worker.out), what="the receiver has both rows")


def test_the_celery_files_of_the_page_fit_together(new_machine: Callable[..., Machine]) -> None:
    """With the two lines in the factory, `celery -A make_celery` has our tasks and the beat entry."""
    machine = new_machine("page-celery")
    assert machine.redis_url is not None
    machine.environment["FLASK_BATCHPIPE_REDIS_URL"] = machine.redis_url
    lines = "    app.config['CELERY'] = {'broker_url': 'redis://'}\n    batch.init_app(app)\n    celery_init_app(app)\n"
    shop = "from tasks import celery_init_app\n" + FILES["shop.py"].replace("    batch.init_app(app)\n", lines)
    machine.write("shop.py", shop.encode())
    machine.write("tasks.py", FILES["tasks.py"].encode())
    machine.write("make_celery.py", FILES["make_celery.py"].encode())
    script = """
import json
from make_celery import celery_app
celery_app.loader.import_default_modules()
print(json.dumps([sorted(celery_app.conf.beat_schedule), "batchpipe.poll" in celery_app.tasks]))
"""
    assert machine.python(script) == [["batchpipe-sweep"], True]
