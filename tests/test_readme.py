"""The README cannot lie: what it shows is there, and runs."""

from __future__ import annotations

import ast
import csv
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchpipe
from batchpipe.sandbox import Sandbox
from tests.python_process import python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_readme_shows_code_before_line_30() -> None:
    """Who has seen 30 lines has seen how it is used."""
    lines = README.splitlines()

    assert min(lines.index(fence) for fence in ("```sh", "```python")) < 30
    assert "batchpipe run " in "\n".join(lines[:29])


def test_the_readme_calls_only_what_exists() -> None:
    """Public names and keyword arguments of its Python, and commands and options of its shell."""
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            match node:
                case ast.Attribute(value=ast.Name(id="batchpipe"), attr=name):
                    assert name in batchpipe.__all__
                case ast.Call(func=ast.Attribute(value=ast.Name(id="batchpipe"), attr="submit"), keywords=words):
                    assert {word.arg for word in words} <= inspect.signature(batchpipe.submit).parameters.keys()
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in re.findall(r"^batchpipe (\w+)", "".join(blocks("sh")), flags=re.MULTILINE):
        assert f"## batchpipe {command}\n" in page


def test_what_the_readme_calls_not_built_is_not_built() -> None:
    """The list of what is missing shrinks with each thing that comes."""
    from batchpipe.cli import COMMANDS

    missing = README.partition("## Not yet")[2].partition("\n## ")[0]

    assert "budgets" in missing
    assert [command for command in COMMANDS if f"`batchpipe {command}`" in missing] == []


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's: this batchpipe on PATH, a home of its own, nobody's keys, and quick polls."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHPIPE_", "OPENAI_"))}
    return {
        **ours,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "BATCHPIPE_HOME": str(tmp_path / "home"),
        "BATCHPIPE_POLL_MIN_SECONDS": "0.2",
    }


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """The worker beside one's program, on a sandbox in place of OpenAI."""
    with Sandbox() as sandbox, (tmp_path / "worker.log").open("wb") as log:
        environment |= {"OPENAI_BASE_URL": sandbox.base_url, "OPENAI_API_KEY": "sk-test"}
        environment["BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX"] = "true"
        command = [sys.executable, "-m", "batchpipe", "worker", "--concurrency", "2", "--with-parent"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=tmp_path
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()


@pytest.mark.slow
def test_the_shell_of_the_readme_runs(environment: dict[str, str], tmp_path: Path) -> None:
    """Copied and pasted, the block after the installation ends with a table of answers, in the order of the input."""
    installation, script = blocks("sh")[:2]
    assert "pip install" in installation
    done = subprocess.run(
        ["sh", "-eu"], input=script, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["name"], row["price"], row["state"]) for row in rows] == [("Lamp", "30", "ok"), ("Chair", "45", "ok")]
    assert all(row["answer"] for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_the_python_of_the_readme_runs(environment: dict[str, str], tmp_path: Path) -> None:
    """With a worker beside it, the program prints one answer for each question, in their order."""
    done = python("-c", blocks("python")[0], env=environment, cwd=tmp_path)

    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["paris", "ok"], ["rome", "ok"]]
