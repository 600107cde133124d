"""The entry point of all commands."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchpipe.cli import cli
from batchpipe.cli.common import cannot_listen
from batchpipe.cli.listing import name_of
from batchpipe.masking import printable
from batchpipe.model.records import JobRecord


@pytest.mark.parametrize(
    ("typed", "says"),
    [("rnu", "did you mean 'run'?"), ("statsu", "did you mean 'status'?"), ("xyzzy", "`batchpipe --help` lists")],
)
def test_a_mistyped_command_is_told_the_nearest_one(typed: str, says: str) -> None:
    done = CliRunner().invoke(cli, [typed])
    assert done.exit_code == 2
    assert says in done.output


@pytest.mark.parametrize(
    ("record", "known_by"),
    [
        (JobRecord(id="job_1", name="nightly", input="/in.jsonl", output="/out"), "nightly"),
        (JobRecord(id="job_1", input="/in.jsonl", output="/out", key="monday"), "/in.jsonl"),
        (JobRecord(id="job_1", input="https://user:word@host/in.jsonl"), "https://user:***@host/in.jsonl"),
        (JobRecord(id="job_1", input="/out/.batchpipe/job_1/input.jsonl", spooled=True, output="/out"), "/out"),
        (
            JobRecord(id="job_1", input="/out/.batchpipe/job_1/input.jsonl", spooled=True, output="/out", key="monday"),
            "monday",
        ),
        (JobRecord(id="job_1", input="/data/job_1.jsonl", spooled=True, output="/data/job_1"), "-"),
    ],
)
def test_a_list_names_a_job_by_what_a_person_gave(record: JobRecord, known_by: str) -> None:
    """Not by the copy that we made of rows that a program or stdin gave."""
    assert name_of(record) == known_by


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--enqueued-tokens", "lots"], "Invalid value for --enqueued-tokens: 'lots' is not a number of tokens"),
        (["--webhook-url", "nonsense"], "--webhook-url must be an http:// or https:// URL, not 'nonsense'"),
        (
            ["--webhook-url", "http://127.0.0.1:1/"],
            "BATCHPIPE_SANDBOX_WEBHOOK_SECRET must be whsec_ and a key in base64",
        ),
        (["--upstream", "nonsense"], "--upstream must be an http:// or https:// URL"),
        (["--rows-per-second", "0"], "--rows-per-second must be above 0"),
    ],
)
def test_an_option_of_the_sandbox_that_is_wrong_is_named(options: list[str], says: str) -> None:
    """As it is typed, or as its variable is called."""
    done = CliRunner().invoke(cli, ["sandbox", "--port", "0", *options])
    assert (done.exit_code, says in done.output) == (2, True), done.output


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(seconds: str) -> None:
    done = CliRunner().invoke(cli, ["wait", "job_x", "--timeout", seconds])
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["submit", "x", "-o", "y", "--priority", "high"], "must be a whole number from -100 to 100, not 'high'"),
        (["submit", "x", "-o", "y", "--priority", "101"], "must be a whole number from -100 to 100, not '101'"),
        (["submit", "x", "-o", "y", "--attempts", "0"], "must be a whole number from 1 to 100, not '0'"),
        (["list", "--limit", "all"], "must be a whole number of 1 or more, not 'all'"),
        (["wait", "job_x", "--timeout", "soon"], "must be a number of seconds of 0 or more, not 'soon'"),
        (["sandbox", "--rows-per-second", "many"], "must be a number of 0 or more, not 'many'"),
        (["sandbox", "--validating-seconds", "-1"], "must be a number of 0 or more, not '-1'"),
        (["webhooks", "--port", "99999"], "must be a whole number from 0 to 65535, not '99999'"),
    ],
)
def test_what_a_number_must_be_is_said_in_plain_words(words: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, words)
    assert (done.exit_code, says in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EADDRINUSE, "x"), "another program listens there: end it, or give another --port (0 takes a"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "this machine has no such address: give --host 127.0.0.1, or 0.0.0.0 for"),
        (socket.gaierror(-2, "Name or service not known"), "this machine has no such address: give --host 127.0.0.1"),
        (PermissionError(errno.EACCES, "x"), "this user may not: give a --port from 1024 on"),
        (OSError(errno.ENOBUFS, "No buffer space available"), "No buffer space available"),
    ],
)
def test_a_server_that_cannot_listen_says_what_to_do(error: OSError, says: str) -> None:
    assert cannot_listen("h", 1, error).message.startswith(f"cannot listen on h:1: {says}")


def test_an_address_that_is_taken_ends_webhooks_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHPIPE_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = "import sys; from batchpipe.cli import main; main(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, "webhooks", "--port", str(port)], capture_output=True, text=True
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: cannot listen on 127.0.0.1:{port}: another program listens there: end it, or give another --port "
        "(0 takes a free one)\n"
    )


@pytest.mark.parametrize("pool", ["threads", "solo"])
@pytest.mark.parametrize("option", ["--autoscale=4,1", "--autoscale"])
def test_a_pool_that_cannot_grow_is_not_autoscaled(pool: str, option: str) -> None:
    """The worker died as soon as it had work."""
    done = CliRunner().invoke(cli, ["worker", "--pool", pool, option, "4,1"])
    assert done.exit_code == 2
    assert f"a pool of {pool} does not grow or shrink: set --concurrency" in done.output
    assert "Traceback" not in done.output


def test_control_characters_are_written_out() -> None:
    """A name could forge a row of `list`, clear the screen or change the title of the terminal."""
    assert printable("a\x1b]0;title\x07\nb\u202ec\t") == "a\\x1b]0;title\\x07\\x0ab\\u202ec\t"


def run_command(*args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "batchpipe", *args]
    return subprocess.run(command, capture_output="stdout" not in options, timeout=60, check=False, **options)


def test_output_does_not_depend_on_the_locale(tmp_path: Path) -> None:
    """JSON is UTF-8; what a terminal's encoding lacks is escaped, and ends no command."""
    (tmp_path / "行.jsonl").write_text("{}\n")
    env = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    validated = run_command("validate", str(tmp_path / "行.jsonl"), env=env)
    missing = run_command("validate", str(tmp_path / "日.jsonl"), env=env)
    assert validated.returncode == missing.returncode == 1
    assert b"\\u65e5" in missing.stderr
    assert b"Traceback" not in validated.stderr + missing.stderr


