"""Makes a job record of what a user submits: checks options, makes paths absolute, writes iterators to a file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson

from batchpipe.client.option_checks import (
    check_options,
    check_output,
    check_place,
    check_signature,
    check_targets,
    check_window,
)
from batchpipe.client.options import SubmitOptions
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import InvalidInput
from batchpipe.model.records import JobRecord, new_job_id
from batchpipe.pipeline.copied_inputs import COPIED_INPUT, note_copy, remove_copy
from batchpipe.pipeline.manifest import check_apart, check_no_workspace, check_output_here
from batchpipe.storage import Folder, check_allowed, lines_of, local_path, place_name, stored_at
from batchpipe.store import new_task_ids

#: What ``submit`` accepts: a path or URL of a JSONL file, an open one or an upload of a web framework, or requests as
#: dicts or as objects that dump to dicts.
Input = str | Path | Iterable[Any]

#: The options by what they must be.
_TEXTS = ("name", "key", "account", "endpoint", "completion_window", "queue")
_MAPPINGS = ("metadata", "extra", "tags")
_NUMBERS = ("max_rows", "max_bytes", "attempts")


def new_record(
    settings: Settings,
    job_id: str,
    options: SubmitOptions,
    *,
    own_queue: bool = False,
    notify_sites: Sequence[str] = (),
) -> JobRecord:
    """The record of a new job, of complete options, without its input. Raises InvalidInput that names the option."""
    fields = _checked(options, settings)
    output = options["output"]
    if output is not None:
        check_place(str(output), "output")
    folder = absolute(settings.workspace or settings.home / "jobs").rstrip("/")
    place = absolute(output) if output is not None else f"{folder}/{job_id}"
    below = f"{folder}/{job_id}" if settings.workspace else f"{place.rstrip('/')}/.batchpipe/{job_id}"
    record = JobRecord(
        id=job_id,
        epoch=1,
        task_ids=new_task_ids(1),
        output=place,
        owns=[place_name(place)],
        workspace=below,
        input_here=own_queue,
        notify_sites=list(notify_sites) or current_site().frameworks(),
        **fields,
    )
    check_options(record)
    check_targets(record, settings)
    check_window(record, settings.known_account(record.account))
    check_output(record.output)
    check_allowed(record.output, settings.roots(), "output")
    check_no_workspace(record.output, job_id, settings.workspace, name=record.owns[0])
    check_output_here(record.output)
    return record


def _checked(options: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The options as the record holds them, each of its type. Raises InvalidInput."""
    fields: dict[str, Any] = {field: as_text(options[field], field) for field in _TEXTS}
    fields["account"] = (fields["account"] or "").lower()
    fields["queue"] = fields["queue"] or settings.queue
    fields |= {field: _mapping(options[field], field) for field in _MAPPINGS}
    fields |= {field: _number(options[field], getattr(settings, field), field) for field in _NUMBERS}
    fields["priority"] = _number(options["priority"], 0, "priority")
    return {**fields, "on_done": _signature(options["on_done"]), "notify": _targets(options["notify"])}


def _targets(value: Any) -> list[str]:
    """Raises InvalidInput."""
    found = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value or ())
    if not all(isinstance(one, str) and one for one in found):
        raise InvalidInput("must be names of targets, or URLs", field="notify")
    return list(dict.fromkeys(found))


def new_run_queue(settings: Settings) -> str:
    """A queue for one ``run`` and its own worker."""
    return f"{settings.queue}.run.{new_job_id().removeprefix('job_')}"


def with_input(record: JobRecord, source: Input, settings: Settings, *, may_come_later: bool = False) -> JobRecord:
    """The record with its input: a path or URL as it is, an iterator written to the workspace a line at a time.

    Raises InvalidInput, also if the iterator is empty, or if there is no file at a path that is local to the caller
    (unless it ``may_come_later``, as for a schedule); also raises what the iterator raises.
    """
    if (stored := stored_at(source)) is not None:
        source = stored
    if isinstance(source, str | Path):
        check_place(str(source), "input")
        if not may_come_later:
            _check_is_there(str(source))
        place = absolute(source)
        check_allowed(place, settings.roots(), "input")
        check_apart(place, record.output)
        return record.evolve(input=place, bytes=_size_here(place))
    folder, count, size = Folder(record.workspace, private=True), 0, 0
    note_copy(settings, record)
    try:
        with folder.writer(COPIED_INPUT) as file:
            for line in dump_rows(source):
                file.write(line)
                count, size = count + 1, size + len(line)
            if not count:
                raise InvalidInput("the input has no rows", code="input_empty")
    except BaseException:  # the iterator is the user's: it may raise anything, and Ctrl-C may strike
        remove_copy(settings, record.evolve(spooled=True))
        raise
    return record.evolve(input=folder.path(COPIED_INPUT), bytes=size, spooled=True)


