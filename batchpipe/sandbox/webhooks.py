"""Webhooks of the sandbox: signed as Standard Webhooks says, sent again with growing pauses until they are taken."""

from __future__ import annotations

import base64
import hashlib
import heapq
import hmac
import itertools
import logging
import threading
import time
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException

import orjson

from batchpipe.sandbox.batches import Batch
from batchpipe.sandbox.faults import Faults

logger = logging.getLogger(__name__)

#: Pauses between two tries, in seconds: doubled each time. At most so many tries.
FIRST_PAUSE, LONGEST_PAUSE, TRIES = 0.5, 60.0, 12
#: How long an answer is waited for, and how many deliveries are under way at once.
ANSWER_SECONDS, THREADS = 15.0, 4


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The header webhook-signature. The secret is `whsec_` and a key in base64."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


@dataclass(frozen=True)
class Delivery:
    """One try that was made, and its answer; None: there was none."""

    id: str
    batch_id: str
    type: str
    at: float
    status: int | None


@dataclass
class _Waiting:
    id: str
    batch_id: str
    type: str
    body: bytes
    forged: bool
    tries: int = 0


class Webhooks:
    """Tells one URL of the ends of batches. In real time, whatever the sandbox's clock says: receivers have clocks."""

    def __init__(self, url: str | None, secret: str | None, faults: Faults) -> None:
        self.url, self._secret, self._faults = url, secret, faults
        self._changed = threading.Condition()
        self._queue: list[tuple[float, int, _Waiting]] = []
        self._count = itertools.count()
        self._closing = False
        self._deliveries: list[Delivery] = []
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))

    @property
    def deliveries(self) -> list[Delivery]:
        """All tries, in their order; of a long run the last 10,000."""
        with self._changed:
            return list(self._deliveries)

    def start(self) -> None:
        """Start the threads that deliver."""
        for number in range(THREADS if self.url else 0):
            threading.Thread(target=self._work, name=f"sandbox-webhook-{number}", daemon=True).start()

    def close(self) -> None:
        """Send no more; what is under way is not waited for."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def announce(self, batch: Batch, status: str) -> None:
        """A batch has ended, or will in a moment."""
        if self.url is None:
            return
        metadata: Mapping[str, str] = batch.metadata or {}
        if self._faults.for_batch("webhook_lost", metadata) is not None:
            return
        late = self._faults.for_batch("webhook_delay", metadata)
        forged = self._faults.for_batch("webhook_forged", metadata) is not None
        twice = self._faults.for_batch("webhook_twice", metadata)
        event = {
            "id": f"evt_{uuid.uuid4().hex}",
            "object": "event",
            "created_at": int(time.time()),
            "type": f"batch.{status}",
            "data": {"id": batch.id},
        }
        waiting = _Waiting(f"wh_{uuid.uuid4().hex}", batch.id, f"batch.{status}", orjson.dumps(event), forged)
        pause = late.fault.seconds if late is not None else 0.0
        self._put(pause, waiting)
        if twice is not None:
            self._put(pause + twice.fault.seconds, waiting)

    def _put(self, pause: float, waiting: _Waiting) -> None:
        with self._changed:
            heapq.heappush(self._queue, (time.monotonic() + pause, next(self._count), waiting))
            self._changed.notify()

    def _next(self) -> _Waiting | None:
        with self._changed:
            while not self._closing:
                left = self._queue[0][0] - time.monotonic() if self._queue else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._queue)[2]
                self._changed.wait(left)
        return None

    def _work(self) -> None:
        while (waiting := self._next()) is not None:
            status = self._deliver(waiting)
            with self._changed:
                self._deliveries.append(Delivery(waiting.id, waiting.batch_id, waiting.type, time.time(), status))
                del self._deliveries[:-10_000]
            waiting.tries += 1
            if not (status is not None and 200 <= status < 300) and waiting.tries < TRIES:
                self._put(min(FIRST_PAUSE * 2 ** (waiting.tries - 1), LONGEST_PAUSE), waiting)

    def _deliver(self, waiting: _Waiting) -> int | None:
        """The status of the answer; None: there was none."""
        now = int(time.time())
        secret = self._secret or ""
        if waiting.forged:
            secret = "whsec_" + base64.b64encode(b"somebody else's secret").decode()
        headers = {
            "content-type": "application/json",
            "user-agent": "OpenAI/1.0 (batchpipe sandbox)",
            "webhook-id": waiting.id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(secret, waiting.id, now, waiting.body),
        }
        request = urllib.request.Request(self.url or "", waiting.body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
                answer.read(65_536)
                return int(answer.status)
        except urllib.request.HTTPError as error:
            error.close()
            return error.code
        except (OSError, HTTPException) as error:
            logger.info("the receiver of webhooks did not answer: %r", error)
            return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect counts as a failure, as with OpenAI."""

    def redirect_request(self, *request: object) -> None:
        return None
