"""What every API call goes through: path shapes, the call log, the key, and the faults of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from typing import Any, cast

import orjson
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchpipe.sandbox.calls import Call
from batchpipe.sandbox.errors import ApiError, error_body, error_type
from batchpipe.sandbox.faults import ANSWER_KINDS, Fault
from batchpipe.sandbox.world import World

_DEPLOYMENT = re.compile(r"^/openai/deployments/[^/]+/")
_ID = re.compile(r"^(/v1/(?:files|batches|models))/[^/]+")


def plain_path(path: str) -> tuple[str, bool]:
    """The path as OpenAI spells it, and whether it came in Azure's older shape."""
    if path.startswith("/openai/v1/"):
        return path.removeprefix("/openai"), False
    if path.startswith("/openai/"):
        return _DEPLOYMENT.sub("/v1/", path, count=1).replace("/openai/", "/v1/", 1), True
    return path, False


def route_of(method: str, path: str) -> str:
    """Method and path with the id replaced, e.g. `GET /v1/batches/{id}`."""
    return method + " " + _ID.sub(r"\1/{id}", path, count=1)


class Gate:
    """ASGI middleware around the API. Admin routes pass untouched."""

    def __init__(self, app: ASGIApp, world: World) -> None:
        self._app = app
        self._world = world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/sandbox"):
            await self._app(scope, receive, send)
            return
        path, azure = plain_path(scope["path"])
        route = route_of(scope["method"], path)
        call = self._world.calls.start(scope["method"], scope["path"], route, self._world.clock.now())
        scope = {**scope, "path": path, "raw_path": path.encode()}
        project = self._project(scope, route)
        scope["state"] = {**scope.get("state", {}), "azure": azure, "route": route, "project": project}
        with contextlib.suppress(ClientDisconnect):  # the client left in the middle of an upload
            await self._faulty(scope, receive, _Answer(send, call))

    def _project(self, scope: Scope, route: str) -> str:
        """The project of this call, which decides what it sees: the one in its header, which OpenAI's SDK sends."""
        if self._world.faults.changes_project(route, f"{scope['method']} {scope['path']}"):
            return "proj_other"
        named = dict(scope["headers"]).get(b"openai-project", b"")
        return str(named.decode("latin-1")) or "proj_sandbox"

    async def _faulty(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        faults = self._world.faults.for_call(scope["state"]["route"], f"{scope['method']} {scope['path']}")
        for fault in faults:
            if fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
        false = next((fault for fault in faults if fault.kind in ANSWER_KINDS), None)
        if false is not None:
            await self._answer_falsely(false, scope, receive, answer)
            return
        send: Send = answer
        cut = None
        for fault in faults:
            if fault.kind == "delay_after":
                send = _Late(send, fault.seconds)
            elif fault.kind == "drip":
                send = _Drip(send, fault, scope)
            elif fault.kind == "truncate":
                send = cut = _Cut(send, fault, scope)
            elif fault.kind == "slow_upload":
                receive = _Slow(receive, fault)
            elif fault.kind == "no_range":
                scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}
        await self._carry_out(scope, receive, send)
        if cut is not None and cut.broken:
            await _until_gone(receive)

    async def _answer_falsely(self, fault: Fault, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if _is_processed(fault):
            await self._carry_out(scope, receive, _swallow)
        elif fault.kind != "drop_before":
            await _drain(receive)
        if fault.kind in ("drop_before", "drop_after"):
            await _drop(scope, receive)
        else:
            await answer.send_all(*_false_answer(fault))

    async def _carry_out(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._check_key(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _drain(receive)
            await send_json(send, refusal.status, refusal.body())

    def _check_key(self, scope: Scope) -> ApiError | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        key = headers.get(b"authorization", "").removeprefix("Bearer").strip() or headers.get(b"api-key", "").strip()
        if not key:
            return ApiError(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header "
                "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        allowed = self._world.options.api_keys
        if allowed is not None and key not in allowed:
            return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        return None


class _Answer:
    """The way out: adds OpenAI's headers and notes the status in the call log."""

    def __init__(self, send: Send, call: Call) -> None:
        self._send = send
        self._call = call
        self._began = time.monotonic()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._call.status = message["status"]
            spent = int((time.monotonic() - self._began) * 1000)
            extra = [
                (b"x-request-id", b"req_" + uuid.uuid4().hex.encode()),
                (b"openai-version", b"2020-10-01"),
                (b"openai-processing-ms", str(spent).encode()),
            ]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await self._send(message)

    async def send_all(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Send a whole answer."""
        await self(_start(status, body, headers))
        await self({"type": "http.response.body", "body": body})


class _Late:
    """Holds the answer back; the request has been carried out by then."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await asyncio.sleep(self._seconds)
        await self._send(message)


class _Drip:
    """Sends a body `bytes` by `bytes`, each after `seconds`, as long as the client listens."""

    def __init__(self, send: Send, fault: Fault, scope: Scope) -> None:
        self._send = send
        self._fault = fault
        self._scope = scope

    async def __call__(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body, step = message.get("body", b""), self._fault.bytes or 1
        for start in range(0, len(body), step):
            if transport_of(self._scope).is_closing():
                return
            await asyncio.sleep(self._fault.seconds)
            await self._send({**message, "body": body[start : start + step], "more_body": True})
        await self._send({**message, "body": b""})


class _Slow:
    """Reads a request slowly: `bytes` of it in `seconds`."""

    def __init__(self, receive: Receive, fault: Fault) -> None:
        self._receive = receive
        self._fault = fault

    async def __call__(self) -> Message:
        message = await self._receive()
        if size := len(message.get("body", b"")):
            await asyncio.sleep(self._fault.seconds * size / (self._fault.bytes or 1))
        return message


class _Cut:
    """Cuts a body: "short" breaks the connection in the middle, "clean" pretends that this was all."""

    def __init__(self, send: Send, fault: Fault, scope: Scope) -> None:
        self._send = send
        self._fault = fault
        self._scope = scope
        self._left = 0
        self._done = False
        self.broken = False

    async def __call__(self, message: Message) -> None:
        if self._done:
            return
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        body = message.get("body", b"")
        piece = body[: self._left]
        self._left -= len(piece)
        ends = len(piece) < len(body) or not message.get("more_body", False)
        self._done = ends
        if not ends or self._fault.mode == "clean" or len(piece) == len(body):
            await self._send({"type": "http.response.body", "body": piece, "more_body": not ends})
            return
        if piece:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self.broken = True
        transport_of(self._scope).close()  # after what is still in its buffer

    async def _start(self, message: Message) -> None:
        headers = dict(message["headers"])
        length = int(headers.get(b"content-length", b"0"))
        share = 0.5 if self._fault.fraction is None else self._fault.fraction
        self._left = min(length, self._fault.bytes if self._fault.bytes is not None else int(length * share))
        if self._fault.mode == "clean":
            headers[b"content-length"] = str(self._left).encode()
            message = {**message, "headers": list(headers.items())}
        await self._send(message)


def transport_of(scope: Scope) -> asyncio.Transport:
    """The connection of a request (put there by `server.Protocol`)."""
    return cast(asyncio.Transport, scope["state"]["transport"])


async def send_json(send: Send, status: int, document: object) -> None:
    """Send a JSON answer."""
    body = orjson.dumps(document)
    await send(_start(status, body, []))
    await send({"type": "http.response.body", "body": body})


def _start(status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> Message:
    length = (b"content-length", str(len(body)).encode())
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", b"application/json"), length, *headers],
    }


def _is_processed(fault: Fault) -> bool:
    # A broken 200 means that the server accepted the request; an error status or a made-up answer proves nothing.
    if fault.kind in ("drop_before", "drop_after"):
        return fault.kind == "drop_after"
    return fault.processed if fault.processed is not None else fault.kind == "malformed"


def _false_answer(fault: Fault) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    if fault.kind == "malformed":
        return 200, b'{"id": "batch_', []
    if fault.kind == "replace":
        return fault.status or 200, orjson.dumps(fault.json), []
    status = fault.status or 500
    message = fault.message or f"The sandbox was told to answer {status}."
    document: dict[str, Any] = error_body(message, type=error_type(status), code=fault.code)
    body = orjson.dumps(document) if fault.body is None else fault.body.encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
    if fault.retry_after is not None:
        headers.append((b"retry-after", f"{fault.retry_after:g}".encode()))
    return status, body, headers


async def _swallow(message: Message) -> None:
    """An answer that is sent to nobody."""


async def _drain(receive: Receive) -> None:
    """Read the request to its end, so that the client is done sending before it is answered."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


async def _drop(scope: Scope, receive: Receive) -> None:
    """Break the connection without an answer."""
    transport_of(scope).abort()
    await _until_gone(receive)


async def _until_gone(receive: Receive) -> None:
    # Only when the web server knows of the closed connection does it accept that there is no answer.
    while (await receive())["type"] != "http.disconnect":
        pass
