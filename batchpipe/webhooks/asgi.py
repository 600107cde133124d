"""An ASGI app that receives webhooks, alone or mounted into another one. Importing it loads none of our libraries."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from batchpipe.model.webhooks import MOST_BYTES
from batchpipe.webhooks.recorder import Recorder

if TYPE_CHECKING:
    from batchpipe.client.client import Client
    from batchpipe.client.webhooks import WebhookAnswer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: How long a sender may take for a body, in seconds.
BODY_SECONDS = 10.0
#: Webhooks in work at once; further ones are asked to come again.
MOST_AT_ONCE = 512


class _Gone(Exception):
    """The sender has hung up: nobody is there for an answer."""


class _TooSlow(Exception):
    """The body takes too long."""


class WebhookApp:
    """Takes ``POST /`` or ``/webhooks``, and the same with ``/ACCOUNT`` behind it, at the place where it is mounted.
    Any other path is 404; an account that has no secret is answered as one whose secret does not fit.
    """

    def __init__(self, client: Callable[[], Client] | None = None) -> None:
        """``client`` is called in a thread at the first webhook; by default it is that of the current site."""
        self._client = client
        self._recorder: Recorder | None = None
        self._starting = threading.Lock()
        self._busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        from batchpipe.client import webhooks as answers

        self._busy += 1
        try:
            if self._busy > MOST_AT_ONCE:
                answer = answers.UNAVAILABLE
            else:
                answer = await self._answer(scope, receive)
        except _Gone:
            return
        finally:
            self._busy -= 1
        await _send(send, answer)
        if self._recorder is not None:
            self._recorder.receiver.wake_soon(answer.place)

    async def _answer(self, scope: Scope, receive: Receive) -> WebhookAnswer:
        from batchpipe.client import webhooks as answers
        from batchpipe.errors import BatchpipeError

        if (account := _account_of(scope)) is None:
            return answers.refused(404, "not_found", "webhooks go to /webhooks or /webhooks/ACCOUNT")
        if scope["method"] != "POST":
            return answers.ONLY_POST
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            body = await _body(headers, receive)
        except _TooSlow:
            return answers.TOO_SLOW
        if body is None:
            return answers.TOO_LARGE
        try:
            recorder = self._recorder if self._recorder is not None else await asyncio.to_thread(self._start)
        except BatchpipeError as error:
            return answers.out_of_order(error)
        checked = recorder.receiver.check(body, headers, account or None)
        return checked if isinstance(checked, answers.WebhookAnswer) else await recorder.record(checked)

    def _start(self) -> Recorder:
        """Raises BatchpipeError: settings that are wrong."""
        from batchpipe.client.client import default_client

        with self._starting:
            if self._recorder is None:
                client = self._client or default_client
                self._recorder = Recorder(client().webhooks())
            return self._recorder


def _account_of(scope: Scope) -> str | None:
    """The account that the path names; "": none; None: it is no path of ours."""
    path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["webhooks"]:
        parts = parts[1:]
    return None if len(parts) > 1 else parts[0] if parts else ""


async def _body(headers: dict[str, str], receive: Receive) -> bytes | None:
    """None if it is too large: then it is not read to its end. Raises _Gone, _TooSlow."""
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and (len(length) > 9 or int(length) > MOST_BYTES):
        return None
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise _Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MOST_BYTES:
                    return None
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise _TooSlow from None


async def _send(send: Send, answer: WebhookAnswer) -> None:
    body = json.dumps(answer.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"cache-control", b"no-store"))
    if answer.status == 405:
        headers.append((b"allow", b"POST"))
    if answer.status in (408, 413):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    """The server starts and stops; there is nothing to do."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
