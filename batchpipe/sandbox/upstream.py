"""Rows answered by a real OpenAI-compatible server: bounded concurrency, bounded retries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from batchpipe.sandbox.errors import error_body
from batchpipe.sandbox.options import Options

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)
T = TypeVar("T")

_RETRIED = frozenset({408, 409, 429})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 20.0


def join_url(base: str, url: str) -> str:
    """The row's URL at the upstream; a `/v1` that both have is not doubled."""
    base = base.rstrip("/")
    return base + (url.removeprefix("/v1") if base.endswith("/v1") else url)


class Upstream:
    """Sends rows to `options.upstream`, at most `upstream_concurrency` of them at a time over all batches."""

    def __init__(self, options: Options) -> None:
        import httpx2  # here, because only this mode needs it

        assert options.upstream is not None
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL)
        self._base = options.upstream
        self._tries = options.upstream_tries
        self._closing = threading.Event()
        headers = {"authorization": f"Bearer {options.upstream_api_key}"} if options.upstream_api_key else {}
        self._client = httpx2.Client(timeout=options.upstream_timeout, headers=headers)
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # Daemon threads of our own: an executor would delay the exit until a hanging upstream times out.
        for number in range(options.upstream_concurrency):
            threading.Thread(target=self._work, name=f"sandbox-upstream-{number}", daemon=True).start()
        #: Rows a batch has under way or waiting; more than the pool, so that it never runs dry.
        self.window = 2 * options.upstream_concurrency

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run something in one of the threads."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)  # the edge of the thread: the waiting thread gets the error

        self._queue.put(run)
        return future

    def _work(self) -> None:
        while not self._closing.is_set():
            self._queue.get()()

    def answer(self, url: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Ask the upstream; tries again on 408, 409, 429, 5xx and broken connections."""
        pause = _FIRST_PAUSE
        for left in reversed(range(self._tries)):
            status, answer, wished = self._ask(url, body)
            if left == 0 or (status < 500 and status not in _RETRIED):
                break
            if self._closing.wait(min(wished if wished is not None else pause, _LONGEST_PAUSE)):
                break
            pause *= 2
        return status, answer

    def _ask(self, url: str, body: dict[str, Any]) -> tuple[int, Any, float | None]:
        target = join_url(self._base, url)
        try:
            response = self._client.post(target, json=body)
        except self._errors as error:
            logger.warning("the upstream did not answer %s: %r", url, error)
            message = f"The upstream did not answer: {type(error).__name__}: {error}"
            return 502, error_body(message, type="server_error", code="upstream_unreachable"), None
        return *_document(response), _retry_after(response)

    def close(self) -> None:
        """Start no more calls, and do not wait for those that run."""
        self._closing.set()
        for _ in range(self.window):
            self._queue.put(lambda: None)  # wakes a thread that has nothing to do
        self._client.close()


def _document(response: httpx2.Response) -> tuple[int, Any]:
    try:
        return response.status_code, response.json()
    except ValueError:
        # An HTML page of a proxy, say. A 200 without JSON is not an answer.
        status = response.status_code if response.status_code >= 400 else 502
        text = response.text[:1000]
        return status, error_body(text, type="server_error", code="upstream_not_json")


def _retry_after(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
