"""The SDK's transport: each call counted, and made safe against answers that would spoil it or later calls."""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy
from typing import Any

#: Told of each call: account, route, HTTP status or ``error``, seconds.
Count = Callable[[str, str, str, float], None]


def uncounted(account: str, route: str, status: str, seconds: float) -> None:
    """Nobody counts the calls."""


def http_client(owner: object, count: Callable[[str, str, float], None], *, follow_redirects: bool) -> Any:
    """The SDK's transport, made safe against answers that would spoil it or later calls. It ends with its owner."""
    import openai

    http: Any = openai.DefaultHttpxClient(follow_redirects=follow_redirects, event_hooks={"response": [_as_utf8]})
    http.send = _counted(http.send, count)
    http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # one odd cookie would end every later call
    weakref.finalize(owner, http.close).atexit = False  # a forked child must not end its parent's connections
    return http


#: A call's path, whatever stands before it in the address.
_ROUTE = re.compile(r"/(files|batches)(/[^/]+)?(/content|/cancel)?/?$")


def _route(method: str, path: str) -> str:
    """A call without the ids in it."""
    if (found := _ROUTE.search(path)) is None:
        return "other"
    return f"{method} /{found[1]}{'/{id}' if found[2] else ''}{found[3] or ''}"


def _counted(send: Callable[..., Any], count: Callable[[str, str, float], None]) -> Callable[..., Any]:
    """Counts each call when its answer begins, or fails to come."""

    def send_and_count(request: Any, **options: Any) -> Any:
        begun, status = time.monotonic(), "error"
        try:
            answer = send(request, **options)
            status = str(answer.status_code)
            return answer
        finally:
            count(_route(request.method, request.url.path), status, time.monotonic() - begun)

    return send_and_count


def _as_utf8(response: Any) -> None:
    """Texts are read by the charset that an answer claims, which may be no text encoding at all."""
    response.encoding = "utf-8"
