"""The options of ``submit``, defined once: for programs, commands, schedules, Django and Flask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from batchpipe.model.records import DEFAULT_ACCOUNT, DEFAULT_WINDOW, JobRecord

F = TypeVar("F", bound=Callable[..., Any])


class SubmitOptions(TypedDict, total=False):
    """What ``submit`` takes beside the input. What is left away has its value in ``DEFAULTS``."""

    output: str | Path | None
    """Folder or URL for ``output.jsonl``, ``errors.jsonl`` and ``job.json``; None: a folder of its own under the
    workspace setting or the user's data."""
    endpoint: str | None
    """Path of the provider's endpoint, such as ``/v1/chat/completions``; the ``url`` of every row. None: that of the
    first row; of rows that are made into requests chat completions."""
    completion_window: str
    """In which the provider has to be done: a number and s, m, h or d, such as ``24h``."""
    metadata: Mapping[str, str] | None
    """For the provider's batches: at most 13 pairs."""
    extra: Mapping[str, Any] | None
    """Further arguments of ``batches.create``."""
    account: str
    """A name in the settings."""
    name: str | None
    """For people."""
    key: str | None
    """Idempotency key: a second submit with the same key returns the first job."""
    tags: Mapping[str, Any] | None
    """For the caller (user, tenant); they are not sent to the provider."""
    queue: str | None
    """Celery queue of its tasks; None: the setting."""
    on_done: Any
    """A Celery signature, a task or a task's name, sent with the job's id when the job has ended, whatever its end,
    at least once."""
    notify: str | Sequence[str] | None
    """Targets that are told when the job has ended or needs somebody: names in the settings, or URLs."""
    max_rows: int | None
    """Rows in one shard at most; None: the setting."""
    max_bytes: int | None
    """Bytes in one shard at most, newlines included; None: the setting."""
    attempts: int | None
    """Rounds that a row may go through; None: the setting."""
    priority: int | None
    """Where shards wait for room at the provider, those of the job with the higher number go first: -100 to 100;
    None: 0."""
    prompt: str | Path | None
    """Template of the user's message: ``Describe {{ name }}``; then each row of the input is data, and is made into a
    request. A Path is read."""
    system: str | Path | None
    """Template of the system message."""
    model: str | None
    """Model of all rows that are made into requests."""
    params: Mapping[str, Any] | None
    """Further fields of the body of each, such as ``{"temperature": 0}``."""
    answer: Any
    """What an answer must be: a pydantic model, a JSON Schema as a dict, or the path of a file with one. It is asked
    for in strict mode, and each answer is checked."""
    id: str | None
    """Column with the ``custom_id`` of each row; None: the number of the row."""
    image: str | None
    """Column with an image for each row: a URL, or the path of a file, which is sent within the request."""
    text: str | None
    """Column that is embedded or moderated."""
    body: str | Path | Mapping[str, Any] | None
    """Template of the whole body, as JSON: for full control."""
    request: Callable[[Any], Mapping[str, Any]] | None
    """Makes the body, or the whole request, of each item of an iterable."""
    on_invalid: Literal["reask", "fail", "keep"] | None
    """What becomes of an answer that is not as ``answer`` says, was cut, or was refused: its row is asked again with
    the complaint, fails, or stays ok. None: ``reask`` with an ``answer``, else answers are not checked."""
    grow_tokens: bool | None
    """Ask again with a higher limit of tokens where an answer was cut."""
    delimiter: str | None
    """Of a CSV; None: found."""
    header: bool | None
    """Whether the first line of a CSV names its columns; None: found."""
    encoding: str | None
    """Of a CSV, such as ``cp1252``; None: UTF-8, or what a byte order mark says."""
    format: str | Sequence[str] | None
    """Write the results as a table, too: ``csv``, ``parquet`` or both."""
    excel: bool | None
    """Make the CSV safe to open in a spreadsheet."""


NAMES: Sequence[str] = tuple(SubmitOptions.__annotations__)
#: Those that say how requests are made of data rows and what their answers must be: a job has them as its recipe.
RECIPE_NAMES: Sequence[str] = NAMES[NAMES.index("prompt") : NAMES.index("format")]
DEFAULTS: SubmitOptions = {
    **dict.fromkeys(NAMES),  # type: ignore[typeddict-item]
    "completion_window": DEFAULT_WINDOW,
    "account": DEFAULT_ACCOUNT,
}


def complete(options: SubmitOptions) -> SubmitOptions:
    """All options, with their defaults. Raises TypeError for one that does not exist, as Python does."""
    if unknown := [name for name in options if name not in NAMES]:
        raise TypeError(f"submit() got an unexpected keyword argument {unknown[0]!r}")
    return {**DEFAULTS, **options}


def options_of(job: JobRecord) -> SubmitOptions:
    """The options that this job was submitted with, but for its recipe; paths absolute and settings filled in."""
    own = [name for name in NAMES if name not in RECIPE_NAMES and name != "format"]
    return {**{name: getattr(job, name) for name in own}, "format": job.formats}  # type: ignore[typeddict-item]


def shows_options(function: F) -> F:
    """Lets ``help()`` and editors show each option of a function that takes ``**options: Unpack[SubmitOptions]``."""
    shown = inspect.signature(function)
    types: dict[str, Any] = SubmitOptions.__annotations__
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=types[name].__forward_arg__)
        for name, value in DEFAULTS.items()
    ]
    taken = [one for one in shown.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = shown.replace(parameters=[*taken, *options])  # type: ignore[attr-defined]
    return function
