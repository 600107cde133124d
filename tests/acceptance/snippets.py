"""The code blocks of the documentation, and terminals to run them in.

A test claims a block by ``Snippet(page, text)``, the text being one that stands in no other block of that page. What is
claimed is read from the source of the tests, so that a block nobody runs is found (test_snippets.py).
"""

from __future__ import annotations

import ast
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Finished, Machine, Process, until
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("**/README.md")])
BIN = Path(sys.executable).parent

#: What a process that stays says when it is up.
UP = re.compile(
    r" ready\.|beat: Starting|celery beat v.* is starting|Running on http|Starting development server"
    r"|Flower listens on|metrics at http|webhooks at http|sandbox listening on"
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    generated: bool  #: written by tests/regen_docs.py


@cache
def blocks() -> tuple[Block, ...]:
    """All of them, of all pages."""
    return tuple(block for page in PAGES for block in _blocks_of(page))


def _blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    begin, end = text.find("<!-- generated"), text.find("<!-- end -->")
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, flags=re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        generated = 0 <= begin < match.start() < end
        yield Block(str(page.relative_to(ROOT)), line, match[2], textwrap.dedent(match[3]), generated)


@dataclass(frozen=True)
class Snippet:
    """The block of a page that holds a text."""

    page: str
    holds: str

    @property
    def block(self) -> Block:
        found = [block for block in blocks() if block.page == self.page and self.holds in block.text]
        assert len(found) == 1, f"{len(found)} blocks of {self.page} hold {self.holds!r}"
        return found[0]

    @property
    def text(self) -> str:
        return self.block.text

    def with_(self, swap: Mapping[str, str]) -> str:
        """The text with what a reader would put in its place: each of it must be there."""
        text = self.text
        for old, new in swap.items():
            assert old in text, f"{self.page}, line {self.block.line}: there is no {old!r}"
            text = text.replace(old, new)
        return text


def claims() -> list[Snippet]:
    """Every ``Snippet("page", "text")`` that is written in a test."""
    found = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        if "Snippet(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(
                    func=ast.Name("Snippet"), args=[ast.Constant(value=str(page)), ast.Constant(value=str(holds))]
                ):
                    found.append(Snippet(page, holds))
    return found


class Terminal:
    """A shell on a machine, with the commands of this environment, and a ``pip`` that installs nothing."""

    def __init__(self, machine: Machine, **environment: str) -> None:
        self.machine = machine
        self._tools = machine.folder / "tools"
        self._tools.mkdir()
        self.tool("pip", "exit 0")
        self.environment = {
            "PATH": os.pathsep.join([str(self._tools), str(BIN), os.environ["PATH"]]),
            "PYTHONPATH": str(machine.folder),
            "PYTHONUNBUFFERED": "1",  # else what is said to a file comes late
            **environment,
        }

    def tool(self, name: str, script: str) -> None:
        """A stand-in for a program that is not to be called here."""
        (self._tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (self._tools / name).chmod(0o755)

    def start(self, script: str) -> Process:
        return self.machine.start_program("bash", "-ec", script, env=self.environment)

    def run(self, snippet: Snippet, swap: Mapping[str, str] | None = None) -> Finished:
        """All of a block, which must end with 0."""
        done = self.start(snippet.with_(swap or {})).finish(60)
        assert done.code == 0, f"{snippet.page}, line {snippet.block.line}: {done.err}{done.out}"
        return done

    def up(self, snippet: Snippet, swap: Mapping[str, str] | None = None) -> list[Process]:
        """Each line of a block in a window of its own: it comes up, or ends with 0. Variables are for all of them."""
        text = snippet.with_(swap or {}).replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        exports = "".join(f"{line}\n" for line in lines if line.startswith("export "))
        commands = [re.sub(r" &(\s+#.*)?$", "", line) for line in lines if not line.startswith("export ")]
        processes = [self.start(exports + command) for command in commands]
        for process, command in zip(processes, commands, strict=True):
            until(partial(is_up_or_ended, process), 60, f"{command!r} is up")
            said = process.err + process.out
            assert is_up(process) or process.finish().code == 0, f"{snippet.page}: {command}\n{said}"
        return processes

    def up_and_down(self, snippet: Snippet, swap: Mapping[str, str] | None = None) -> None:
        """They came up, and are ended."""
        for process in self.up(snippet, swap):
            end(process)


def is_up(process: Process) -> bool:
    return bool(UP.search(process.err + process.out))


def is_up_or_ended(process: Process) -> bool:
    return is_up(process) or not process.running


def end(process: Process) -> None:
    """With all that it has started: it has a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.popen.wait()


class Terminals:
    """Makes machines: they share a Redis, and so a worker, or have a database each."""

    def __init__(self, folder: Path, sandbox: Sandbox, redis: RedisServer, *, shared: bool) -> None:
        self.folder, self.sandbox, self._redis = folder, sandbox, redis
        self._shared = redis.database() if shared else None
        self._machines: list[Machine] = []
        self._lock = threading.Lock()

    def terminal(self, name: str, *, private: bool = False, **environment: str) -> Terminal:
        """In a new folder; with a private Redis instead where that is asked for."""
        with self._lock:
            url = None if private else self._shared or self._redis.database()
            machine = Machine(self.folder / name, self.sandbox, url)
            self._machines.append(machine)
        return Terminal(machine, **environment)

    def close(self) -> None:
        for machine in self._machines:
            machine.close()


Story = Callable[[Terminals], None]


class Stories:
    """Stories that run side by side, each once, and only those that a test asks for."""

    def __init__(self, terminals: Terminals, stories: list[Story]) -> None:
        self._terminals = terminals
        self._pool = ThreadPoolExecutor(3)
        self._running = {story: self._pool.submit(story, terminals) for story in stories}

    def result(self, story: Story) -> None:
        self._running[story].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._terminals.close()


def asked_for(request: pytest.FixtureRequest) -> list[Story]:
    """The stories of the tests of this module that will run."""
    tests = [item for item in request.session.items if item.path == request.path]
    return [item.callspec.params["story"] for item in tests if "story" in getattr(item, "fixturenames", ())]  # type: ignore[attr-defined]
