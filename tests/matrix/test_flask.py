"""Flask in each version: a factory under the reloader, and several apps of one process under gunicorn."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.user_machine import Place, Process, until
from tests.matrix.cache import environment, version_of
from tests.redis_server import free_port

pytestmark = pytest.mark.matrix
NewPlace = Callable[..., Place]
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


def new_site(new_place: NewPlace, python: Path, name: str) -> Place:
    place = new_place(name)
    assert place.redis_url is not None
    place.interpreter = python
    place.environment["SITE_REDIS"] = place.redis_url
    del place.environment["BATCHPIPE_REDIS_URL"]
    place.write("shop.py", SHOP.encode())
    return place


def worker(place: Place, app: str = "shop") -> Process:
    process = place.start_python("-m", "flask", "--app", app, "batchpipe", "worker", "--concurrency", "2")
    place.await_ready(process)
    return process


def serve(place: Place, *command: str) -> str:
    """Start a server; ``PORT`` in its arguments is a free one. Its address, once it answers."""
    port = str(free_port())
    server = place.start_python(*(part.replace("PORT", port) for part in command))
    address = f"http://127.0.0.1:{port}"
    until(lambda: get(f"{address}/jobs") or not server.running, what="the server answers")
    assert server.running, server.err
    return address


def get(url: str) -> Any:
    with suppress(OSError), urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)
    return None


def check_told(place: Place, name: str, job: str) -> None:
    file = place.folder / f"told-{name}"
    until(lambda: file.exists() and job in file.read_text().split(), what="the receiver of the app hears of it")
    assert set(place.billed(job).values()) == {1}


def test_a_factory_under_the_reloader_submits_each_job_once(new_place: NewPlace, python: Path) -> None:
    """The app is loaded in two processes, and again when a file changes. A job from before that ends after it."""
    place = new_site(new_place, python, "reloader")
    place.write("start.py", DEBUG.encode())
    address = serve(place, "start.py", "PORT")
    first = get(f"{address}/ask")
    place.write("shop.py", SHOP.replace("VERSION = 1", "VERSION = 2").encode())
    until(lambda: (get(f"{address}/jobs") or {}).get("version") == 2, what="the reloader has seen the change")
    second = get(f"{address}/ask")
    worker(place)

    assert first["process"] != second["process"]
    assert sorted(get(f"{address}/jobs")["jobs"]) == sorted([first["job"], second["job"]])
    for one in (first, second):
        check_told(place, "shop", one["job"])


def test_several_apps_of_one_process_keep_their_jobs_apart(new_place: NewPlace, python: Path) -> None:
    """Under gunicorn, which loads them before it forks; each has a worker, and hears of its own jobs only."""
    place = new_site(new_place, python, "several")
    for name in ("north", "south"):
        other = new_place(f"only-a-database-{name}")
        assert other.redis_url is not None
        place.environment[f"{name.upper()}_REDIS"] = other.redis_url
        place.write(
            f"{name}.py",
            f"from shop import create_app\n\napp = create_app('{name}', '{name.upper()}_REDIS')\n".encode(),
        )
        worker(place, name)
    worker(place)
    gunicorn = ("-m", "gunicorn", "several:application", "--preload", "-k", "gthread", "--threads", "4")
    place.write("several.py", SEVERAL.encode())
    address = serve(place, *gunicorn, "-w", "2", "-b", "127.0.0.1:PORT")
    asked = {
        name: get(f"{address}{path}/ask")["job"]
        for name, path in (("shop", ""), ("north", "/north"), ("south", "/south"))
    }

    for name, job in asked.items():
        check_told(place, name, job)
        assert get(f"{address}{'' if name == 'shop' else '/' + name}/jobs")["jobs"] == [job]
        assert (place.folder / f"told-{name}").read_text().split() == [job]
