"""Results as tables: the columns of the input, then what was answered, one row for each row of the input."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, BinaryIO, Literal

import orjson

from batchpipe.errors import InvalidInput, SettingsError
from batchpipe.model.outcome import Outcome
from batchpipe.model.recipe import Recipe

#: The types of columns; ``text`` holds anything else as JSON.
Kind = Literal["text", "int", "float", "bool", "floats"]
#: Rows that are turned into columns at once, and about how many characters.
_AT_ONCE, _MOST_TEXT = 1_000, 8 << 20
#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_BOM = "\ufeff"
_KINDS: dict[str, Kind] = {"string": "text", "integer": "int", "number": "float", "boolean": "bool"}


@dataclass(frozen=True)
class Column:
    """One column of a table of results."""

    name: str
    kind: Kind
    get: Callable[[Outcome], Any]


def _of_input(name: str) -> Callable[[Outcome], Any]:
    return lambda row: row.input.get(name) if row.input is not None else None


def _of_answer(name: str) -> Callable[[Outcome], Any]:
    def get(row: Outcome) -> Any:
        found = row.answer
        if hasattr(found, "model_dump"):
            found = found.model_dump(mode="json", by_alias=True)
        return found.get(name) if isinstance(found, Mapping) else None

    return get


def _whole_answer(row: Outcome) -> Any:
    if row.text is not None:
        return row.text
    if row.embedding is not None:
        return list(row.embedding)
    body = row.body
    return body.get("results") if isinstance(body, Mapping) else None


def _tokens(name: str) -> Callable[[Outcome], Any]:
    return lambda row: row.usage.get(name)


#: What can be asked for beside the columns of a table.
EXTRA: dict[str, Column] = {
    column.name: column
    for column in (
        Column("custom_id", "text", lambda row: row.custom_id),
        Column("index", "int", lambda row: row.index),
        Column("text", "text", lambda row: row.text),
        Column("refusal", "text", lambda row: row.refusal),
        Column("model", "text", lambda row: row.model),
        Column("attempts", "int", lambda row: row.attempts),
        Column("embedding", "floats", lambda row: list(row.embedding) if row.embedding is not None else None),
        Column("total_tokens", "int", _tokens("total_tokens")),
        Column("cached_tokens", "int", _tokens("cached_tokens")),
        Column("reasoning_tokens", "int", _tokens("reasoning_tokens")),
    )
}


def table_columns(given: Mapping[str, Kind] | None, recipe: Recipe | None, *, embeds: bool = False) -> list[Column]:
    """The columns of a job's results. ``given``: those of its input, with their types; None for requests, which have
    their ``custom_id``. ``embeds``: answers are embeddings.
    """
    found: list[Column] = []

    def add(name: str, kind: Kind, get: Callable[[Outcome], Any]) -> None:
        taken = {column.name for column in found}
        number, free = 2, name
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        found.append(Column(free, kind, get))

    for name, kind in ({"custom_id": None} if given is None else given).items():
        add(name, kind or "text", _of_input(name) if given is not None else EXTRA["custom_id"].get)
    properties = (recipe.answer or {}).get("properties") if recipe is not None else None
    if isinstance(properties, Mapping) and properties:
        for name, schema in properties.items():
            add(name, _kind_of(schema), _of_answer(name))
    else:
        add("answer", "floats" if embeds else "text", _whole_answer)
    add("state", "text", lambda row: row.state.value)
    add("error", "text", lambda row: row.reason)
    add("finish_reason", "text", lambda row: row.finish_reason)
    add("input_tokens", "int", _tokens("input_tokens"))
    add("output_tokens", "int", _tokens("output_tokens"))
    add("cost", "float", lambda row: row.cost)
    return found


def chosen_columns(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """Those of these names. Raises InvalidInput for a name that is none."""
    known = {**EXTRA, **{column.name: column for column in columns}}
    if unknown := [name for name in names if name not in known]:
        message = f"there is no column {unknown[0]!r}; there are: {', '.join(known)}"
        raise InvalidInput(message, field="columns", code="column_unknown")
    return [known[name] for name in dict.fromkeys(names)]


def _kind_of(schema: Any) -> Kind:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(kind, list):
        kinds = [one for one in kind if one != "null"]
        kind = kinds[0] if len(kinds) == 1 else None
    return _KINDS.get(kind, "text") if isinstance(kind, str) else "text"


def kinds_of(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> dict[str, Kind]:
    """The type of each column of data rows, found by reading them once."""
    seen: dict[str, set[type]] = {name: set() for name in columns}
    for row in rows:
        for name, value in row.items():
            if name in seen:
                seen[name].add(type(value) if not _is_too_large(value) else str)
    return {name: _kind_of_values(kinds - {type(None)}) for name, kinds in seen.items()}


def _is_too_large(value: Any) -> bool:
    """A whole number that a column of numbers would change, or cannot hold."""
    return type(value) is int and not -(2**53) <= value <= 2**53


def _kind_of_values(kinds: set[type]) -> Kind:
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int"
    return "float" if kinds and kinds <= {int, float} else "text"


def write_csv(file: BinaryIO, columns: Sequence[Column], rows: Iterable[Outcome], *, excel: bool = False) -> None:
    """Write a table as CSV: UTF-8, a header, newlines within cells in quotes. ``excel``: with a byte order mark, and
    cells that a spreadsheet would take for formulas escaped.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="", write_through=False)
    try:
        if excel:
            text.write(_BOM)
        cell = _safe_cell if excel else _cell
        out = csv.writer(text, lineterminator="\r\n")  # else a lone \r in a cell gets no quotes
        out.writerow([cell(column.name) for column in columns])
        for row in rows:
            out.writerow([cell(column.get(row)) for column in columns])
    finally:
        text.detach()


