"""`manage.py batchpipe ...`: the same commands, with the site's settings."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchpipe
from tests import django_project
from tests.django_project import land, requests


@pytest.fixture(autouse=True)
def site(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[None]:
    django_project.configure()
    with django_project.site(redis_url, prefix, tmp_path / "home"):
        yield


@pytest.fixture
def manage(capfd: pytest.CaptureFixture[str]) -> Any:
    """What `manage.py batchpipe ...` answers: exit code, output, errors."""
    from batchpipe.contrib.django.management.commands.batchpipe import Command

    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as end:
            Command().run_from_argv(["manage.py", "batchpipe", *arguments])
        return end.value.code, *capfd.readouterr()

    return run


def test_it_has_the_commands_of_the_command_line(manage: Any) -> None:
    code, out, _ = manage("--help")

    assert code == 0
    assert out.startswith("Usage: manage.py batchpipe [OPTIONS] COMMAND")
    assert "recover" in out


def test_exit_codes_and_errors_of_one_line_are_the_same(manage: Any) -> None:
    assert manage("status", "job_x") == (
        1,
        "",
        "Error: no job job_x is known here; `batchpipe list` shows those that are\n",
    )
    assert manage("explode")[0] == 2


def test_it_uses_the_settings_of_the_site(manage: Any) -> None:
    job = batchpipe.submit(requests(2))
    code, out, _ = manage("list", "--json")

    assert (code, [one["id"] for one in json.loads(out)]) == (0, [job.id])


def test_a_list_says_why_a_job_was_refused(manage: Any, tmp_path: Path) -> None:
    """Of a long reason the first words, below the job's line; ``status`` has all of it."""
    job = batchpipe.submit([{"custom_id": "a" * 300, "method": "PUT"}], name="nightly")
    land(tmp_path)
    _, out, _ = manage("list")
    header, line, note = out.splitlines()
    error = job.refresh().error
    assert error is not None

    assert header.split() == ["NAME", "JOB", "STATE", "ANSWERED", "%", "CREATED"]
    assert line.split()[:3] == ["nightly", job.id, "failed"]
    assert note.startswith("  ! invalid_input: line 1: ")
    assert f"{error.code}: {error.message}"[:90] in note
    assert len(note) <= 100


def test_options_of_django_may_stand_anywhere(manage: Any) -> None:
    """They are Django's to carry out; ``--traceback`` shows where an error comes from."""
    assert manage("--settings", "proj.settings", "list", "--pythonpath=x", "--skip-checks")[0] == 0
    from batchpipe.contrib.django.management.commands.batchpipe import Command

    with pytest.raises(batchpipe.JobNotFound):
        Command().run_from_argv(["manage.py", "batchpipe", "status", "job_x", "--traceback"])


@pytest.mark.parametrize(
    ("args", "ours", "djangos"),
    [
        (["list", "--settings", "a.b", "--json"], ["list", "--json"], {"--settings": "a.b"}),
        (["--pythonpath=/x", "list"], ["list"], {"--pythonpath": "/x"}),
        (
            ["-v", "2", "list", "--verbosity=0", "-v3", "--no-color"],
            ["list"],
            {"-v": "2", "--verbosity": "0", "--no-color": ""},
        ),
        (["worker", "--", "--traceback"], ["worker", "--", "--traceback"], {}),
    ],
)
def test_options_are_told_apart(args: list[str], ours: list[str], djangos: dict[str, str]) -> None:
    from batchpipe.contrib.django.management.commands.batchpipe import split_options

    assert split_options(args) == (ours, djangos)


def test_a_worker_of_its_own_is_started_the_same_way() -> None:
    """The settings module is in the environment that it inherits; a path that was given is not."""
    from batchpipe.contrib.django.management.commands.batchpipe import own_command

    assert own_command("/srv/manage.py", {}) == (sys.executable, "/srv/manage.py", "batchpipe")
    assert own_command("/x/django/__main__.py", {"--pythonpath": "/p"}) == (
        *(sys.executable, "-m", "django", "batchpipe"),
        *("--pythonpath", "/p"),
    )


def test_it_can_be_called_from_code(capfd: pytest.CaptureFixture[str]) -> None:
    from django.core.management import CommandError, call_command

    out, job = io.StringIO(), batchpipe.submit(requests(2))
    call_command("batchpipe", "list", "--json", stdout=out)
    assert [one["id"] for one in json.loads(out.getvalue())] == [job.id]
    call_command("batchpipe", "status", job.id)
    assert job.id in capfd.readouterr().out
    with pytest.raises(CommandError) as end:
        call_command("batchpipe", "status", "job_x")
    assert end.value.returncode == 1


def test_djangos_help_shows_ours(capfd: pytest.CaptureFixture[str]) -> None:
    from django.core.management import ManagementUtility

    with pytest.raises(SystemExit):
        ManagementUtility(["manage.py", "help", "batchpipe"]).execute()
    assert capfd.readouterr().out.startswith("Usage: manage.py batchpipe [OPTIONS] COMMAND")
