"""The code blocks of docs/django.md, flask.md, deploy.md and operations.md.

In real sites; and with stand-ins for Docker and systemd, which run what they are given as processes.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from batchpipe.local_redis import find_server
from batchpipe.sandbox import Sandbox
from tests.acceptance.snippets import ROOT, Snippet, Stories, Story, Terminal, Terminals, asked_for
from tests.acceptance.user_machine import Machine, request_lines, until
from tests.redis_server import RedisServer, free_port

URL = "redis://localhost:6379/0"

#: What the page's code takes from the reader's own project.
MODELS = """
from django.db import models

class Product(models.Model):
    name = models.CharField(max_length=50)
    description = models.TextField(default="")

class Run(models.Model):
    job = models.CharField(max_length=50)
"""
#: As ``django-admin`` would in a process each.
NEW_PROJECT = """
from django.core.management import call_command
call_command("startproject", "proj", ".")
call_command("startapp", "shop")
"""
PREPARED = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "proj.settings"
django.setup()
from django.core.management import call_command
call_command("makemigrations", "shop", verbosity=0)
call_command("migrate", verbosity=0)
call_command("check", fail_level="WARNING")
"""
REQUESTS = """
import datetime, os, sys
from pathlib import Path
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "proj.settings"
django.setup()
from django.contrib.auth.models import User
from django.test import Client
from shop.models import Product, Run

def today():
    return datetime.date.today()

def requests(products):
    for product in products:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": product.name}]}
        yield {"custom_id": str(product.pk), "method": "POST", "url": "/v1/chat/completions", "body": body}
"""


def _append(path: Path, text: str) -> None:
    path.write_text((path.read_text() if path.exists() else "") + "\n" + text)


def _python(machine: Machine, script: str) -> str:
    done = machine.start_python("-c", script, env={"PYTHONPATH": str(machine.folder)}).finish(60)
    assert done.code == 0, done.err
    return done.out


def _descriptions(machine: Machine) -> list[str]:
    with closing(sqlite3.connect(machine.folder / "db.sqlite3")) as database:
        return [text for (text,) in database.execute("select description from shop_product") if text]


def django_project(terminals: Terminals) -> Terminal:
    """`startproject`, an app with models, and the page's pieces where it says that they go."""
    terminal = terminals.terminal("django")
    folder, url = terminal.machine.folder, terminal.machine.environment.pop("BATCHPIPE_REDIS_URL")
    _python(terminal.machine, NEW_PROJECT)
    terminal.run(Snippet("docs/django.md", "pip install"))
    settings = folder / "proj" / "settings.py"
    _append(settings, Snippet("docs/django.md", '"batchpipe.contrib.django"]').with_({URL: url}))
    _append(settings, Snippet("docs/django.md", "owner_or_staff").text)
    _append(settings, 'INSTALLED_APPS += ["shop"]\n' + Snippet("docs/django.md", "CELERY_BROKER_URL").text)
    (folder / "proj" / "celery.py").write_text(Snippet("docs/django.md", "# proj/celery.py").text)
    (folder / "proj" / "__init__.py").write_text(Snippet("docs/django.md", "# proj/__init__.py").text)
    _append(folder / "proj" / "urls.py", Snippet("docs/django.md", "batchpipe.contrib.django.urls").text)
    (folder / "shop" / "models.py").write_text(MODELS)
    (folder / "shop" / "views.py").write_text(Snippet("docs/django.md", "def metrics(request)").text)
    receivers = Snippet("docs/django.md", "def write_back").text
    (folder / "shop" / "tasks.py").write_text(f"from shop.models import Product\n{receivers}")
    _append(folder / "proj" / "urls.py", 'from shop.views import metrics\nurlpatterns += [path("metrics/", metrics)]\n')
    return terminal


def django(terminals: Terminals) -> None:
    terminal = django_project(terminals)
    machine = terminal.machine
    machine.write("requests.jsonl", request_lines(2))
    _python(machine, PREPARED)
    terminal.up(Snippet("docs/django.md", "celery -A proj worker"), {"proj worker": "proj worker --loglevel INFO"})
    order = Snippet("docs/django.md", "def order_descriptions").text
    script = f"""{REQUESTS}
Product.objects.create(name="chair")
user = User.objects.create(username="ann")
{order}
run = order_descriptions(user)
browser = Client(HTTP_HOST="localhost")
assert browser.get("/batchpipe/").status_code in (401, 403)
browser.force_login(user)
assert [job["id"] for job in browser.get("/batchpipe/").json()["jobs"]] == [run.job]
assert b"batchpipe_up 1" in browser.get("/metrics/").content

from django.test import override_settings
tmp_path = Path("pump")
with override_settings(BATCHPIPE={{"REDIS_URL": {machine.redis_url!r}, "PREFIX": "{{a-test}}:"}}):
    job = batchpipe.submit(requests([Product(pk=7, name="lamp")]))
    exec({Snippet("docs/django.md", "FakeOpenAI(").text!r})
    assert job.refresh().state.value == "succeeded"
"""
    _python(machine, script)
    until(lambda: _descriptions(machine), what="the receiver has written the description")
    terminal.up(Snippet("docs/django.md", "manage.py batchpipe run"))


