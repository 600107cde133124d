"""Log lines of our own processes, one event a line: text for people, or one JSON object for machines.

Each line about a job has ``event``, ``job``, ``shard``, ``batch``, ``account``, if they are known. A site with a
logging configuration of its own uses ``ContextFilter``, ``BeatFilter`` and one of the formatters.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import orjson

from batchpipe.masking import printable, printable_json, without_secrets

#: Tasks that beat sends every few seconds.
BEAT_TASKS = frozenset({"batchpipe.sweep", "batchpipe.schedules"})
#: The ids in a line, in this order.
IDS = ("event", "job", "shard", "batch", "account")

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "data", "fields", "brief"}
# Bounded repeats only: these run on lines with users' texts, and must take time in proportion to their length.
_JOB = re.compile(r"\bjob_[0-9a-z]{1,40}")
_SHARD = re.compile(r"""\bshard['"]?\s{0,2}[:= ]\s{0,2}(-?\d{1,9})\b""")

_about: ContextVar[Mapping[str, Any]] = ContextVar("batchpipe_about", default={})  # noqa: B039 - never changed


@contextmanager
def about(**ids: Any) -> Iterator[None]:
    """Lines logged within the block, by any library, get these ids."""
    known = {name: value for name, value in ids.items() if value is not None}
    token = _about.set({**_about.get(), **known})
    try:
        yield
    finally:
        _about.reset(token)


def log_event(
    logger: logging.Logger, event: str, fields: Mapping[str, Any], *, level: int = logging.INFO, **ids: Any
) -> None:
    """A line for an event. Its text alone is complete, for sites with a format of their own."""
    if not logger.isEnabledFor(level):
        return
    rest = {name: value for name, value in fields.items() if name not in ("message", "batch_id", "account")}
    known = {"batch": fields.get("batch_id"), "account": fields.get("account")}
    known = {**_about.get(), "event": event, **ids, **{name: v for name, v in known.items() if v is not None}}
    said = fields.get("message")
    brief = event.replace("_", " ") + (f": {said}" if said else "")
    text = " ".join([_one_line(brief), *_pairs({**rest, **known})])
    logger.log(level, "%s", text, extra={**known, "fields": rest, "brief": brief})


class ContextFilter(logging.Filter):
    """Adds to each record the ids that it is about. Put it on the handler; it drops no record."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in {**_of_celery(record), **_about.get()}.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


class BeatFilter(logging.Filter):
    """Lowers Celery's lines about sweeps and looks for schedules that did nothing to DEBUG. Put it on the handler.

    Beat sends these tasks every few seconds: that would be 50,000 lines a day. Lines of other tasks are not changed.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.INFO or not _is_quiet_beat(record):
            return True
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def _is_quiet_beat(record: logging.LogRecord) -> bool:
    if record.name == "celery.beat":  # "Scheduler: Sending due task %s (%s)"
        args = record.args
        return "Sending due task" in str(record.msg) and isinstance(args, tuple) and args[-1] in BEAT_TASKS
    data = getattr(record, "data", None)
    if not isinstance(data, dict) or data.get("name") not in BEAT_TASKS:
        return False
    return str(data.get("return_value", "0")) == "0"  # the line about the start of a task has none


class TroubleFilter(logging.Filter):
    """Removes tracebacks from Celery's and kombu's lines about a broker that is away or refuses: that is expected."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in _LIBRARIES or not record.exc_info:
            return True
        error = record.exc_info[1]
        if error is None or not _is_of_broker(error):
            return True
        said = record.getMessage() if record.name != "celery.beat" else "Message Error"  # else it includes the stack
        text = f"{type(error).__name__}: {error}"
        record.msg, record.args = said if str(error) and str(error) in said else f"{said}: {text}", ()
        record.exc_info = record.exc_text = None
        return True


_LIBRARIES = ("celery", "kombu", "flower", "tornado")


def _is_of_broker(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, one of the broker or its connection."""
    for _ in range(10):
        if error is None:
            return False
        module = type(error).__module__.partition(".")[0]
        if module in ("redis", "amqp", "kombu") or isinstance(error, ConnectionError | TimeoutError):
            return True
        if isinstance(error, AttributeError) and _where(error) == "kombu":
            return True  # a channel has None for a connection that was closed meanwhile
        error = error.__cause__ or error.__context__
    return False


def _where(error: BaseException) -> str:
    """The package that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] if trace is not None else ""


def _of_celery(record: logging.LogRecord) -> dict[str, Any]:
    """Celery's own lines include their task, with its arguments as text."""
    data = getattr(record, "data", None)
    if not isinstance(data, dict) or not str(data.get("name", "")).startswith("batchpipe."):
        return {}
    found: dict[str, Any] = {"task": data["name"], "task_id": data.get("id")}
    said = f"{data.get('args', '')} {data.get('kwargs', '')}"
    if (job := _JOB.search(said)) is not None:
        found["job"] = job[0]
    if (shard := _SHARD.search(said)) is not None:
        found["shard"] = int(shard[1])
    return found


class TextFormatter(logging.Formatter):
    """A readable line, then ``key=value`` for its ids. Only a traceback takes more lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        record.message = _one_line(record.message)
        pairs = [] if hasattr(record, "brief") else _pairs(record.__dict__, only_ids=True)
        return " ".join([super().formatMessage(record), *pairs])

    def format(self, record: logging.LogRecord) -> str:
        lines = without_secrets(super().format(record)).split("\n")
        return "\n".join(printable(line) for line in lines)


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _pairs(values: Mapping[str, Any], *, only_ids: bool = False) -> list[str]:
    """``key=value``, the ids last and in their order."""
    names = [*(name for name in values if name not in IDS and not only_ids), *(name for name in IDS if name in values)]
    return [f"{name}={_value(values[name])}" for name in names]


def _value(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[^\s\"'=]+", text) else json.dumps(text, ensure_ascii=False)


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, and the caller's ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(getattr(record, "brief", None) or record.getMessage()),
        }
        line |= {name: _safe(value) for name, value in record.__dict__.items() if name not in _PLAIN}
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        fields = {name: _safe(value) for name, value in getattr(record, "fields", {}).items()}
        return _as_json({**fields, **line})


def _safe(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value


def _as_json(line: dict[str, Any]) -> str:
    try:
        return printable_json(orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode())
    except TypeError:  # half a surrogate pair, or a number beyond 64 bits
        return json.dumps(line, default=str)


def configure_logging(log_format: str, level: str) -> None:
    """Set up the root logger of a process of ours. Not for use within a site's process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for one in (ContextFilter(), BeatFilter(), TroubleFilter()):
        handler.addFilter(one)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)  # warnings of libraries become log lines, too
    for chatty in ("httpx2", "httpcore2", "openai", "fsspec", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
