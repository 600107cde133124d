"""One schedule: when it runs, what it submits, and the values of its placeholders. Pure; the only importer of cronsim.

Times are those of Debian's cron, also at changes of daylight saving: a fixed time that is skipped in spring runs right
after the gap, one that comes twice in autumn runs once; ``*/15 * * * *`` and the like follow the real time.
"""

from __future__ import annotations

import hashlib
import string
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from batchpipe.model.records import DEFAULT_ACCOUNT, DEFAULT_ENDPOINT, DEFAULT_WINDOW

#: The short forms that Debian's cron knows, but not ``@reboot``, which is not a time.
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

#: The format of each placeholder: local time of the run, to the minute. ``{name}`` is the schedule's.
PLACEHOLDERS: dict[str, Callable[[datetime], str]] = {
    "date": lambda at: f"{at:%Y-%m-%d}",
    "time": lambda at: f"{at:%H%M}",
    "datetime": lambda at: f"{at:%Y%m%dT%H%M%z}",  # with its offset: in autumn an hour comes twice
    "year": lambda at: f"{at:%Y}",
    "month": lambda at: f"{at:%m}",
    "day": lambda at: f"{at:%d}",
    "hour": lambda at: f"{at:%H}",
    "minute": lambda at: f"{at:%M}",
    "yesterday": lambda at: f"{at.date() - timedelta(days=1):%Y-%m-%d}",
    "week": lambda at: f"{at:%G-W%V}",
}
#: Those with values that never repeat; a key without any would always find the first job again.
UNIQUE = ("date", "datetime", "yesterday", "week", "year")

DEFAULT_KEY = "schedule-{name}-{datetime}"


class Schedule(BaseModel):
    """What is submitted, and when. The fields of one ``[schedules.NAME]`` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crontab: str = Field(description="minute hour day month weekday, or @daily and so on")
    timezone: str = Field("UTC", description="of the crontab and of the placeholders, such as Europe/Berlin")
    enabled: bool = Field(True, description="false: does not run by itself")
    missed: Literal["latest", "all", "skip"] = Field(
        "latest", description="of the runs that were missed while beat was down: the newest, each, or none"
    )
    input: str = Field(min_length=1, description="path or URL of a JSONL file")
    output: str | None = Field(None, min_length=1, description="folder or URL for the results")
    key: str = Field(DEFAULT_KEY, description="idempotency key: the same key is the same job")
    name: str = Field("{name}", description="the job's name, for people")
    endpoint: str | None = Field(
        None, description="of every row; unset: the url of the first request, or of a table " + DEFAULT_ENDPOINT
    )
    completion_window: str = DEFAULT_WINDOW
    metadata: dict[str, str] = {}
    extra: dict[str, Any] = {}
    tags: dict[str, Any] = {}
    account: str = DEFAULT_ACCOUNT
    queue: str | None = None
    on_done: str | None = Field(None, description="name of a Celery task, sent with the job id when the job has ended")
    notify: list[str] = Field([], description="targets that are told of its jobs: names in the settings, or URLs")
    max_rows: int | None = Field(None, ge=1)
    max_bytes: int | None = Field(None, ge=1)
    attempts: int | None = Field(None, ge=1, le=100)
    priority: int | None = Field(None, ge=-100, le=100)
    prompt: str | None = Field(None, description="makes a request of each row of a table: a template, or @FILE")
    system: str | None = Field(None, description="system message of each: a template, or @FILE")
    model: str | None = Field(None, description="of all rows of a table")
    params: dict[str, Any] = Field({}, description="further fields of each body")
    answer: str | None = Field(None, description="file with a JSON Schema of the answers")
    id: str | None = Field(None, description="column with the custom_id")
    image: str | None = Field(None, description="column with a URL or file of an image")
    text: str | None = Field(None, description="column that is embedded or moderated")
    body: str | None = Field(None, description="template of a whole body as JSON, or @FILE")
    on_invalid: Literal["reask", "fail", "keep"] | None = None
    grow_tokens: bool = False
    delimiter: str | None = None
    header: bool | None = None
    encoding: str | None = None
    format: list[Literal["csv", "parquet"]] = Field([], description="tables of results beside the JSONL")
    excel: bool = False

    @field_validator("crontab")
    @classmethod
    def _known_crontab(cls, value: str) -> str:
        check_crontab(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, KeyError, OSError):
            raise ValueError(
                f"no time zone {value!r} is known here; names are such as Europe/Berlin "
                "(`pip install tzdata` where the system has none)"
            ) from None
        return value

    @field_validator("input", "output", "key", "name")
    @classmethod
    def _known_placeholders(cls, value: str | None, info: ValidationInfo) -> str | None:
        found = placeholders_of(value or "")
        if info.field_name == "key" and not found & set(UNIQUE):
            raise ValueError(
                f"needs one of {_braced(UNIQUE)}: under a key that comes again only the first run would ever be sent"
            )
        return value

    # -- when ------------------------------------------------------------------------------------------------------

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def fingerprint(self) -> str:
        """Unchanged as long as the schedule runs at the same times."""
        text = f"{' '.join(self.crontab.lower().split())} {self.timezone}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The times after this one, in the schedule's zone, each instant once."""
        last = moment
        for found in CronSim(five_fields(self.crontab), moment.astimezone(self.zone)):
            # cronsim forgets on which side of autumn's repeated hour it began, and runs everything that fell into
            # spring's gap at the end of the gap
            if found.timestamp() > last.timestamp():
                last = found.astimezone(UTC)
                yield last.astimezone(self.zone)

    def between(self, start: datetime, end: datetime, limit: int) -> list[datetime]:
        """The newest times in (start, end], at most so many, the oldest first."""
        window = timedelta(days=1)
        while True:
            begin = max(start, end - window)
            found = deque(takewhile(lambda at: at.timestamp() <= end.timestamp(), self.after(begin)), maxlen=limit)
            if len(found) == limit or begin == start:
                return list(found)
            window *= 8

    # -- what ------------------------------------------------------------------------------------------------------

    def fill(self, template: str, name: str, at: datetime) -> str:
        """A template with the local time of this run in its placeholders."""
        local = at.astimezone(self.zone)
        return template.format(name=name, **{field: show(local) for field, show in PLACEHOLDERS.items()})


def five_fields(crontab: str) -> str:
    """A crontab without short forms."""
    text = crontab.strip()
    return ALIASES.get(text.lower(), text)


def check_crontab(crontab: str) -> None:
    """Raises ValueError for a crontab that cannot be read or never comes due."""
    text = five_fields(crontab)
    if text.startswith("@"):
        raise ValueError(f"{text!r} is not known; of the short forms there are {', '.join(ALIASES)}")
    if len(text.split()) != 5:
        raise ValueError(f"{crontab!r} must have five fields: minute hour day month weekday")
    try:
        next(CronSim(text, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(f"{crontab!r} is no crontab: {str(error).lower()}") from None
    except StopIteration:
        raise ValueError(f"{crontab!r} never comes true") from None


def placeholders_of(template: str) -> set[str]:
    """The placeholders in a text; ``{{`` is a brace. Raises ValueError for any that is not known."""
    known = {*PLACEHOLDERS, "name"}
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{template!r}: {str(error).lower()}; write {{{{ for a brace") from None
    for _, name, form, conversion in parts:
        if name not in known or form or conversion:
            shown = f"{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}"
            raise ValueError(f"{{{shown}}} is no placeholder; there are {_braced(sorted(known))}")
    return {name for _, name, _, _ in parts if name is not None}


def _braced(names: Any) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
