"""The sandbox as a server: the `Sandbox` class for tests, `serve` for the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Unpack

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from batchpipe.sandbox.app import build_app
from batchpipe.sandbox.batches import Batches
from batchpipe.sandbox.calls import CallLog
from batchpipe.sandbox.clock import Clock
from batchpipe.sandbox.faults import Fault, Faults
from batchpipe.sandbox.files import FileStore
from batchpipe.sandbox.ledger import Ledger
from batchpipe.sandbox.options import OptionArgs, Options
from batchpipe.sandbox.quotas import Quotas
from batchpipe.sandbox.webhooks import Webhooks
from batchpipe.sandbox.world import World

_START_SECONDS = 10.0


class Protocol(H11Protocol):
    """An HTTP protocol that gives requests their connection, so that a fault can break it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


def answers(port: int) -> bool:
    """Whether a sandbox listens on this port of this machine."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/sandbox/clock", timeout=5) as answer:
            return isinstance(json.loads(answer.read(10_000)), dict)
    except (OSError, ValueError):
        return False


class Sandbox:
    """A local OpenAI-compatible Files and Batches server, run in a thread of this process.

        with Sandbox() as sandbox:
            client = OpenAI(base_url=sandbox.base_url, api_key="any")

    Keyword arguments are the fields of `Options`. Port 0 picks a free one.
    """

    def __init__(self, *, port: int = 0, host: str = "127.0.0.1", **options: Unpack[OptionArgs]) -> None:
        self.options = Options(**options)
        self._address = (host, port)
        self._world: World | None = None
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Sandbox:
        """Listen and answer; returns when ready. An address in use raises `OSError`."""
        if self._world is not None:
            raise RuntimeError("this sandbox is already running")
        self._socket = _bind(*self._address)
        try:
            self._world = World(self.options)
            self._world.start()
            config = uvicorn.Config(
                build_app(self._world),
                http=Protocol,
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # else a client could claim any address with X-Forwarded-For
                server_header=False,
                timeout_graceful_shutdown=1,
            )
            self._server = _Server(config)
            self._thread = threading.Thread(
                target=self._server.run, args=([self._socket],), name="sandbox-server", daemon=True
            )
            self._thread.start()
            if not self._server.ready.wait(_START_SECONDS):
                raise RuntimeError(f"the sandbox did not start within {_START_SECONDS:g} s")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop listening and clean up. Read the ledger before: it closes, too."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        if self._world is not None:
            self._world.close()
        if self._socket is not None:
            self._socket.close()
        self._world = self._server = self._thread = self._socket = None

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def join_projects(self, project: str = "proj_sandbox") -> None:
        """From now on keys of this project see all files and batches, like a key of several projects."""
        world = self._running
        world.files.join_projects(project)
        world.batches.join_projects(project)

    def reset(self) -> None:
        """Remove files, batches, faults, calls and ledger, and reset the clock."""
        self._running.reset()

    @property
    def _running(self) -> World:
        if self._world is None:
            raise RuntimeError("the sandbox is not running: use `with Sandbox() as sandbox:` or call start()")
        return self._world

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._socket is None:
            raise RuntimeError("the sandbox is not running")
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The server's URL, without `/v1`; admin routes are under `{url}/sandbox`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._address[0], self._address[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The `base_url` for an OpenAI client."""
        return f"{self.url}/v1"

    @property
    def clock(self) -> Clock:
        """The clock; `clock.advance(seconds)` moves it."""
        return self._running.clock

    @property
    def faults(self) -> Faults:
        """The faults; `faults.add("status", route="POST /v1/batches", status=503, times=2)`."""
        return self._running.faults

    @property
    def quotas(self) -> Quotas:
        """What is in the queue of each model, and how often it was full."""
        return self._running.quotas

    @property
    def ledger(self) -> Ledger:
        """What was billed, per row."""
        return self._running.ledger

    @property
    def calls(self) -> CallLog:
        """The API calls received."""
        return self._running.calls

    @property
    def files(self) -> FileStore:
        """The stored files."""
        return self._running.files

    @property
    def webhooks(self) -> Webhooks:
        """The webhooks; `webhooks.deliveries` has every try."""
        return self._running.webhooks

    @property
    def batches(self) -> Batches:
        """The batches; `batches.end(id, "expired")` forces an end, `batches.wait(id)` waits for one."""
        return self._running.batches


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # of clients that were killed, or hang
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)  # the loop closes their sockets


def serve(
    port: int = 8089,
    host: str = "127.0.0.1",
    *,
    ready_file: Path | str | None = None,
    on_ready: Callable[[Sandbox], None] | None = None,
    faults: Iterable[Fault] = (),
    stop: threading.Event | None = None,
    **options: Unpack[OptionArgs],
) -> None:
    """Run a sandbox until SIGINT or SIGTERM (or until `stop` is set).

    When it listens, its base URL is written to `ready_file` and `on_ready` is called.
    """
    stop = stop or threading.Event()
    with _stopped_by_signals(stop), Sandbox(port=port, host=host, **options) as sandbox:
        for fault in faults:
            sandbox.faults.add(fault)
        if ready_file is not None:
            _write_ready(Path(ready_file), sandbox.base_url)
        if on_ready is not None:
            on_ready(sandbox)
        stop.wait()


class _stopped_by_signals:  # noqa: N801 - reads as a phrase in `with`
    """Let SIGINT and SIGTERM set an event, as far as this is the main thread."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _write_ready(path: Path, base_url: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(f"{base_url}\n")
    os.replace(part, path)  # readers see all of the file or none


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle off for such sockets only (40 ms per call otherwise).
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(2048)
    except BaseException:
        bound.close()
        raise
    return bound