def _size_here(place: str) -> int | None:
    """Bytes of a file that this host has; no network is used."""
    path = local_path(place)
    try:
        return os.path.getsize(path) if path is not None and os.path.isfile(path) else None
    except OSError:
        return None


def _check_is_there(place: str) -> None:
    """Raises InvalidInput for a missing file in a folder that exists on this host. A folder that does not may be the
    worker's; but a relative path always means this host.
    """
    path = local_path(place)
    if path is None:
        return
    path = os.path.expanduser(path)
    is_here = not os.path.isabs(path) or os.path.isdir(os.path.dirname(path))
    if is_here and not os.path.exists(path):
        raise InvalidInput(f"{os.path.abspath(path)}: no such file", field="input", code="input_missing")


def held_back(commit: Callable[[], None]) -> bool:
    """True if ``commit`` will be called when the caller's transaction commits, and never if it rolls back."""
    on_commit = current_site().on_commit
    return on_commit is not None and on_commit(commit)


def absolute(place: str | Path) -> str:
    """URLs stay as they are, local paths become absolute: the worker has another current folder."""
    text = str(place)
    path = local_path(text)
    if path is None:
        return text
    return os.path.abspath(os.path.expanduser(path))  # unlike pathlib, it takes "~x.jsonl" for a name


def as_text(value: Any, field: str) -> str | None:
    """Returns a plain ``str``: records cannot hold other types of text, such as Django's. Raises InvalidInput."""
    if value is None:
        return None
    if not isinstance(value, str) and field not in ("name", "key"):
        raise InvalidInput(f"must be text, not {type(value).__name__}", field=field)
    text = str.__str__(str(value))  # an order number, a date or a translated text are good names and keys
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("is not Unicode text", field=field) from None
    return text


def _number(value: Any, otherwise: int, field: str) -> int:
    if value is None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidInput(f"must be a number, not {type(value).__name__}", field=field)
    return value


def _mapping(value: Mapping[str, Any] | None, field: str) -> dict[str, Any]:
    """As the record will hold it: JSON. Raises InvalidInput."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"must be a mapping, not {type(value).__name__}", field=field)
    try:
        plain: dict[str, Any] = orjson.loads(orjson.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"is not JSON: {error}", field=field) from None
    return plain


def _signature(on_done: Any) -> dict[str, Any] | None:
    """A Celery signature, a task or a task's name, as JSON."""
    if on_done is None:
        return None
    if isinstance(on_done, str):
        on_done = {"task": on_done, "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}
    if not isinstance(on_done, Mapping) and hasattr(on_done, "s"):
        on_done = on_done.s()
    try:
        plain: dict[str, Any] = orjson.loads(orjson.dumps(dict(on_done)))
    except (TypeError, ValueError):
        raise InvalidInput("is not a Celery signature with JSON arguments", field="on_done") from None
    check_signature(plain)
    return plain


def dump_rows(rows: Iterable[Any]) -> Iterator[bytes]:
    """Requests as JSON lines with their newline. Bytes are lines already. Raises InvalidInput with the row's number."""
    try:
        iterator = lines_of(rows) or iter(rows)
    except TypeError:
        raise InvalidInput(f"is a {type(rows).__name__}: give a path, a URL or an iterable", field="input") from None
    for number, row in enumerate(iterator, start=1):
        line = row if isinstance(row, bytes) else _dump(row, number)
        yield line if line.endswith(b"\n") else line + b"\n"


def _dump(row: Any, number: int) -> bytes:
    try:
        plain = _as_dict(row)
        if plain is None:
            raise InvalidInput(f"a {type(row).__name__} is no request: give dicts or typed objects", line=number)
        line = orjson.dumps(plain)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"cannot be written as JSON: {error}", line=number) from None
    if b"null" in line and _has_nan(plain):  # orjson writes NaN as null, silently
        raise InvalidInput("NaN and Infinity are no JSON", line=number)
    return line


def _as_dict(row: Any) -> Mapping[str, Any] | None:
    if isinstance(row, Mapping):
        return dict(row)
    if hasattr(row, "model_dump"):
        dumped: dict[str, Any] = row.model_dump(mode="json", exclude_none=True)
        return dumped
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return dataclasses.asdict(row)
    if isinstance(row, msgspec.Struct):
        built: dict[str, Any] = msgspec.to_builtins(row)
        return built
    return None


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    if isinstance(value, Mapping):
        return any(_has_nan(item) for item in value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_has_nan(getattr(value, part.name)) for part in dataclasses.fields(value))
    return isinstance(value, list | tuple) and any(_has_nan(item) for item in value)
