"""What the commands share: the client, exit codes, printing."""

from __future__ import annotations

import errno
import io
import json
import logging
import socket
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from batchpipe.errors import InvalidInput, SettingsError, StorageTrouble, StoreUnavailable
from batchpipe.masking import printable, printable_json
from batchpipe.model.records import State

if TYPE_CHECKING:
    from batchpipe.client.client import Client
    from batchpipe.config.settings import Settings


@dataclass(frozen=True)
class Invocation:
    """How these commands were called, and so how to start further processes (the worker of a ``run``)."""

    command: tuple[str, ...] = (sys.executable, "-P", "-m", "batchpipe")
    in_site: bool = False  #: called by a site's own command line (manage.py, flask): its app is already loaded


EXIT_CODES = {State.SUCCEEDED: 0, State.FAILED: 1, State.PARTIAL: 3, State.CANCELLED: 4}
NOT_ENDED = 5
INTERRUPTED = 130


def settings() -> Settings:
    """The settings, read once per command; warns once of names that look like settings. Raises SettingsError."""
    from batchpipe.config.site import current_site

    site = current_site()
    found = site.settings
    for line in found.unknown if site.is_first_time("unknown settings") else ():
        say(f"Warning: {line}")
    return found


def open_client(*, patient: bool = False) -> Client:
    """The client; finds or starts the private Redis. Raises SettingsError, StoreUnavailable.

    ``patient``: for a process that keeps running. A Redis that will be ready soon is waited for.
    """
    from batchpipe.client.client import Client

    quiet_libraries()
    client = Client(settings())
    try:
        client.ping()
    except StoreUnavailable as error:
        from batchpipe.client.health import is_passing

        if not patient or not is_passing(error):
            raise
        say(f"{error}; waiting for it")
    return client


def use_app(name: str | None) -> str | None:
    """Publish through the site's Celery app of this name, or of the APP setting. Raises SettingsError."""
    with suppress(SettingsError):  # the command that is called will report it
        name = name or settings().app
    if name:
        from batchpipe.worker.setup import load_app

        load_app(name)
    return name


def has_site_app() -> bool:
    """True if the site that is loaded in this process has a Celery app; then that is set up for batchpipe."""
    if "celery" not in sys.modules:
        return False
    from batchpipe.worker.setup import is_set_up, setup, site_app

    app = site_app()
    if app is not None and not is_set_up(app):
        setup(app)
    return app is not None


def quiet_libraries() -> None:
    """Commands print their own messages; warnings of libraries go to the worker's log, not to a person's terminal."""
    logging.getLogger("batchpipe").addHandler(logging.NullHandler())
    logging.lastResort = None


def say(text: str) -> None:
    """Print a message to stderr."""
    click.echo(printable(text), err=True)


def say_error(message: str) -> None:
    """Print an error to stderr: one line, or of several wrong rows a line each."""
    first, *others = message.splitlines() or [""]
    say(f"Error: {' '.join(first.split())}")
    for line in others:
        say(f"  {' '.join(line.split())}")


def out(text: str) -> None:
    """Print a line of data for people to stdout."""
    click.echo(printable(text))


def emit_json(document: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document to stdout: in UTF-8, whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    click.echo(printable_json(json.dumps(document, indent=indent, ensure_ascii=False)))


def emit_parts(parts: Iterable[bytes]) -> None:
    """The same in parts, because it may be long."""
    sys.stdout.flush()
    sys.stdout.buffer.writelines(printable_json(part.decode()).encode() for part in parts)
    sys.stdout.buffer.flush()


def write_in_any_locale() -> None:
    """Characters that stdout or stderr cannot show are escaped; they must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


#: Why a server cannot listen -> what to do.
_NOT_LISTENING = {
    errno.EADDRINUSE: "another program listens there: end it, or give another --port (0 takes a free one)",
    errno.EADDRNOTAVAIL: "this machine has no such address: give --host 127.0.0.1, or 0.0.0.0 for all that it has",
    errno.EACCES: "this user may not: give a --port from 1024 on",
    errno.EPERM: "this user may not: give a --port from 1024 on",
}


def cannot_listen(host: str, port: int, error: OSError) -> click.ClickException:
    """What a command of a server raises for an address that it cannot have: one line with what to do."""
    code = errno.EADDRNOTAVAIL if isinstance(error, socket.gaierror) else error.errno or 0
    why = _NOT_LISTENING.get(code) or error.strerror or str(error)
    return click.ClickException(f"cannot listen on {host}:{port}: {why}")


def clock(seconds: float | None) -> str:
    """A unix time as local time, or a dash."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else "-"


def number(value: int | None) -> str:
    return f"{value:,}" if value is not None else "-"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def input_of(arguments: Sequence[str]) -> Any:
    """INPUT as ``submit`` takes it: ``-`` is stdin, as an open file. Raises InvalidInput if it is not there."""
    from batchpipe.storage import expanded, input_info

    if "-" in arguments:
        if len(arguments) > 1:
            raise click.UsageError("- means standard input, and nothing goes with it; give files")
        if sys.stdin is None or sys.stdin.closed:
            raise InvalidInput("- means standard input, and that is closed; give a file", field="input")
        return sys.stdin.buffer
    try:
        for place in expanded(arguments):
            input_info(place)
    except StorageTrouble as error:
        if error.code == "input_missing":
            raise InvalidInput(str(error), field="input", code="input_missing") from None
        raise
    return arguments[0] if len(arguments) == 1 else list(arguments)
