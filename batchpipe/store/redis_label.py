"""Which Redis a job belongs to: a name for one Redis and prefix, without secrets and stable over restarts."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from batchpipe.config.settings import Settings
from batchpipe.local_redis.shared import read_record


def label_of(settings: Settings) -> str:
    """The label of the Redis of these settings, such as ``redis.lan:6379/0 {batchpipe}:``.

    An address that only this machine can reach gets the machine's name: two machines that share a workspace must
    not have the same label. The private Redis is identified by its folder, because its port changes.
    """
    url = settings.redis_url.get_secret_value() if settings.redis_url is not None else None
    private = url is None or _is_private(url, settings.home)
    place = (
        f"private({_machine()}):{_plain(os.path.realpath(settings.home))}" if private else _place(urlsplit(url or ""))
    )
    return f"{place} {_plain(settings.prefix)}"


def _is_private(url: str, home: Path) -> bool:
    """The worker of a ``run`` may have got its address by a setting; the supervisor's record tells."""
    record, parts = read_record(home / "redis"), urlsplit(url)
    if record is None or not _is_loopback(parts.hostname or ""):
        return False
    return (parts.port, unquote(parts.password or "")) == (record.port, record.password)


def _place(url: SplitResult) -> str:
    asked = parse_qs(url.query).get("db")
    if url.scheme == "unix":
        return f"unix({_machine()}):{_plain(os.path.realpath(unquote(url.path)))}/{_plain(asked[0] if asked else '0')}"
    host, database = url.hostname or "", asked[0] if asked else unquote(url.path).replace("/", "")
    if _is_loopback(host):
        host = f"localhost({_machine()})"
    elif ":" in host:
        host = f"[{host}]"
    return f"{host}:{url.port or 6379}/{_plain(database or '0')}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")


def _machine() -> str:
    return _plain(socket.gethostname())


def _plain(text: str) -> str:
    return quote(text, safe="/{}:@,;=+~-._")