def test_a_full_disk_under_stdout_is_said_in_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = run_command("--help", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["Error: the output could not be written: No space left on device"]


def test_a_closed_standard_input_is_said_in_one_line() -> None:
    script = f'"{sys.executable}" -m batchpipe validate - <&-'
    done = subprocess.run(["sh", "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert "standard input" in done.stderr.decode()


def test_a_file_whose_name_begins_with_a_tilde_is_found(tmp_path: Path) -> None:
    row = '{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'
    (tmp_path / "~x.jsonl").write_text(row)
    done = run_command("validate", "~x.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_within_a_finalizer_ends_the_command_all_the_same() -> None:
    """Python drops what is raised there: the command would go on as if nobody had pressed it."""
    script = """
import os, signal, time
from batchpipe.cli.interrupts import take_interrupts

class Pool:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

take_interrupts()
try:
    Pool()
    time.sleep(30)
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=25)
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_within_a_callback_of_the_import_system_ends_the_command_all_the_same() -> None:
    """Python drops what is raised there, too; within a module that is imported it is raised at once."""
    script = """
import os, signal, time, weakref
from batchpipe.cli.interrupts import take_interrupts

class Lock: pass

callback = "def cb(ref):\\n os.kill(os.getpid(), signal.SIGINT)\\n for _ in range(1000): pass"
exec(compile(callback, "<frozen importlib._bootstrap>", "exec"))
take_interrupts()
try:
    lock = Lock()
    ref = weakref.ref(lock, cb)
    del lock
    time.sleep(30)
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=25)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("module", ["click", "batchpipe.errors", "batchpipe.cli.interrupts", "batchpipe.cli.listing"])
def test_ctrl_c_while_modules_are_imported_ends_the_command_without_a_traceback(module: str) -> None:
    """It takes a moment, in which people press it who have mistyped."""
    script = f"""
import os, signal, sys, time

class Interrupted:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

sys.meta_path.insert(0, Interrupted)
sys.argv = ["batchpipe", "list"]
from batchpipe.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=25)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")  # click ends the line of the ^C


def test_the_installed_command_begins_where_the_module_does() -> None:
    """Else its first imports would be outside."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"batchpipe": "batchpipe.__main__:main"}
