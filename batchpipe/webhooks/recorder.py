"""Records webhooks for an event loop: what comes while others are being recorded goes to Redis together after that."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from batchpipe.client.webhooks import WebhookAnswer, WebhookReceiver
    from batchpipe.model.webhooks import Signed

#: Webhooks that are recorded together, at most: a few milliseconds of Redis.
TOGETHER = 64


class _Waiting(NamedTuple):
    event: Signed
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[WebhookAnswer]


class Recorder:
    """One thread with one connection to Redis."""

    def __init__(self, receiver: WebhookReceiver) -> None:
        self.receiver = receiver
        self._queue: SimpleQueue[_Waiting] = SimpleQueue()
        threading.Thread(target=self._work, name="webhook-recorder", daemon=True).start()

    async def record(self, event: Signed) -> WebhookAnswer:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(event, loop, loop.create_future())
        self._queue.put(waiting)
        return await waiting.answer

    def _work(self) -> None:
        while True:
            some = [self._queue.get()]
            while len(some) < TOGETHER:
                try:
                    some.append(self._queue.get_nowait())
                except Empty:
                    break
            try:
                answers = self.receiver.record([waiting.event for waiting in some])
            except Exception as error:  # the edge of the thread: whoever waits gets the error
                for waiting in some:
                    _call(waiting, waiting.answer.set_exception, error)
            else:
                for waiting, answer in zip(some, answers, strict=True):
                    _call(waiting, waiting.answer.set_result, answer)


def _call(waiting: _Waiting, settle: Callable[[Any], None], value: Any) -> None:
    """In the loop's own thread. Whoever waited may be gone, and so may the loop."""

    def done() -> None:
        if not waiting.answer.done():
            settle(value)

    try:
        waiting.loop.call_soon_threadsafe(done)
    except RuntimeError:
        return
