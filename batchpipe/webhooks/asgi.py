"""An ASGI app that receives webhooks, alone or mounted into another one. Importing it loads none of our libraries."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from batchpipe.model.webhooks import MOST_BYTES

if TYPE_CHECKING:
    from batchpipe.client.client import Client
    from batchpipe.client.webhooks import Place, WebhookAnswer, WebhookReceiver

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: How long a sender may take for a body, in seconds.
BODY_SECONDS = 10.0
#: Webhooks in work at once; further ones are asked to come again. Redis is asked by so many threads.
MOST_AT_ONCE, THREADS = 512, 8
#: Shards that wait to be woken; more are left to the sweep, which publishes many at a time.
MOST_TO_WAKE = 100


class _Gone(Exception):
    """The sender has hung up, or takes too long."""


class WebhookApp:
    """Takes ``POST /`` or ``/webhooks``, and the same with ``/ACCOUNT`` behind it, at the place where it is mounted."""

    def __init__(self, client: Callable[[], Client] | None = None) -> None:
        """``client`` is called in a thread at each webhook; by default it is that of the current site."""
        self._client = client
        self._busy = 0
        self._to_wake = 0
        self._recorders = ThreadPoolExecutor(THREADS, "webhook")
        self._waker = ThreadPoolExecutor(1, "webhook-wake")

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
        if answer.place is not None:
            self._wake(answer.place)

    async def _answer(self, scope: Scope, receive: Receive) -> WebhookAnswer:
        from batchpipe.client import webhooks as answers

        if (account := _account_of(scope)) is None:
            return answers.refused(404, "not_found", "webhooks go to /webhooks or /webhooks/ACCOUNT")
        if scope["method"] != "POST":
            return answers.ONLY_POST
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        body = await _body(headers, receive)
        if body is None:
            return answers.TOO_LARGE
        work = self._recorders.submit(self._receive, body, headers, account or None)
        return await asyncio.wrap_future(work)

    def _receiver(self) -> WebhookReceiver:
        """Raises BatchpipeError: settings that are wrong."""
        if self._client is not None:
            return self._client().webhooks()
        from batchpipe.client.client import default_client

        return default_client().webhooks()

    def _receive(self, body: bytes, headers: dict[str, str], account: str | None) -> WebhookAnswer:
        from batchpipe.client import webhooks as answers
        from batchpipe.errors import BatchpipeError

        try:
            return self._receiver().receive(body, headers, account)
        except BatchpipeError as error:
            return answers.out_of_order(error)

    def _wake(self, place: Place) -> None:
        if self._to_wake < MOST_TO_WAKE:
            self._to_wake += 1
            self._waker.submit(self._woken, place)

    def _woken(self, place: Place) -> None:
        try:
            self._receiver().wake(place)
        finally:
            self._to_wake -= 1  # only this one thread does so, and being off by a few does no harm


def _account_of(scope: Scope) -> str | None:
    """The account that the path names; "": none; None: it is no path of ours."""
    path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["webhooks"]:
        parts = parts[1:]
    return None if len(parts) > 1 else parts[0] if parts else ""


async def _body(headers: dict[str, str], receive: Receive) -> bytes | None:
    """None if it is too large: then it is not read to its end. Raises _Gone."""
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
        raise _Gone from None


async def _send(send: Send, answer: WebhookAnswer) -> None:
    body = json.dumps(answer.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"cache-control", b"no-store"))
    if answer.status == 405:
        headers.append((b"allow", b"POST"))
    if answer.status == 413:
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
