"""What the commands share: options, the client, exit codes, printing."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

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


F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = {State.SUCCEEDED: 0, State.FAILED: 1, State.PARTIAL: 3, State.CANCELLED: 4}
NOT_ENDED = 5
INTERRUPTED = 130

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def settings() -> Settings:
    """The settings, read once per command; warns once of names that look like settings. Raises SettingsError."""
    from batchpipe.config.site import current_site

    site = current_site()
    found = site.settings
    for line in found.unknown if site.is_news("unknown settings") else ():
        say(f"Warning: {line}")
    return found


def open_client(*, patient: bool = False) -> Client:
    """The client; finds or starts the private Redis. Raises SettingsError, StoreUnavailable.

    ``patient``: for a process that keeps running. A Redis that will be ready soon is waited for.
    """
    from batchpipe.client.client import Client
    from batchpipe.store.refusals import PASSING

    quiet_libraries()
    client = Client(settings())
    try:
        client.store.ping()
    except StoreUnavailable as error:
        if not patient or error.code not in PASSING:
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


def clock(seconds: float | None) -> str:
    """A unix time as local time, or a dash."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else "-"


def number(value: int | None) -> str:
    return f"{value:,}" if value is not None else "-"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Pair(click.ParamType[tuple[str, Any]]):
    """KEY=VALUE; with ``as_json`` the value is JSON."""

    name = "KEY=VALUE"

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.name = "KEY=JSON" if as_json else "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, sign, text = str(value).partition("=")
        if not sign or not key:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        if not self.as_json:
            return key, text
        try:
            return key, json.loads(text, parse_constant=_no_constant)
        except ValueError as error:
            reason = getattr(error, "msg", str(error))
            self.fail(f"{key}: {text!r} is not JSON ({reason}); strings need quotes of their own", param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds from 0 on, not ``nan``."""

    name = "SECONDS"

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return found


class Place(click.ParamType[str]):
    """A folder or URL."""

    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("is empty", param, ctx)
        return str(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def submit_options(command: F) -> F:
    """The options that ``run`` and ``submit`` share."""
    for option in reversed(
        [
            click.argument("input", metavar="INPUT"),
            click.option("-o", "--output", required=True, type=Place(), help="Folder or URL for the results."),
            click.option("--endpoint", default="/v1/chat/completions", show_default=True, help="Of every row."),
            click.option("--completion-window", default="24h", show_default=True, help="For the provider."),
            click.option("--metadata", type=Pair(), multiple=True, help="For the provider's batches; repeatable."),
            click.option("--extra", type=Pair(as_json=True), multiple=True, help="Passed on to batches.create."),
            click.option("--account", metavar="NAME", help="Account of the settings.  [default: default]"),
            click.option("--name", metavar="TEXT", help="For people."),
            click.option("--key", metavar="TEXT", help="Idempotency key: the same key returns the first job."),
            click.option("--max-rows", type=click.IntRange(min=1), help="Rows per shard at most."),
            click.option("--max-bytes", type=click.IntRange(min=1), help="Bytes per shard at most."),
            click.option(
                "--attempts",
                type=click.IntRange(min=1),
                help="Rounds a row may go through.",
            ),
        ]
    ):
        command = option(command)
    return command


def input_of(argument: str) -> Any:
    """INPUT as ``submit`` takes it: ``-`` is stdin, as lines of bytes. Raises InvalidInput if it is not there."""
    from batchpipe.storage import input_info

    if argument == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise InvalidInput("- means standard input, and that is closed; give a file", field="input")
        return iter(sys.stdin.buffer.readline, b"")
    try:
        input_info(argument)
    except StorageTrouble as error:
        if error.code == "input_missing":
            raise InvalidInput(str(error), field="input", code="input_missing") from None
        raise
    return argument