def flask(terminals: Terminals) -> None:
    terminal = terminals.terminal("flask", FLASK_RUN_PORT=str(free_port()))
    machine, url = terminal.machine, terminal.machine.environment.pop("BATCHPIPE_REDIS_URL")
    terminal.environment["FLASK_BATCHPIPE_REDIS_URL"] = url
    page = Snippet("docs/flask.md", "# shop.py")
    machine.write("shop.py", page.text.encode())
    machine.write("rows.jsonl", request_lines(2))
    terminal.up(Snippet("docs/flask.md", "flask --app shop run"))
    celery = Snippet("docs/flask.md", 'app.config["CELERY"] =').text.splitlines()
    lines = "".join(f"    {line}\n" for line in [*celery, "batch.init_app(app)", "celery_init_app(app)"])
    shop = page.with_({"    batch.init_app(app)\n": lines})
    machine.write("shop.py", f"from tasks import celery_init_app\n{shop}".encode())
    machine.write("tasks.py", Snippet("docs/flask.md", "# tasks.py").text.encode())
    machine.write("make_celery.py", Snippet("docs/flask.md", "# make_celery.py").text.encode())
    terminal.up(Snippet("docs/flask.md", "celery -A make_celery worker"), {"worker": "worker --loglevel INFO"})
    config = Snippet("docs/flask.md", 'app.config["BATCHPIPE_SCHEDULES"]').text
    commit = Snippet("docs/flask.md", "db.session.commit()").text
    status = Snippet("docs/flask.md", "def may_see").text
    script = f"""
from pathlib import Path
from types import SimpleNamespace
from flask import Flask
from batchpipe.contrib.flask import BatchPipe
key = other_key = "sk-test"
app = Flask(__name__)
app.secret_key = "only here"
app.config["BATCHPIPE_REDIS_URL"] = {url!r}
{config}
{status}
batch = BatchPipe(app)
order = SimpleNamespace(id=7)
db = SimpleNamespace(session=SimpleNamespace(add=print, commit=lambda: None))
requests_for = lambda order: "rows.jsonl"
with app.app_context():
{"".join(f"    {line}" for line in commit.splitlines(keepends=True))}
assert app.extensions["batchpipe"] is batch
visitor = app.test_client()
assert visitor.get("/batchpipe/").get_json() == {{"jobs": []}}
assert visitor.get(f"/batchpipe/{{job.id}}/").status_code == 403
"""
    _python(machine, script)


