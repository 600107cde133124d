"""Makes a job record of what a user submits: checks options, makes paths absolute, writes iterators to a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import orjson

from batchpipe.client.input_copies import copy_input
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
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import JobRecord, new_job_id
from batchpipe.pipeline.copied_inputs import note_copy, remove_copy
from batchpipe.pipeline.manifest import check_apart, check_no_workspace, check_output_here
from batchpipe.pipeline.recipes import write_recipe
from batchpipe.storage import Folder, check_allowed, expanded, is_pattern, local_path, place_name, stored_at
from batchpipe.store import new_task_ids

#: What ``submit`` accepts: paths, URLs or patterns of files, an open file or an upload of a web framework, a frame of
#: pandas, polars or Arrow; or rows or requests as dicts or as objects that dump to dicts.
Input = str | Path | Iterable[Any]
#: Characters of all places of an input together, which are recorded.
MOST_PLACES_TEXT = 50_000

#: The options by what they must be.
_TEXTS = ("name", "key", "account", "endpoint", "completion_window", "queue")
_MAPPINGS = ("metadata", "extra", "tags")
#: Tables of results that are written beside the JSONL.
FORMATS = ("csv", "parquet")
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
    fields["endpoint"] = fields["endpoint"] or ""
    fields |= {"formats": _formats(options["format"]), "excel": bool(options["excel"])}
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


def _formats(value: Any) -> list[str]:
    """Raises InvalidInput."""
    found = [value] if isinstance(value, str) else list(value or ())
    if unknown := [one for one in found if one not in FORMATS]:
        raise InvalidInput(f"{unknown[0]!r} is none; there are {' and '.join(FORMATS)}", field="format")
    return list(dict.fromkeys(found))


def new_run_queue(settings: Settings) -> str:
    """A queue for one ``run`` and its own worker."""
    return f"{settings.queue}.run.{new_job_id().removeprefix('job_')}"


def with_input(
    record: JobRecord,
    source: Input,
    settings: Settings,
    *,
    may_come_later: bool = False,
    recipe: Recipe | None = None,
    request: Callable[[Any], Mapping[str, Any]] | None = None,
) -> JobRecord:
    """The record with its input: paths and URLs as they are, anything else written to the workspace as it comes.

    Raises InvalidInput, also if the iterator is empty, or if there is no file at a path that is local to the caller
    (unless it ``may_come_later``, as for a schedule); also raises what the iterator raises.
    """
    if (stored := stored_at(source)) is not None:
        source = stored
    if (places := _places(source)) is not None:
        if request is not None:
            raise InvalidInput("is for iterables; for a file give a prompt, or a body", field="request")
        return _with_places(record, places, settings, may_come_later=may_come_later)
    note_copy(settings, record)
    copied = record.evolve(spooled=True)
    try:
        return copy_input(copied, cast(Iterable[Any], source), Folder(record.workspace, private=True), recipe, request)
    except BaseException:  # the iterator is the user's: it may raise anything, and Ctrl-C may strike
        remove_copy(settings, copied)
        raise


def with_recipe(record: JobRecord, recipe: Recipe | None, settings: Settings) -> JobRecord:
    """The record with its recipe, which is written to the workspace. Raises StorageTrouble."""
    if recipe is None:
        return record
    note_copy(settings, record)
    digest = write_recipe(Folder(record.workspace, private=True), recipe)
    endpoint = record.endpoint or (recipe.endpoint if recipe.makes_requests else "")
    return record.evolve(recipe=digest, endpoint=endpoint)


def _places(source: Input) -> list[str] | None:
    """The paths, URLs and patterns of an input; None for one that is read here."""
    if isinstance(source, str | Path):
        return [str(source)]
    if isinstance(source, list | tuple) and source and all(isinstance(one, str | Path) for one in source):
        return [str(one) for one in source]
    return None


def _with_places(record: JobRecord, places: Sequence[str], settings: Settings, *, may_come_later: bool) -> JobRecord:
    found = [_checked_place(place, record, settings, may_come_later=may_come_later) for place in places]
    if sum(map(len, found)) > MOST_PLACES_TEXT:
        message = f"has {len(found):,} places, too many to record; give a pattern, such as exports/*.csv"
        raise InvalidInput(message, field="input")
    several = len(found) > 1 or is_pattern(found[0])
    size = _size_here(found[0]) if not several else None
    return record.evolve(input=found[0], inputs=found if several else [], bytes=size)


def _checked_place(place: str, record: JobRecord, settings: Settings, *, may_come_later: bool) -> str:
    check_place(place, "input")
    whole = absolute(place)
    if is_pattern(whole):
        if local_path(whole) is not None and not may_come_later:
            expanded([whole])
    elif not may_come_later:
        _check_is_there(place)
    check_allowed(whole, settings.roots(), "input")
    check_apart(whole, record.output)
    return whole


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
