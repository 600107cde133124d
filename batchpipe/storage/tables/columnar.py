"""Parquet and Arrow, and frames of libraries that speak Arrow; needs pyarrow."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, BinaryIO

from batchpipe.errors import InvalidInput, SettingsError

#: The last bytes of a stream of Arrow.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
#: Rows that are decoded at once.
_AT_ONCE = 128


def arrow() -> Any:
    """Raises SettingsError if pyarrow is missing."""
    try:
        import pyarrow
    except ImportError:
        hint = 'pip install "batchpipe[tables]"'
        raise SettingsError(f"a package for Parquet and Arrow is missing: {hint}", code="package_missing") from None
    return pyarrow


class ColumnarRows:
    """The rows of one file, or of one frame."""

    def __init__(self, schema: Any, batches: Iterator[Any]) -> None:
        """``schema``, ``batches``: of pyarrow. Raises InvalidInput for a column that is nested or binary."""
        self.columns: list[str] = list(schema.names)
        self._batches = batches
        self._plain = [_conversion(field) for field in schema]
        if twice := [name for name in self.columns if self.columns.count(name) > 1]:
            raise InvalidInput(f"the column {twice[0]!r} is there twice; rename one", field=twice[0])

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for batch in self._batches:
            for start in range(0, batch.num_rows, _AT_ONCE):
                part = batch.slice(start, _AT_ONCE)
                with arrow_errors("a table"):
                    pairs = zip(part.columns, self._plain, strict=True)
                    columns = [_plain(column, convert) for column, convert in pairs]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(self.columns, cells, strict=True))


def _plain(column: Any, convert: Callable[[Any], Any] | None) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _conversion(field: Any) -> Callable[[Any], Any] | None:
    types = arrow().types
    kind = field.type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_nested(kind):
        raise InvalidInput(
            f"is nested ({shortened_type(kind)}): give a table whose cells are texts, numbers, dates or true and false",
            field=field.name,
        )
    if "binary" in str(kind):
        raise InvalidInput(f"is binary ({kind}); leave it out, or give text", field=field.name)
    if types.is_floating(kind):
        return partial(_finite, field.name)
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind):
        return None
    return _text if not types.is_null(kind) else None


def shortened_type(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 60 else text[:57] + "..."


def _finite(column: str, value: float) -> float | None:
    """Frames say NaN where a value is missing."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise InvalidInput("has a number that is infinite, which is no JSON", field=column)
    return value


def _text(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    return value if isinstance(value, str | int | float | bool) else str(value)


def parquet_rows(file: BinaryIO) -> ColumnarRows:
    """``file`` can seek. Raises InvalidInput."""
    arrow()
    from pyarrow import parquet

    with arrow_errors("Parquet"):
        found = parquet.ParquetFile(file, pre_buffer=False)
        return ColumnarRows(found.schema_arrow, _told(found.iter_batches(batch_size=_AT_ONCE), "Parquet"))


def arrow_rows(file: BinaryIO, *, is_stream: bool) -> ColumnarRows:
    """An Arrow file (Feather, too), or a stream of Arrow. Raises InvalidInput."""
    pyarrow = arrow()
    with arrow_errors("Arrow"):
        if is_stream:
            file.seek(-len(_END_OF_STREAM), os.SEEK_END)
            if file.read() != _END_OF_STREAM:  # one that is cut between two batches looks whole otherwise
                raise InvalidInput("is cut off: the stream of Arrow has no end")
            file.seek(0)
            stream = pyarrow.ipc.open_stream(file)
            return ColumnarRows(stream.schema, _told(iter(stream), "Arrow"))
        reader = pyarrow.ipc.open_file(file)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        return ColumnarRows(reader.schema, _told(batches, "Arrow"))


def frame_rows(frame: Any) -> ColumnarRows | None:
    """A pandas or polars frame, or anything else with Arrow's stream interface; None for other objects."""
    if not hasattr(frame, "__arrow_c_stream__"):
        return None
    with arrow_errors("a frame"):
        reader = arrow().RecordBatchReader.from_stream(frame)
    names = [name for name in reader.schema.names if not name.startswith("__index_level_")]
    if names != reader.schema.names:
        reader = _without_index(reader, names)
    return ColumnarRows(reader.schema, iter(reader))


def _without_index(reader: Any, names: Sequence[str]) -> Any:
    pyarrow = arrow()
    schema = pyarrow.schema([reader.schema.field(name) for name in names])
    return pyarrow.RecordBatchReader.from_batches(schema, (batch.select(list(names)) for batch in reader))


class arrow_errors:  # noqa: N801 - a block, like contextlib's
    """What pyarrow says of a file becomes InvalidInput."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, arrow().lib.ArrowException | OSError | ValueError | OverflowError):
            words = " ".join(str(error).split())[:200]
            raise InvalidInput(f"is damaged or cut off: it cannot be read as {self._kind} ({words})") from None


def _told(batches: Iterator[Any], kind: str) -> Iterator[Any]:
    while True:
        with arrow_errors(kind):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
