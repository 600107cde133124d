"""Processes that start at once: a parent that has imported everything forks them.

``python -m tests.forkserver MODULE`` is the parent; the functions of MODULE are what its children can do. It has no
thread and no connection, so a fork of it is as good as a fresh process. It reads orders as lines of JSON and tells of
births and ends the same way; when its input ends it kills what it has started. `ForkServer` is the side of the tests.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: A busy machine may stand still for a while; only what takes longer is broken.
STALL_SECONDS = 90.0

#: What a worker imports sooner or later.
_NEEDED = (
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.bin.beat",
    "celery.bin.worker",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "batchpipe.client.client",
    "batchpipe.telemetry.logs",
    "batchpipe.worker.process",
)


# -- the side of the tests -----------------------------------------------------------------------------------------


class Child:
    """A process of the forkserver, leader of its own process group."""

    def __init__(self, forkserver: ForkServer, pid: int, role: str, log: Path) -> None:
        self._forkserver, self.pid, self.role, self.log = forkserver, pid, role, log
        self.frozen = False

    @property
    def code(self) -> int | None:
        """Its exit code, minus the signal where one ended it; None while it lives."""
        return self._forkserver.code(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """To its whole group, if it still lives: its id may not be used again before it was reaped."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """kill -9 of the group; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self.wait(STALL_SECONDS)

    def freeze(self) -> None:
        self.frozen = True
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
        self.frozen = False

    def wait(self, seconds: float) -> int:
        """Its exit code; raises AssertionError if it does not end in time."""
        return self._forkserver.wait(self.pid, seconds, self.role)


class ForkServer:
    """Starts children; each has an environment, a folder and a log of its own."""

    def __init__(self, log: Path, roles: str) -> None:
        """``roles``: the module that has a function for each role."""
        self._log = log.open("wb")
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.forkserver", roles],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._changed = threading.Condition()
        self._order = threading.Lock()
        self._born: list[int] = []
        self._ended: dict[int, int] = {}
        self._gone = False
        self._reader = threading.Thread(target=self._listen, name="forkserver", daemon=True)
        self._reader.start()

    def start(
        self,
        role: str,
        folder: Path,
        log: Path,
        env: Mapping[str, str],
        *,
        errors: Path | None = None,
        source: Path | None = None,
        session: bool = False,
        **arguments: Any,
    ) -> Child:
        """Call the function ``role`` in a new process. Its output goes to ``log``, its standard error to ``errors`` if
        that is another file, and it reads ``source``. ``session``: what it starts may outlive it, as with a command
        that was typed; else its whole group ends with it.
        """
        order = {
            "role": role,
            "folder": str(folder),
            "log": str(log),
            "errors": str(errors or log),
            "source": str(source or os.devnull),
            "env": dict(env),
            "session": session,
            "arguments": arguments,
        }
        assert self._parent.stdin is not None
        with self._order:
            self._parent.stdin.write(json.dumps(order).encode() + b"\n")
            self._parent.stdin.flush()
            with self._changed:
                assert self._changed.wait_for(lambda: self._born or self._gone, STALL_SECONDS), (
                    "the forkserver does not answer"
                )
                assert self._born, f"the forkserver has ended: see {self._log.name}"
                return Child(self, self._born.pop(), role, log)

    def code(self, pid: int) -> int | None:
        with self._changed:
            return self._ended.get(pid)

    def wait(self, pid: int, seconds: float, what: str) -> int:
        with self._changed:
            assert self._changed.wait_for(lambda: pid in self._ended, seconds), f"{what} still runs after {seconds:g} s"
            return self._ended[pid]

    def close(self) -> None:
        """Kill all children that are left."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(30)
        self._reader.join()
        self._parent.stdout.close()
        self._log.close()

    def _listen(self) -> None:
        assert self._parent.stdout is not None
        for line in self._parent.stdout:
            told = json.loads(line)
            with self._changed:
                if "born" in told:
                    self._ended.pop(told["born"], None)  # the number may come again
                    self._born.append(told["born"])
                else:
                    self._ended[told["ended"]] = told["code"]
                self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()


# -- the parent ----------------------------------------------------------------------------------------------------


def main(roles: str) -> None:
    """Fork a child for each order until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for who started us: the end of our input tells of that
        signal.signal(number, signal.SIG_IGN)
    _import_everything(roles)
    alive: dict[int, bool] = {}  # whether what it starts may outlive it
    waiting = b""
    while True:
        _reap(alive)
        if not select.select([0], [], [], 0.02)[0]:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            break
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            alive[_fork(roles, order)] = order["session"]
    for pid in alive:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    while alive:
        _reap(alive)
        time.sleep(0.01)


def _import_everything(roles: str) -> None:
    for name in (*_NEEDED, roles):
        import_module(name)
    from batchpipe.provider import warm_up

    warm_up()


def _reap(alive: dict[int, bool]) -> None:
    for pid in list(alive):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if not alive.pop(pid):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # what a prefork pool leaves behind
            _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _fork(roles: str, order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        _live(roles, order)
    with suppress(PermissionError, ProcessLookupError):
        if not order["session"]:
            os.setpgid(pid, pid)  # here and there: who asks first must find the group
    _say({"born": pid})
    return pid


def _live(roles: str, order: dict[str, Any]) -> None:
    """The child: from here on it is a process like any other."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if order["session"]:
            os.setsid()
        else:
            with suppress(PermissionError):
                os.setpgid(0, 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        source = os.open(order["source"], os.O_RDONLY)
        for number, handle in enumerate((source, log, errors)):
            os.dup2(handle, number)
            os.close(handle)
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["env"])
        faulthandler.enable()
        getattr(import_module(roles), order["role"])(**order["arguments"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def _say(what: dict[str, int]) -> None:
    with suppress(BrokenPipeError):  # who started us is gone: so is our input, and we end
        os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
