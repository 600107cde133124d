"""Flower, with our tasks shown as what they mean, and safe to leave running: on loopback, behind a password.

Only ``batchpipe flower`` loads this module; Flower's options are those of its process.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from flower import command
from flower.app import Flower
from flower.urls import settings as web_settings
from tornado.options import Error as OptionError
from tornado.options import options

from batchpipe.config.environment import PREFIX
from batchpipe.config.settings import Settings
from batchpipe.errors import BatchpipeError, SettingsError
from batchpipe.storage import Folder
from batchpipe.storage.local import hold_lock, keep_private, kept_secret
from batchpipe.tasks.celery_tasks import LAST_TIME

logger = logging.getLogger(__name__)

#: File in HOME with the generated password, if none is set.
PASSWORD_FILE = "flower-password"
#: The columns of the list of tasks.
COLUMNS = "name,args,state,result,runtime,received,uuid,worker"
#: How often the history is written; also at the end.
SAVE_SECONDS = 60
#: Options that carry secrets: everybody on the machine can read the arguments of a process.
_SECRET_OPTIONS = {"basic_auth", "oauth2_secret", "cookie_secret", "broker_api"}

#: Tasks that beat sends every few seconds; they belong to no job.
_BEAT_TASKS = ("batchpipe.sweep", "batchpipe.schedules")

Event = dict[str, Any]


@dataclass(frozen=True)
class ListenOptions:
    """Where Flower listens, and whether it asks for a password. None leaves a value to Flower's own options."""

    address: str | None = None
    port: int | None = None
    auth: bool = True


def run_flower(
    app: Any,
    settings: Settings,
    listen: ListenOptions,
    extra: tuple[str, ...],
    say: Callable[[str], None],
    *,
    private: bool,
) -> None:
    """Run Flower on this Celery app in the foreground until it is told to stop. Raises SettingsError.

    ``extra`` are Flower's own options; its FLOWER_* variables apply, too. ``say`` is called with its address, and,
    if nobody else can read that (``private``), with the password.
    """
    with _history(settings) as kept:
        _read_options(settings, listen, extra, persistent=kept)
        key = _lock(settings, listen, private=private)
        command.extract_settings()
        command.setup_logging()
        flower = Flower(capp=app, options=options, **web_settings)
        _explain_events(flower.events)
        say(f"Flower listens on {_listen(flower)}; {key}")
        _serve(flower)


@contextmanager
def _history(settings: Settings) -> Iterator[bool]:
    """Whether this process may keep the history in HOME: two would write the same files."""
    with ExitStack() as stack:
        try:
            Folder(str(settings.home), private=True).make()
            keep_private(settings.home, "flower*")
            alone = stack.enter_context(hold_lock(settings.home / "flower.lock"))
        except BatchpipeError as error:  # a home that cannot be written
            logger.warning("the history is not kept: %s", error)
            alone = False
        yield alone


# -- options -------------------------------------------------------------------------------------------------------


def _read_options(settings: Settings, listen: ListenOptions, extra: tuple[str, ...], *, persistent: bool) -> None:
    """Sets our defaults, then Flower's variables, file and arguments, then the options of our command."""
    options.address = "127.0.0.1"
    options.logging = "none"  # our own logging is already set up
    options.tasks_columns = COLUMNS
    options.persistent = persistent
    options.db = str(settings.home / "flower")
    options.state_save_interval = SAVE_SECONDS * 1_000
    options.conf = os.devnull  # by default Flower would run any flowerconfig.py in the current folder
    for argument in extra:
        _check_option(argument)
    try:
        command.apply_env_options()
        command.apply_options("batchpipe flower", list(extra))
    except (OptionError, ValueError, KeyError, OSError) as error:
        raise SettingsError(f"Flower's options: {error}") from None
    if listen.address is not None:
        options.address = listen.address
    if listen.port is not None:
        options.port = listen.port


def _check_option(argument: str) -> None:
    """Raises SettingsError for options that Flower would ignore silently, and for secrets in arguments."""
    name, given, _ = argument.lstrip("-").replace("-", "_").partition("=")
    if not argument.startswith("--") or name not in options or not (given or isinstance(options[name], bool)):
        raise SettingsError(f"{argument.partition('=')[0]} is no option of Flower's; they are written --name=value")
    if name in _SECRET_OPTIONS:
        raise SettingsError(f"arguments of a process can be read by others: set FLOWER_{name.upper()} in its place")


