"""The process of ``batchpipe webhooks``: one small web server, with bounds on what a stranger can hold."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from batchpipe.webhooks.asgi import WebhookApp

if TYPE_CHECKING:
    from batchpipe.client.client import Client

#: A connection without a request under way is closed after so long, in seconds.
IDLE_SECONDS = 20.0
#: Connections at once; further ones get 503.
MOST_CONNECTIONS = 1_000
#: How long those under way may take when the server stops, in seconds.
STOP_SECONDS = 5


class _Protocol(H11Protocol):
    """Closes a connection that sends no whole request: uvicorn waits for ever for the first one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def _watch(self) -> None:
        self._timer = self.loop.call_later(IDLE_SECONDS, self._look, self.cycle)

    def _look(self, before: object) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is before and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class WebhookServer:
    """Listens from ``start`` to ``stop``, in a thread of this process."""

    def __init__(self, client: Callable[[], Client], host: str, port: int) -> None:
        """Raises OSError if the address is taken."""
        self._socket = _bind(host, port)
        self.app = WebhookApp(client)
        config = uvicorn.Config(
            self.app,
            http=_Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="webhooks", daemon=True)

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def start(self) -> None:
        self._thread.start()
        self._server.ready.wait(10)

    def stop(self) -> None:
        """What is under way is answered first, for some seconds."""
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS + 5)
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle off for such sockets only.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(1024)
    except BaseException:
        bound.close()
        raise
    return bound