def django_example(terminals: Terminals) -> None:
    """In a terminal each, as its README says for a Redis of one's own."""
    terminal = terminals.terminal("example")
    terminal.environment["REDIS_URL"] = terminal.machine.environment["BATCHPIPE_REDIS_URL"]
    site = terminal.machine.folder
    shutil.copytree(ROOT / "examples" / "django_site", site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data"))
    snippet = Snippet("examples/django_site/README.md", "python manage.py prepare")
    prepare = snippet.text.splitlines()[0]
    assert terminal.start(prepare).finish().code == 0
    swap = {prepare: "true", "runserver": f"runserver --noreload {free_port()}", "worker  ": "worker --loglevel INFO "}
    terminal.up(snippet, swap)


def deployment(terminals: Terminals) -> None:
    """Docker runs the command in this place here; tests/acceptance/test_compose.py has the processes of the file."""
    terminal = terminals.terminal("deployment")
    machine = terminal.machine
    machine.write("requests.jsonl", request_lines(2))
    shutil.copy(ROOT / ".env.example", machine.folder)
    terminal.tool("docker", f'[ "$2" = exec ] || exit 0\nshift 3\ncd {machine.folder}\neval "$*"')
    swap = {"mkdir data": "mkdir data; cp requests.jsonl data", " /data/": f" {machine.folder}/data/"}
    terminal.run(Snippet("docs/deploy.md", "docker compose up"), swap)
    assert re.search(r"^REDIS_PASSWORD=\w{48}$", (machine.folder / ".env").read_text(), flags=re.MULTILINE)

    compose = (ROOT / "docker-compose.yml").read_text()
    for line in Snippet("docs/deploy.md", "OPENAI_BASE_URL=http://sandbox").text.splitlines():
        assert line.partition("=")[0] in (ROOT / ".env.example").read_text() + "BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX"
        assert line in compose
    processes = re.findall(r"^(\w+):", (ROOT / "Procfile").read_text(), flags=re.MULTILINE)
    assert set(Snippet("docs/deploy.md", "honcho").text.split()[2:]) <= set(processes)


def redis_configuration(terminals: Terminals) -> None:
    """Doctor has nothing to say against a Redis that has read these lines, and they are those of the compose file."""
    terminal = terminals.terminal("redis")
    lines = Snippet("docs/deploy.md", "appendonly yes").text
    compose = (ROOT / "docker-compose.yml").read_text()
    assert [line for line in lines.splitlines() if line not in compose] == []
    found, port = find_server(), free_port()
    assert found is not None
    folder = terminal.machine.folder
    (folder / "redis.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{lines}")
    server = terminal.machine.start_program(found[1], folder / "redis.conf")
    client = redis.Redis(port=port)
    until(lambda: "ready to accept" in server.out.lower(), what="Redis is up")
    assert client.config_get("appendfsync") == {"appendfsync": "always"}
    client.close()
    doctor = terminal.machine.run("doctor", env={"BATCHPIPE_REDIS_URL": f"redis://127.0.0.1:{port}/0"})
    assert "appendfsync" not in doctor.out.replace("appendfsync always", ""), doctor.out
    server.kill()


def systemd(terminals: Terminals) -> None:
    """Not run: it needs root and systemd. What it names is there; test_compose.py has systemd verify the units."""
    units = {path.name: path.read_text() for path in (ROOT / "examples" / "deploy").glob("batchpipe-*")}
    install = Snippet("examples/deploy/README.md", "useradd --system").text
    enabled = [re.sub(r"@\w+", "@", name) for name in re.findall(r"(?<= )batchpipe-[\w@-]+(?= |$)", install)]
    assert {f"{name}.service" for name in enabled} <= units.keys()
    assert len(enabled) == 3
    everything = "".join(units.values())
    for path in ("/etc/batchpipe/env", "/etc/batchpipe/keys", "/srv/batchpipe", "/opt/batchpipe/bin/batchpipe"):
        assert path.removesuffix("/batchpipe") in install
        assert path in everything

    terminal = terminals.terminal("systemd")
    terminal.machine.write("requests.jsonl", request_lines(2))
    terminal.tool("systemd-run", 'while :; do case $1 in -p) shift 2;; -*) shift;; *) exec "$@";; esac; done')
    swap = {"/opt/batchpipe/bin/": "", "/srv/batchpipe": str(terminal.machine.folder)}
    assert terminal.run(Snippet("examples/deploy/README.md", "systemd-run --pipe"), swap).out.startswith("job_")


def operations(terminals: Terminals) -> None:
    terminal = terminals.terminal("operations")
    machine = terminal.machine
    job = machine.submit(machine.input(2))
    terminal.run(Snippet("docs/operations.md", "batchpipe resume ACCOUNT"))
    terminal.run(Snippet("docs/operations.md", "batchpipe files --delete"))
    left = machine.home / "jobs" / "job_x" / ".batchpipe" / "job_x" / "input.jsonl"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (0, 0))
    shutil.copytree(left.parent, planned := left.parent.with_name("job_y"))
    (planned / "manifest.json").touch()
    assert terminal.run(Snippet("docs/operations.md", "-name input.jsonl")).out == f"{left}\n"
    terminal.run(Snippet("docs/operations.md", "batchpipe cancel JOB"), {"JOB": job})
    terminal.run(Snippet("docs/operations.md", "recover --dry-run"), {"/data": str(machine.folder)})


STORIES = [django, flask, django_example, deployment, redis_configuration, systemd, operations]


@pytest.fixture(scope="module")
def observed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sandbox: Sandbox,
    redis_server: RedisServer,
) -> Iterator[Stories]:
    telling = Stories(
        Terminals(tmp_path_factory.mktemp("sites"), sandbox, redis_server, shared=False), asked_for(request)
    )
    yield telling
    telling.close()


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_blocks_of_a_page_about_sites_run(observed: Stories, story: Story) -> None:
    observed.result(story)
