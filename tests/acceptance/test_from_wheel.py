"""What the README promises a new site, from the wheel that users install: its very snippets, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import venv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.user_machine import API_KEY, Machine, Process, until
from tests.redis_server import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: Of the user's own code, imports included.
MOST_LINES = 15
#: What a Celery site has already, as Celery's documentation writes it; and our one line.
CELERY_PY = """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

import batchpipe
batchpipe.setup(app)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it; its dependencies are the tests' own, for they take minutes to install."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files are not followed
    assert run(python, "import batchpipe; print(batchpipe.__file__)").startswith(str(folder))
    return python


def run(python: Path, script: str) -> str:
    """What a script prints, run where the source tree is not found."""
    command = [str(python), "-c", script]
    return subprocess.run(command, cwd=python.parent, capture_output=True, text=True, check=True).stdout


class NewUser:
    """An empty folder of a new user, who follows the README."""

    def __init__(self, machine: Machine, python: Path, section: str) -> None:
        self.machine, self._python = machine, python
        self.section = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        self.lines = 0
        assert machine.sandbox is not None
        self.worker_only = {"OPENAI_BASE_URL": machine.sandbox.base_url, "OPENAI_API_KEY": API_KEY}
        self.environment: dict[str, str | None] = {"BATCHPIPE_SANDBOX_PORT": str(free_port())}
        for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "BATCHPIPE_REDIS_URL"):  # as the README says, not as tests do
            machine.environment.pop(name, None)
        machine.environment["PYTHONPATH"] = ""

    def write(self, name: str) -> None:
        """Write the README's snippet for this file, or add it to the file where it says so."""
        [(how, code)] = re.findall(rf"```python\n# {re.escape(name)}([^\n]*)\n(.*?)```", self.section, flags=re.DOTALL)
        self.lines += sum(bool(line.strip()) for line in code.splitlines())
        assert self.machine.redis_url is not None
        code = re.sub(r"redis://localhost:6379/\d", self.machine.redis_url, code)
        path = self.machine.folder / name
        path.write_text((path.read_text() if "at its end" in how else "") + code)

    def commands(self) -> list[str]:
        """What the README has its reader type in this section, in order."""
        lines = "".join(re.findall(r"```sh\n(.*?)```", self.section, flags=re.DOTALL)).splitlines()
        return [typed for line in lines if (typed := line.partition("#")[0].strip())]

    def start(self, *command: str, env: dict[str, str | None] | None = None) -> Process:
        number = len(list(self.machine.folder.glob("site*.out")))
        out, err = self.machine.folder / f"site{number}.out", self.machine.folder / f"site{number}.err"
        environment = {
            k: v for k, v in {**self.machine.environment, **(env or self.environment)}.items() if v is not None
        }
        with out.open("wb") as out_file, err.open("wb") as err_file:
            popen = subprocess.Popen(
                [str(self._python), *command],
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                cwd=self.machine.folder,
                env=environment,
                start_new_session=True,
            )
        process = Process(popen, out, err)
        self.machine.adopt(process)
        return process

    def worker(self, *command: str, key: bool = False) -> Process:
        """``key``: one that has a provider's; else it has its own sandbox, as the README says."""
        process = self.start(*command, env=dict(self.worker_only) if key else None)
        self.machine.await_ready(process)
        return process


def ask(url: str, process: Process, method: str = "GET") -> Any:
    """The JSON that a page answers, once its server is up."""

    def answer() -> Any:
        assert process.running, process.err
        with suppress(ConnectionError, urllib.error.URLError):
            request = urllib.request.Request(url, method=method)
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)

    return until(answer, what=url)


def new_django(new_machine: Callable[..., Machine], python: Path, name: str) -> NewUser:
    user = NewUser(new_machine(name), python, "In a Django site")
    assert user.start("-m", "django", "startproject", "mysite", ".").finish().code == 0
    for file in ("mysite/settings.py", "mysite/views.py", "mysite/tasks.py", "mysite/urls.py"):
        user.write(file)
    return user


def submit_and_see(url: str, server: Process, worker: Process, method: str = "GET") -> str:
    """A job from the page ends in the worker, and the receiver there prints its results: as news, no warning."""
    job = ask(url, server, method)["job"]
    assert isinstance(job, str)
    until(lambda: "paris: " in worker.out + worker.err or not worker.running, what="the receiver prints the answer")
    return job


