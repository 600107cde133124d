"""The options of ``submit``, defined once: for programs, commands, schedules, Django and Flask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from batchpipe.model.records import DEFAULT_ACCOUNT, DEFAULT_ENDPOINT, DEFAULT_WINDOW, JobRecord

F = TypeVar("F", bound=Callable[..., Any])


class SubmitOptions(TypedDict, total=False):
    """What ``submit`` takes beside the input. What is left away has its value in ``DEFAULTS``."""

    output: str | Path | None
    """Folder or URL for ``output.jsonl``, ``errors.jsonl`` and ``job.json``; None: a folder of its own under the
    workspace setting or the user's data."""
    endpoint: str
    """Path of the provider's endpoint, such as ``/v1/chat/completions``; the ``url`` of every row."""
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


NAMES: Sequence[str] = tuple(SubmitOptions.__annotations__)
DEFAULTS: SubmitOptions = {
    **dict.fromkeys(NAMES),  # type: ignore[typeddict-item]
    "endpoint": DEFAULT_ENDPOINT,
    "completion_window": DEFAULT_WINDOW,
    "account": DEFAULT_ACCOUNT,
}


def complete(options: SubmitOptions) -> SubmitOptions:
    """All options, with their defaults. Raises TypeError for one that does not exist, as Python does."""
    if unknown := [name for name in options if name not in NAMES]:
        raise TypeError(f"submit() got an unexpected keyword argument {unknown[0]!r}")
    return {**DEFAULTS, **options}


def options_of(job: JobRecord) -> SubmitOptions:
    """The options that this job was submitted with, paths absolute and settings filled in."""
    return {name: getattr(job, name) for name in NAMES}  # type: ignore[return-value]


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