def _lock(settings: Settings, listen: ListenOptions, *, private: bool) -> str:
    """Make sure that Flower asks for a password; returns what to tell the user. Raises SettingsError."""
    if not listen.auth:
        if not _is_loopback():
            raise SettingsError(
                f"--no-auth is for loopback only: who reaches {options.address or 'any address'}:{options.port} could "
                "stop workers; leave it out, or use --address 127.0.0.1 behind a proxy that asks for a password"
            )
        options.basic_auth = []
        return "no password"
    if any(options.basic_auth) or options.auth:
        return "with the logins of Flower's own options"
    user = settings.flower_user
    if settings.flower_password is not None:
        password, where = settings.flower_password.get_secret_value(), f"password of {PREFIX}FLOWER_PASSWORD"
    else:
        password, where = _made_password(settings)
        where = f"password {password}" if private else where
    if not user or ":" in user or not f"{user}{password}".isascii() or not password:
        raise SettingsError(f"{PREFIX}FLOWER_USER and {PREFIX}FLOWER_PASSWORD: plain ASCII, and no colon in the user")
    options.basic_auth = [f"{user}:{password}"]
    return f"user {user}, {where}"


def _made_password(settings: Settings) -> tuple[str, str]:
    """A secret that stays the same over restarts. Raises SettingsError."""
    path = settings.home / PASSWORD_FILE
    try:
        return kept_secret(path, lambda: secrets.token_urlsafe(18)), f"password in {path}"
    except BatchpipeError as error:
        raise SettingsError(f"no password is set and none can be kept ({error}): set {PREFIX}FLOWER_PASSWORD") from None


def _is_loopback() -> bool:
    if options.unix_socket or options.address == "localhost":
        return True
    try:
        return ipaddress.ip_address(options.address).is_loopback
    except ValueError:
        return False


# -- what is shown -------------------------------------------------------------------------------------------------


def _explain_events(events: Any) -> None:
    """Let Flower see each event as a person should see it."""
    receive = events.on_event

    def on_event(event: Event) -> None:
        task = events.state.tasks.get(event.get("uuid"))
        seen = as_seen(event, event.get("name") or getattr(task, "name", None) or "")
        if seen is not None:
            receive(seen)

    events.on_event = on_event


def as_seen(event: Event, task: str) -> Event | None:
    """An event of this task as a person should see it; None: not at all."""
    if task in _BEAT_TASKS:
        return None
    if not task.startswith("batchpipe."):
        return event
    kind, changes = event["type"], Event()
    if str(event.get("kwargs", "")).startswith(LAST_TIME):
        changes = {"kwargs": "", "result": event["kwargs"].removeprefix(LAST_TIME).rpartition("; again after")[0]}
    if kind == "task-received" and event.get("retries") and event.get("eta"):
        # it waits for its time: Celery calls that RECEIVED again
        changes |= {"type": "task-retried", "received": event.get("timestamp")}
    elif kind == "task-retried":
        changes = {"exception": None, "result": event.get("exception")}
    elif kind == "task-succeeded":
        said = str(event.get("result"))
        changes["result"] = "" if said == "None" else said[1:-1] if said[:1] in ("'", '"') else said
    return {**event, **changes}


# -- running -------------------------------------------------------------------------------------------------------


def _listen(flower: Flower) -> str:
    """Start to listen; returns the address. Raises SettingsError."""
    try:
        port = flower.start_http_server()
    except OSError as error:
        where = options.unix_socket or f"{options.address or '*'}:{options.port}"
        raise SettingsError(f"Flower cannot listen on {where}: {error.strerror or error}; try --port") from None
    if options.unix_socket:
        return str(options.unix_socket)
    scheme = "https" if "ssl_options" in web_settings else "http"
    host = f"[{options.address}]" if ":" in options.address else options.address or "0.0.0.0"
    prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
    return f"{scheme}://{host}:{port}{prefix}"


def _serve(flower: Flower) -> None:
    """Runs until SIGTERM or Ctrl-C; both are a normal end."""

    def stop(*_: Any) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        flower.stop()
        logging.shutdown()
        os._exit(0)  # threads that call an unreachable broker would keep the process alive for minutes
