"""The SDK's transport: each call counted, and made safe against answers that would spoil it or later calls."""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any

from batchpipe.config.environment import transport_environment
from batchpipe.errors import SettingsError

#: Called for each call with account, route, HTTP status or ``error``, seconds.
Count = Callable[[str, str, str, float], None]


def uncounted(account: str, route: str, status: str, seconds: float) -> None:
    """The default: calls are not counted."""


def http_client(owner: object, count: Callable[[str, str, float], None], *, follow_redirects: bool) -> Any:
    """The SDK's transport, made safe against answers that would spoil it or later calls. It ends with its owner.

    Raises SettingsError, which names the variable, if values of the environment prevent it.
    """
    import openai

    try:
        http: Any = openai.DefaultHttpxClient(follow_redirects=follow_redirects, event_hooks={"response": [_as_utf8]})
    except Exception as error:  # each library that reads the environment raises its own errors
        raise SettingsError(_blamed(error, transport_environment())) from None  # it may quote a proxy's password
    http.send = _counted(http.send, count)
    http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # one odd cookie would end every later call
    weakref.finalize(owner, http.close).atexit = False  # a forked child must not end its parent's connections
    return http


def _blamed(error: Exception, environment: Mapping[str, str]) -> str:
    """Which variable prevents the HTTP client, and what to do. Values of proxies are not shown."""
    proxies = [name for name in environment if name.upper().endswith("_PROXY")]
    socks = [name for name in proxies if environment[name].lower().startswith("socks")]
    files = [name for name in environment if name.upper() == "SSL_CERT_FILE"]  # the folder is not read beside one
    certificates = {name: environment[name] for name in files or environment if name.upper().startswith("SSL_")}
    for name, value in certificates.items():
        if not os.path.exists(value):
            what = "folder" if name.upper().endswith("DIR") else "file"
            return f"{name}: there is no {what} {value}: name one with certificates (PEM), or unset it"
    if socks and isinstance(error, ImportError):
        return f"{', '.join(socks)}: a SOCKS proxy needs a package that is missing: pip install socksio, or unset it"
    if certificates and isinstance(error, OSError):  # as are errors of ssl
        found = ", ".join(f"{name} ({value})" for name, value in certificates.items())
        return f"{found}: holds no certificates that can be read ({type(error).__name__}): correct or unset it"
    if proxies:
        kind = type(error).__name__
        return f"{', '.join(proxies)}: no proxy that can be used ({kind}): write http://HOST:PORT, or unset it"
    return f"the HTTP client cannot be made: {type(error).__name__}: {error}"


#: A call's path, with any prefix in the address.
_ROUTE = re.compile(r"/(files|batches)(/[^/]+)?(/content|/cancel)?/?$")


def _route(method: str, path: str) -> str:
    """The route of a call, without ids."""
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
    """The SDK decodes texts by the charset that an answer claims, which may not be a text encoding."""
    response.encoding = "utf-8"