def write_objects(file: BinaryIO, columns: Sequence[Column], rows: Iterable[Outcome]) -> None:
    """Write a table as JSON lines: an object for each row."""
    for row in rows:
        values = {column.name: _json(column.get(row)) for column in columns}
        file.write(orjson.dumps(values) + b"\n")


def _json(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else value


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else value


def _safe_cell(value: Any) -> Any:
    found = _cell(value)
    return f"'{found}" if isinstance(found, str) and found.startswith(_FORMULA) and isinstance(value, str) else found


def write_parquet(file: BinaryIO, columns: Sequence[Column], rows: Iterable[Outcome]) -> None:
    """Write a table as Parquet. Raises SettingsError if pyarrow is missing."""
    pyarrow = _arrow()
    from pyarrow import parquet

    schema = arrow_schema(columns)
    with parquet.ParquetWriter(file, schema, compression="zstd") as out:
        for batch in arrow_batches(columns, rows):
            out.write_table(pyarrow.Table.from_batches([batch], schema))


def check_arrow() -> None:
    """Raises SettingsError if pyarrow is missing."""
    _arrow()


def _arrow() -> Any:
    from batchpipe.storage.tables.columnar import arrow

    return arrow()


def arrow_schema(columns: Sequence[Column]) -> Any:
    """Raises SettingsError if pyarrow is missing."""
    pyarrow = _arrow()
    types = {
        "text": pyarrow.string(),
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "bool": pyarrow.bool_(),
        "floats": pyarrow.list_(pyarrow.float64()),
    }
    return pyarrow.schema([(column.name, types[column.kind]) for column in columns])


def arrow_batches(columns: Sequence[Column], rows: Iterable[Outcome]) -> Iterator[Any]:
    """The table as record batches of about a thousand rows."""
    pyarrow = _arrow()
    schema, converts = arrow_schema(columns), [_CONVERTS[column.kind] for column in columns]
    for part in _parts(rows):
        cells = [[convert(column.get(row)) for row in part] for column, convert in zip(columns, converts, strict=True)]
        arrays = [pyarrow.array(values, kind.type) for values, kind in zip(cells, schema, strict=True)]
        yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)


def arrow_table(columns: Sequence[Column], rows: Iterable[Outcome]) -> Any:
    """All of it in memory. Raises SettingsError if pyarrow is missing."""
    return _arrow().Table.from_batches(arrow_batches(columns, rows), arrow_schema(columns))


def polars_frame(table: Any) -> Any:
    """Raises SettingsError if polars is missing."""
    try:
        import polars
    except ImportError:
        raise SettingsError("polars is missing: pip install polars", code="package_missing") from None
    return polars.from_arrow(table)


def _parts(rows: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Few enough at once that long texts do not fill the memory."""
    source = iter(rows)
    while part := list(islice(source, 64)):
        size = sum(map(_size_of, part))
        while len(part) < _AT_ONCE and size < _MOST_TEXT and (more := list(islice(source, 64))):
            size += sum(map(_size_of, more))
            part += more
        yield part


def _size_of(row: Outcome) -> int:
    """About how many bytes its cells take in memory."""
    cells = sum(len(value) for value in (row.input or {}).values() if isinstance(value, str))
    return len(row.text or "") + cells + 32 * len(row.embedding or ())


def _as_text(value: Any) -> str | None:
    found = _cell(value)
    return None if found is None else str(found).encode(errors="replace").decode()


def _as_int(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():  # 5.0 is an integer of JSON Schema
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _as_float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else None


def _as_bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _as_floats(value: Any) -> list[float] | None:
    return value if isinstance(value, list) else None


_CONVERTS: dict[Kind, Callable[[Any], Any]] = {
    "text": _as_text,
    "int": _as_int,
    "float": _as_float,
    "bool": _as_bool,
    "floats": _as_floats,
}
