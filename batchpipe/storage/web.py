"""Inputs on the web: each redirect is checked, unpacking is limited, and no read lasts for ever."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec.asyn
import yarl
from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector

from batchpipe.errors import InvalidInput, StorageTrouble
from batchpipe.storage.addresses import PublicResolver, check_literal
from batchpipe.storage.patience import wait
from batchpipe.storage.rules import InputRules

MAX_HOPS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
#: Small responses may expand without a limit.
_FREE_EXPANSION = 1 << 20
_BLOCK = 1 << 16
_T = TypeVar("_T")

Allowed = Callable[[str], bool]


class WebFile:
    """The body of a response, read as it comes. Raises what aiohttp raises, InvalidInput, and what ``tick`` raises."""

    def __init__(self, session: ClientSession, answer: ClientResponse, rules: InputRules, url: str) -> None:
        self._session, self._answer = session, answer
        self._decode = _Decoder(answer.headers.get("Content-Encoding", ""), rules.most_expansion, url)

    def read(self, size: int, tick: Callable[[], None]) -> bytes:
        """The next bytes, at most ``size``; empty at the end. ``tick`` is called every second."""
        while True:
            if data := self._decode.take(size):
                return data
            most = size if self._decode.plain else _BLOCK
            data = _run(self._answer.content.read(most), tick)
            if self._decode.plain:
                return data
            if not data:
                self._decode.end()
                return self._decode.take(size)
            self._decode.feed(data)

    def close(self) -> None:
        self._answer.close()
        _run(self._session.close(), _never)


def open_web(url: str, options: Any, rules: InputRules, allowed: Allowed, tick: Callable[[], None]) -> WebFile:
    """Opens it by a single GET, as not every site allows more. ``options``: fsspec's filesystem, with its settings."""
    session, answer = _run(_ask("GET", url, options, rules, allowed), tick)
    try:
        return WebFile(session, answer, rules, url)
    except BaseException:
        answer.close()
        _run(session.close(), _never)
        raise


def web_size(url: str, options: Any, rules: InputRules, allowed: Allowed, tick: Callable[[], None]) -> int | None:
    """Bytes of the response, None if the site does not tell; uses GET if HEAD is not answered."""
    return _run(_size(url, options, rules, allowed), tick)


async def _size(url: str, options: Any, rules: InputRules, allowed: Allowed) -> int | None:
    try:
        size = await _size_by("HEAD", url, options, rules, allowed)
    except InvalidInput:
        raise
    except Exception:
        size = None
    return size if size is not None else await _size_by("GET", url, options, rules, allowed)


async def _size_by(method: str, url: str, options: Any, rules: InputRules, allowed: Allowed) -> int | None:
    session, answer = await _ask(method, url, options, rules, allowed)
    try:
        length = answer.headers.get("Content-Length", "")
        plain = answer.headers.get("Content-Encoding", "identity").lower() == "identity"
        return int(length) if plain and length.isdecimal() else None
    finally:
        answer.close()
        await session.close()


async def _ask(
    method: str, url: str, options: Any, rules: InputRules, allowed: Allowed
) -> tuple[ClientSession, ClientResponse]:
    kwargs = {**options.client_kwargs, "auto_decompress": False}
    kwargs.setdefault("timeout", ClientTimeout(total=None, sock_connect=30, sock_read=60))
    if rules.public_only:
        kwargs |= {"connector": TCPConnector(resolver=PublicResolver()), "trust_env": False}
    session = ClientSession(**kwargs)
    try:
        answer = await _follow(session, method, options.encode_url(url), dict(options.kwargs), rules, allowed)
        try:
            if answer.status == 404:
                raise FileNotFoundError(url)
            answer.raise_for_status()
        except BaseException:
            answer.close()
            raise
    except BaseException:
        await session.close()
        raise
    return session, answer


async def _follow(
    session: ClientSession, method: str, here: yarl.URL, kwargs: dict[str, Any], rules: InputRules, allowed: Allowed
) -> ClientResponse:
    """The response at the end of all redirects. Raises InvalidInput (``not_allowed``) before a forbidden one."""
    kwargs["headers"] = {**(kwargs.get("headers") or {}), "Accept-Encoding": "identity"}
    for _ in range(MAX_HOPS):
        _check_hop(str(here), rules, allowed)
        answer = await session.request(method, here, **{**kwargs, "allow_redirects": False})
        where = answer.headers.get("Location")
        if answer.status not in _REDIRECTS or not where:
            return answer
        answer.close()
        there = here.join(yarl.URL(where))
        if there.origin() != here.origin():  # credentials for one site are not sent to another
            kwargs.pop("auth", None)
            secret = ("authorization", "cookie", "proxy-authorization")
            kwargs["headers"] = {name: text for name, text in kwargs["headers"].items() if name.lower() not in secret}
        here = there
    raise InvalidInput(f"{here.host}: more than {MAX_HOPS} redirects", field="input", code="input_unusable")


def _check_hop(url: str, rules: InputRules, allowed: Allowed) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"{url}: no URL of the web", field="input", code="url_unknown")
    if not allowed(url):
        message = f"the input leads to {url}, which does not lie under an allowed root"
        raise InvalidInput(message, field="input", code="not_allowed")
    if rules.public_only:
        check_literal(parts.hostname)


class _Decoder:
    """The body, unpacked if the site sent it compressed without being asked; never more than was requested."""

    def __init__(self, encoding: str, most: float, url: str) -> None:
        encoding = encoding.strip().lower()
        self.plain = encoding in ("", "identity")
        if not self.plain and encoding not in ("gzip", "x-gzip", "deflate"):
            raise InvalidInput(f"{url}: is sent as {encoding[:50]}, which is not read", code="input_encoding")
        self._most, self._url = most, url
        self._inflate = zlib.decompressobj(47)
        self._packed, self._given, self._taken = b"", 0, 0

    def feed(self, data: bytes) -> None:
        self._packed += data
        self._given += len(data)

    def take(self, size: int) -> bytes:
        if self.plain:
            return b""
        if self._inflate.eof and self._packed:  # several members, one after the other
            self._inflate = zlib.decompressobj(47)
        try:
            data = self._inflate.decompress(self._packed, size)
        except zlib.error as error:
            raise InvalidInput(
                f"{self._url}: is sent compressed, and damaged ({error})", code="input_encoding"
            ) from None
        self._packed = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        self._taken += len(data)
        if self._most and self._taken > max(self._most * self._given, _FREE_EXPANSION):
            message = f"{self._url}: grows to more than {self._most:g} times what is sent; see MAX_EXPANSION"
            raise InvalidInput(message, code="input_too_large")
        return data

    def end(self) -> None:
        """The end has come, so the compressed data must be complete."""
        if not self._inflate.eof and self._given and not self._packed:
            raise StorageTrouble(f"{self._url}: the answer was cut short", code="input_unreachable")


def _run(work: Coroutine[Any, Any, _T], tick: Callable[[], None]) -> _T:
    return wait(asyncio.run_coroutine_threadsafe(work, fsspec.asyn.get_loop()), tick)


def _never() -> None:
    """The default: do nothing."""
