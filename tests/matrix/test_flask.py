"""Flask in each version: a factory under the reloader, and several apps of one process under gunicorn."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.user_machine import Machine, Process, until
from tests.matrix.cache import environment, version_of
from tests.redis_server import free_port

pytestmark = pytest.mark.matrix
NewMachine = Callable[..., Machine]
VERSIONS = ("2.3", "3.0", "3.1")
SHOP = """
import os
from batchpipe.contrib.flask import BatchPipe, job_succeeded
from flask import Flask

batch = BatchPipe()
VERSION = 1


def create_app(name="shop", redis="SITE_REDIS"):
    app = Flask(name)
    app.config["BATCHPIPE_REDIS_URL"] = os.environ[redis]
    batch.init_app(app) if name == "shop" else BatchPipe(app)

    @app.get("/ask")
    def ask():
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": name}]}
        row = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return {"job": app.extensions["batchpipe"].submit([row]).id, "version": VERSION, "process": os.getpid()}

    @app.get("/jobs")
    def jobs():
        return {"jobs": [job.id for job in app.extensions["batchpipe"].list_jobs()], "version": VERSION}

    return app


@job_succeeded.connect
def write_down(app, job):
    with open(f"told-{app.name}", "a") as file:
        file.write(job.id + "\\n")
"""
#: As ``flask run --debug``, but for the kind of reloader: the other one, where watchdog is installed, watches all of
#: this repository.
DEBUG = """
import sys
from shop import create_app

if __name__ == "__main__":
    create_app().run(port=int(sys.argv[1]), debug=True, reloader_type="stat")
"""
#: Three apps behind one address, each with a Redis database of its own.
SEVERAL = """
from shop import create_app
from werkzeug.middleware.dispatcher import DispatcherMiddleware

names = ("north", "south")
apps = {f"/{name}": create_app(name, f"{name.upper()}_REDIS") for name in names}
application = DispatcherMiddleware(create_app(), apps)
"""


@pytest.fixture(scope="module", params=[pytest.param(one, marks=[pytest.mark.ci] * (one == "3.1")) for one in VERSIONS])
def python(request: pytest.FixtureRequest) -> Path:
    found = environment(f"flask-{request.param}", f"flask=={request.param}.*", "gunicorn")
    assert version_of(found, "flask").startswith(f"{request.param}.")
    return found


def new_site(new_machine: NewMachine, python: Path, name: str) -> Machine:
    machine = new_machine(name)
    assert machine.redis_url is not None
    machine.interpreter = python
    machine.environment["SITE_REDIS"] = machine.redis_url
    del machine.environment["BATCHPIPE_REDIS_URL"]
    machine.write("shop.py", SHOP.encode())
    return machine


def worker(machine: Machine, app: str = "shop") -> Process:
    process = machine.start_python("-m", "flask", "--app", app, "batchpipe", "worker", "--concurrency", "2")
    machine.await_ready(process)
    return process


def serve(machine: Machine, *command: str) -> str:
    """Start a server; ``PORT`` in its arguments is a free one. Its address, once it answers."""
    port = str(free_port())
    server = machine.start_python(*(part.replace("PORT", port) for part in command))
    address = f"http://127.0.0.1:{port}"
    until(lambda: get(f"{address}/jobs") or not server.running, what="the server answers")
    assert server.running, server.err
    return address


def get(url: str) -> Any:
    with suppress(OSError), urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)
    return None


def check_observed(machine: Machine, name: str, job: str) -> None:
    file = machine.folder / f"told-{name}"
    until(lambda: file.exists() and job in file.read_text().split(), what="the receiver of the app hears of it")
    assert set(machine.billed(job).values()) == {1}


def test_a_factory_under_the_reloader_submits_each_job_once(new_machine: NewMachine, python: Path) -> None:
    """The app is loaded in two processes, and again when a file changes. A job from before that ends after it."""
    machine = new_site(new_machine, python, "reloader")
    machine.write("start.py", DEBUG.encode())
    address = serve(machine, "start.py", "PORT")
    first = get(f"{address}/ask")
    machine.write("shop.py", SHOP.replace("VERSION = 1", "VERSION = 2").encode())
    until(lambda: (get(f"{address}/jobs") or {}).get("version") == 2, what="the reloader has seen the change")
    second = get(f"{address}/ask")
    worker(machine)

    assert first["process"] != second["process"]
    assert sorted(get(f"{address}/jobs")["jobs"]) == sorted([first["job"], second["job"]])
    for one in (first, second):
        check_observed(machine, "shop", one["job"])


def test_several_apps_of_one_process_keep_their_jobs_apart(new_machine: NewMachine, python: Path) -> None:
    """Under gunicorn, which loads them before it forks; each has a worker, and hears of its own jobs only."""
    machine = new_site(new_machine, python, "several")
    for name in ("north", "south"):
        other = new_machine(f"only-a-database-{name}")
        assert other.redis_url is not None
        machine.environment[f"{name.upper()}_REDIS"] = other.redis_url
        machine.write(
            f"{name}.py",
            f"from shop import create_app\n\napp = create_app('{name}', '{name.upper()}_REDIS')\n".encode(),
        )
        worker(machine, name)
    worker(machine)
    gunicorn = ("-m", "gunicorn", "several:application", "--preload", "-k", "gthread", "--threads", "4")
    machine.write("several.py", SEVERAL.encode())
    address = serve(machine, *gunicorn, "-w", "2", "-b", "127.0.0.1:PORT")
    asked = {
        name: get(f"{address}{path}/ask")["job"]
        for name, path in (("shop", ""), ("north", "/north"), ("south", "/south"))
    }

    for name, job in asked.items():
        check_observed(machine, name, job)
        assert get(f"{address}{'' if name == 'shop' else '/' + name}/jobs")["jobs"] == [job]
        assert (machine.folder / f"told-{name}").read_text().split() == [job]
