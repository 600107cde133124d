"""Copies to the workspace what has no place that a worker could read: iterables, frames, open files, uploads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import msgspec
import orjson

from batchpipe.errors import InvalidInput
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import DEFAULT_ENDPOINT, JobRecord
from batchpipe.pipeline.copied_inputs import COPIED_INPUT
from batchpipe.pipeline.data_rows import SUBMIT, DataRowsWriter, rows_file_of
from batchpipe.storage import Folder, chunks_of

#: Makes the request of an item, or its body.
MakesRequest = Callable[[Any], Mapping[str, Any]]


def copy_input(
    record: JobRecord, source: Iterable[Any], workspace: Folder, recipe: Recipe | None, request: MakesRequest | None
) -> JobRecord:
    """Write an input to the workspace of its job, and return the record with it.

    Files go through to the byte; frames and iterables become JSON lines: data rows if a prompt makes requests of them,
    else requests. Raises InvalidInput, and what the iterable raises.
    """
    if request is not None:
        return _made_here(record, source, workspace, recipe, request)
    with workspace.writer(COPIED_INPUT) as file:
        size = 0
        for data in _data(source, recipe):
            file.write(data)
            size += len(data)
        if not size:
            raise InvalidInput("the input has no rows", code="input_empty")
    return record.evolve(input=workspace.path(COPIED_INPUT), bytes=size)


def _data(source: Any, recipe: Recipe | None) -> Iterator[bytes]:
    if (chunks := chunks_of(source)) is not None:
        return chunks
    makes_requests = recipe is not None and recipe.makes_requests
    if (rows := _frame_rows(source)) is not None:
        if not makes_requests:
            raise InvalidInput("is a table: give a prompt that makes a request of each row", field="input")
        return _checked_rows(rows, recipe)
    return _checked_rows(_items(source), recipe) if makes_requests else dump_requests(_items(source))


def _items(source: Any) -> Iterator[Any]:
    try:
        return iter(source)
    except TypeError:
        raise InvalidInput(f"is a {type(source).__name__}: give a path, a URL or an iterable", field="input") from None


def _frame_rows(source: Any) -> Iterator[dict[str, Any]] | None:
    """The rows of a frame of pandas or polars, or of anything else that speaks Arrow."""
    if not hasattr(source, "__arrow_c_stream__"):
        return None
    from batchpipe.storage.tables.columnar import frame_rows

    found = frame_rows(source)
    return (values for _, values in found) if found is not None else None


def _checked_rows(rows: Iterator[Any], recipe: Recipe | None) -> Iterator[bytes]:
    """Data rows as JSON lines; the first is made into a request, so that a wrong template is refused here."""
    assert recipe is not None
    for number, row in enumerate(rows, start=1):
        line = row if isinstance(row, bytes) else dump_row(row, number, is_data=True)
        if number == 1:
            _try(recipe, line)
        yield line if line.endswith(b"\n") else line + b"\n"


def _try(recipe: Recipe, line: bytes) -> None:
    from batchpipe.model.rendering import Renderer

    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError:
        return  # a line of a CSV, say: read when all of it is there
    if not isinstance(values, dict):
        return
    renderer = Renderer(recipe, lambda source: source)
    renderer.check_columns(list(values))
    try:
        renderer.line(1, values)
    except InvalidInput as error:
        raise error.at(1) from None


def _made_here(
    record: JobRecord, source: Iterable[Any], workspace: Folder, recipe: Recipe | None, request: MakesRequest
) -> JobRecord:
    """Requests that a function of the caller makes; its items are kept as data rows, as far as they are such."""
    if recipe is not None and recipe.makes_requests:
        raise InvalidInput("does not go with a prompt, text, image or body", field="request")
    column = recipe.id if recipe is not None else None
    size = 0
    kept: DataRowsWriter | None = None
    with ExitStack() as stack:
        file = stack.enter_context(workspace.writer(COPIED_INPUT))
        for number, item in enumerate(_items(source), start=1):
            values = as_dict(item, is_data=True)
            line = _requested(request, item, values, number, column, record.endpoint or DEFAULT_ENDPOINT)
            file.write(line)
            size += len(line)
            if number == 1 and values is not None:
                kept = DataRowsWriter(workspace, rows_file_of(SUBMIT), list(values))
                stack.callback(kept.discard)
            if kept is not None:
                kept.write(orjson.loads(dump_row(item, number, is_data=True)))
        if not size:
            raise InvalidInput("the input has no rows", code="input_empty")
        if kept is not None:
            kept.commit()
    name = kept.name if kept is not None else ""
    return record.evolve(input=workspace.path(COPIED_INPUT), bytes=size, rows_file=name)


def _requested(
    request: MakesRequest, item: Any, values: Mapping[str, Any] | None, number: int, column: str | None, endpoint: str
) -> bytes:
    made = as_dict(request(item))
    if made is None:
        raise InvalidInput("must return a body, or a whole request, as a dict", field="request", line=number)
    if "body" not in made or "model" in made:
        name = str(number) if column is None else str((values or {}).get(column, ""))
        made = {"custom_id": name, "method": "POST", "url": endpoint, "body": made}
    elif "custom_id" not in made:
        made = {"custom_id": str(number), "method": "POST", "url": endpoint, **made}
    return dump_row(made, number) + b"\n"


def dump_requests(rows: Iterable[Any]) -> Iterator[bytes]:
    """Requests as JSON lines with their newline. Bytes are lines already. Raises InvalidInput with the row's number."""
    for number, row in enumerate(rows, start=1):
        line = row if isinstance(row, bytes) else dump_row(row, number)
        yield line if line.endswith(b"\n") else line + b"\n"


def dump_row(row: Any, number: int, *, is_data: bool = False) -> bytes:
    """A row as JSON, without a newline. Raises InvalidInput with its number."""
    try:
        plain = as_dict(row, is_data=is_data)
        if plain is None:
            raise InvalidInput(
                f"a {type(row).__name__} is no row: give dicts or typed objects (a queryset has .values())", line=number
            )
        line = orjson.dumps(plain, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"cannot be written as JSON: {error}", line=number) from None
    if b"null" in line and _has_nan(plain):  # orjson writes NaN as null, silently
        raise InvalidInput("NaN and Infinity are no JSON", line=number)
    return line


def _plain(value: Any) -> Any:
    """What databases and frameworks give beside JSON's own types."""
    if isinstance(value, Decimal | timedelta | PurePath):
        return str(value)
    if hasattr(value, "_proxy____args") or hasattr(value, "__html__"):  # a translated text of Django
        return str(value)
    raise TypeError(f"a {type(value).__name__} is no JSON")


def as_dict(row: Any, *, is_data: bool = False) -> dict[str, Any] | None:
    """A mapping or typed object as a dict; None for anything else. Of a request fields that are None are left out; of
    data they are columns.
    """
    if isinstance(row, Mapping):
        return dict(row)
    if hasattr(row, "model_dump"):
        dumped: dict[str, Any] = row.model_dump(mode="json", exclude_none=not is_data)
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
