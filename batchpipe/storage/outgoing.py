"""Posts to addresses that people give: only to hosts that are allowed, and not into the private network unasked.

The HTTP client is loaded with the first post: each process that submits loads this module, and few post.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from batchpipe.errors import InvalidInput, StorageTrouble

#: Seconds that a receiver gets for everything.
POST_SECONDS = 10.0
#: Bytes of an answer that are read, for the message.
_MOST_ANSWER = 500


def check_host(url: str, allowed: Sequence[str]) -> None:
    """Raises InvalidInput for an address that is not of the web, or whose host is not among ``allowed`` (none: any
    public one), as far as that shows without a look-up.
    """
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").lower(), parts.port
    except ValueError:
        parts, host = None, ""
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise InvalidInput("a target that is no name must be an http:// or https:// URL", field="notify")
    if allowed and not any(fnmatchcase(host, pattern.lower()) for pattern in allowed):
        raise InvalidInput(f"{host} is not among ALLOWED_HOSTS", field="notify", code="not_allowed")
    if _is_public_only(host, allowed):
        from batchpipe.storage.addresses import check_literal

        if host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost"):
            raise _not_public(host)
        try:
            check_literal(host)
        except InvalidInput:
            raise _not_public(host) from None


def _is_public_only(host: str, allowed: Sequence[str]) -> bool:
    """Only a host that is named in full may have a private address."""
    return host not in {one.lower() for one in allowed}


def post(url: str, body: bytes, headers: Mapping[str, str], allowed: Sequence[str]) -> int:
    """POST once, follow no redirect. Returns the HTTP status.

    A host may have a private address only if ``allowed`` names it in full. Raises InvalidInput for an address that is
    not allowed, StorageTrouble if no answer came within ``POST_SECONDS``.
    """
    import asyncio

    import aiohttp
    import fsspec.asyn

    check_host(url, allowed)
    host = (urlsplit(url).hostname or "").lower()
    work = _post(url, body, headers, public_only=_is_public_only(host, allowed))
    future = asyncio.run_coroutine_threadsafe(work, fsspec.asyn.get_loop())
    try:
        return future.result(POST_SECONDS + 5)
    except InvalidInput:
        raise _not_public(host) from None
    except TimeoutError:
        future.cancel()
        raise StorageTrouble(f"{host} did not answer within {POST_SECONDS:.0f} s", code="not_delivered") from None
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error.__cause__, InvalidInput):
            raise _not_public(host) from None
        raise StorageTrouble(f"{host} cannot be reached: {type(error).__name__}", code="not_delivered") from error


def _not_public(host: str) -> InvalidInput:
    return InvalidInput(
        f"{host} leads to an address that is not public: name it in full in BATCHPIPE_ALLOWED_HOSTS",
        field="notify",
        code="not_allowed",
    )


async def _post(url: str, body: bytes, headers: Mapping[str, str], *, public_only: bool) -> int:
    from aiohttp import ClientSession, ClientTimeout, TCPConnector

    from batchpipe.storage.addresses import PublicResolver

    connector = TCPConnector(resolver=PublicResolver()) if public_only else TCPConnector()
    timeout = ClientTimeout(total=POST_SECONDS)
    async with (
        ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
        session.post(url, data=body, headers=dict(headers), allow_redirects=False) as answer,
    ):
        await answer.content.read(_MOST_ANSWER)
        return answer.status
