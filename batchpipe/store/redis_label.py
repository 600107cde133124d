"""The label of one Redis and prefix, to tell which one a job belongs to: without secrets, and stable over restarts."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from batchpipe.config.settings import Settings
from batchpipe.local_redis.shared import read_record

#: How long another Redis is given to accept a connection.
ANSWER_SECONDS = 2.0

#: A label: the address of the Redis, one space, the prefix of its keys. A space in either is written %20.
_LABEL = re.compile(r"(?P<place>\S+) (?P<prefix>\S*)")
_PRIVATE = re.compile(r"private\((?P<machine>[^)]*)\):(?P<path>.+)")
_SOCKET = re.compile(r"unix\((?P<machine>[^)]*)\):(?P<path>.+)/[^/]*")
_LOOPBACK = re.compile(r"localhost\((?P<machine>[^)]*)\):(?P<port>\d+)/[^/]*")
_NETWORK = re.compile(r"\[?(?P<host>[^\s/\]]+)\]?:(?P<port>\d+)/[^/]*")


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


def answers(label: str) -> bool | None:
    """Whether there is a Redis at the address of a label; None if that cannot be known from here."""
    parts = _LABEL.fullmatch(label)
    place = parts["place"] if parts else ""
    for pattern in (_PRIVATE, _SOCKET, _LOOPBACK):
        if (found := pattern.fullmatch(place)) is None:
            continue
        if found["machine"] != _machine():
            return None
        if pattern is _PRIVATE:  # its server runs only while it is used: it exists as long as its data do
            return _is_there(os.path.join(unquote(found["path"]), "redis", "data.json"))
        return _accepts("localhost", int(found["port"])) if pattern is _LOOPBACK else _listens(unquote(found["path"]))
    found = _NETWORK.fullmatch(place)
    return _accepts(unquote(found["host"]), int(found["port"])) if found is not None else None


def _is_private(url: str, home: Path) -> bool:
    """The worker of a ``run`` may have got its address by a setting; the keeper's record tells."""
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


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), ANSWER_SECONDS):
            return True
    except (OSError, ValueError, OverflowError):  # not a valid port
        return False


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_SECONDS)
        try:
            client.connect(path)
        except OSError:
            return False
        return True


def _is_there(path: str) -> bool | None:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # of another user
        return None
    return True