def test_a_new_django_project(new_machine: Callable[..., Machine], python: Path) -> None:
    """The README's commands and snippets, as they are, without a key."""
    user = new_django(new_machine, python, "django")
    assert user.lines <= MOST_LINES
    assert user.commands() == [
        "redis-server --daemonize yes --appendonly yes",
        "django-admin startproject mysite .",
        "python manage.py check",
        "python manage.py batchpipe worker --sandbox",
        "python manage.py migrate",
        "python manage.py createsuperuser",
        "python manage.py runserver",
        "curl http://127.0.0.1:8000/describe/",
    ]
    check = user.start("manage.py", "check").finish()
    assert check.code == 0, check.err
    assert "worker --sandbox" in check.err
    worker = user.worker("manage.py", "batchpipe", "worker", "--sandbox")
    assert user.start("manage.py", "migrate").finish().code == 0
    who = {f"DJANGO_SUPERUSER_{name}": "ann@example.org" for name in ("USERNAME", "EMAIL", "PASSWORD")}
    assert user.start("manage.py", "createsuperuser", "--noinput", env={**who}).finish().code == 0
    port = free_port()
    server = user.start("manage.py", "runserver", "--noreload", f"127.0.0.1:{port}")

    submit_and_see(f"http://127.0.0.1:{port}/describe/", server, worker)
    assert_calm(worker)


def assert_calm(worker: Process) -> None:
    """Nothing in its log is a warning, but for what Celery says to a superuser; and no line seems to be an error."""
    lines = [line for line in worker.err.splitlines() if "superuser" not in line and "SecurityWarning" not in line]
    assert [line for line in lines if re.search(r"WARNING|ERROR|error", line)] == []
    assert re.search(r"INFO +celery\.redirected: paris: \w", worker.err)


def test_a_django_project_with_a_celery_app_of_its_own(new_machine: Callable[..., Machine], python: Path) -> None:
    """One line more where the app is made; its workers are started as ever."""
    user = new_django(new_machine, python, "django-celery")
    (user.machine.folder / "mysite" / "celery.py").write_text(CELERY_PY)
    (user.machine.folder / "mysite" / "__init__.py").write_text("from mysite.celery import app as celery_app\n")
    with (user.machine.folder / "mysite" / "settings.py").open("a") as settings:
        settings.write(f"CELERY_BROKER_URL = {user.machine.redis_url!r}\n")
    worker = user.worker("-m", "celery", "-A", "mysite", "worker", "--pool", "threads", "--loglevel", "INFO", key=True)
    port = free_port()
    server = user.start("manage.py", "runserver", "--noreload", f"127.0.0.1:{port}")

    job = submit_and_see(f"http://127.0.0.1:{port}/describe/", server, worker)
    assert set(user.machine.billed(job).values()) == {1}


def test_a_new_flask_app(new_machine: Callable[..., Machine], python: Path) -> None:
    """One file by hand, the README's commands, without a key."""
    user = NewUser(new_machine("flask"), python, "In a Flask app")
    user.write("shop.py")
    assert user.lines <= MOST_LINES
    assert user.commands() == [
        "flask --app shop batchpipe worker --sandbox",
        "flask --app shop run",
        "curl -X POST http://127.0.0.1:5000/describe",
    ]
    worker = user.worker("-m", "flask", "--app", "shop", "batchpipe", "worker", "--sandbox")
    port = free_port()
    server = user.start("-m", "flask", "--app", "shop", "run", "--port", str(port))

    submit_and_see(f"http://127.0.0.1:{port}/describe", server, worker, "POST")
    assert_calm(worker)


def test_the_wheel_has_all_that_is_no_python(python: Path) -> None:
    """Lua scripts, templates, styles and the mark of a typed package."""
    script = "import batchpipe, pathlib; print(*pathlib.Path(batchpipe.__file__).parent.rglob('*'), sep='\\n')"
    shipped = {Path(line).name for line in run(python, script).splitlines()}
    wanted = {path.name for path in (ROOT / "batchpipe").rglob("*") if path.suffix not in ("", ".pyc")}

    assert wanted - shipped == set()
