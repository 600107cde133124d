"""An HTTP server on loopback that answers exactly what it is told, byte for byte, however wrong that is."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One request as it came; its body is whole."""

    method: str
    target: str  #: path and query
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What goes back. Without ``raw`` it is a proper HTTP message, but for what the headers claim."""

    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    length: int | None = None  #: what Content-Length claims instead of the truth; -1: no such header
    cut: int | None = None  #: only so many bytes of the message go out, then the connection ends
    reset: bool = False  #: it ends by RST, not FIN
    raw: bytes | None = None  #: the whole message, as it is

    @property
    def is_proper(self) -> bool:
        """The connection can be used again afterwards."""
        return self.raw is None and self.cut is None and self.length is None and not self.reset

    def message(self) -> bytes:
        if self.raw is not None:
            return self.raw[: self.cut]
        lines = [b"HTTP/1.1 %d Whatever" % self.status]
        lines += [name + b": " + value for name, value in self.headers]
        length = len(self.body) if self.length is None else self.length
        has_body = self.status >= 200 and self.status not in (204, 304)
        if length >= 0 and has_body and not any(name.lower() == b"transfer-encoding" for name, _ in self.headers):
            lines.append(b"Content-Length: %d" % length)
        whole = b"\r\n".join(lines) + b"\r\n\r\n" + (self.body if has_body else b"")
        return whole[: self.cut]


class Wire:
    """The server. ``answer`` is called for each request, in the thread of its connection.

    What ``answer`` raises is kept in ``broken``, for a mistake in a test must not look like a bad answer.
    """

    def __init__(self) -> None:
        self.answer: Callable[[Request], Answer] = lambda request: Answer(404, body=b"{}")
        self.broken: list[BaseException] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._quiet = threading.Condition()
        self._busy: set[socket.socket] = set()
        self._start(self._accept)

    def close(self) -> None:
        for opened in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(connection)
                self._start(lambda connection=connection: self._serve(connection))  # type: ignore[misc]

    def settle(self) -> None:
        """Wait until every connection that an answer ended is closed: the next call must not meet a dying one."""
        with self._quiet:
            self._quiet.wait_for(lambda: not self._busy)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError, ValueError):
                while (request := _read(stream)) is not None:
                    self._note(connection, busy=True)
                    if not self._respond(connection, request):
                        return
                    self._note(connection, busy=False)
        finally:
            self._open.discard(connection)
            self._note(connection, busy=False)

    def _respond(self, connection: socket.socket, request: Request) -> bool:
        """Whether the connection goes on."""
        try:
            answer = self.answer(request)
        except BaseException as error:
            self.broken.append(error)
            return False
        with contextlib.suppress(OSError):
            connection.sendall(answer.message())
        if answer.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return answer.is_proper

    def _note(self, connection: socket.socket, *, busy: bool) -> None:
        with self._quiet:
            (self._busy.add if busy else self._busy.discard)(connection)
            self._quiet.notify_all()


def _read(stream: socket.SocketIO | object) -> Request | None:
    """The next request, None where the connection ends."""
    readline, read = stream.readline, stream.read  # type: ignore[union-attr]
    first: bytes = readline()
    if not first.strip():
        return None
    method, target, _ = first.decode("latin-1").split(" ", 2)
    headers = dict(_headers(readline))
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join(_chunks(readline, read))
    else:
        body = read(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body)


def _headers(readline: Callable[[], bytes]) -> Iterator[tuple[str, str]]:
    while line := readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        yield name.lower(), value.strip()


def _chunks(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> Iterator[bytes]:
    while size := int(readline(), 16):
        yield read(size)
        readline()
    readline()
