"""Tables as inputs: whatever format and compression, the rows come back; what is wrong is said with its place."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchpipe.errors import InvalidInput
from batchpipe.storage import InputRules
from batchpipe.storage.tables import Reading, open_tables

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "bzip2": bz2.compress,
}


def rows_of(path: Path | list[Path], **how: Any) -> list[dict[str, Any]]:
    paths = path if isinstance(path, list) else [path]
    with open_tables(list(map(str, paths)), Reading(**how)) as table:
        return [row.values for row in table]


def written(folder: Path, data: bytes | str, name: str = "in") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def refusal(path: Path | list[Path], **how: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        rows_of(path, **how)
    return caught.value


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=30),
    packer=st.sampled_from(sorted(PACKERS)),
    delimiter=st.sampled_from(",;\t|"),
)
def test_any_cells_of_a_csv_come_back(tmp_path: Path, rows: list[tuple[str, ...]], packer: str, delimiter: str) -> None:
    """Quotes, delimiters and newlines within them, too; compressed or not."""
    text = io.StringIO(newline="")
    out = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    out.writerows([("id", "name", "more"), *rows])
    path = written(tmp_path, PACKERS[packer](text.getvalue().encode()))
    if ("id", "name", "more") in rows:
        return

    found = rows_of(path, delimiter=delimiter, header=True)

    assert [tuple(row.values()) for row in found] == rows
    assert all(list(row) == ["id", "name", "more"] for row in found)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_and_the_header_are_found(tmp_path: Path, delimiter: str) -> None:
    text = "\n".join(delimiter.join(cells) for cells in (["name", "price"], ["Lamp, small", "3"], ["Chair", "4"]))
    quoted = text if delimiter != "," else 'name,price\n"Lamp, small",3\nChair,4'
    assert rows_of(written(tmp_path, quoted)) == [
        {"name": "Lamp, small", "price": "3"},
        {"name": "Chair", "price": "4"},
    ]


def test_a_file_whose_first_row_has_a_number_has_no_header(tmp_path: Path) -> None:
    """Its columns are numbered."""
    assert rows_of(written(tmp_path, "1,Lamp\n2,Chair\n")) == [
        {"column1": "1", "column2": "Lamp"},
        {"column1": "2", "column2": "Chair"},
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_byte_order_mark_or_the_option_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "name\nCafé\nStraße\n".encode(encoding))
    told = {"encoding": "cp1252"} if encoding == "cp1252" else {}
    assert [row["name"] for row in rows_of(path, **told)] == ["Café", "Straße"]


def test_a_wrong_encoding_is_refused_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, "name\nok\nCafé\n".encode("cp1252")))
    assert (error.line, error.code) == (3, "input_encoding")
    assert "give --encoding, such as cp1252" in error.message


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a,b\n1,2\n1,2,3\n", 3, "has 3 cells, and the header has 2 columns"),
        ("a,b\n1,2\n1\n", 3, "has 1 cell, and the header has 2 columns"),
        ("a,b\n1,2\na,b\n", 3, "has the header again"),
        ("a,a\n1,2\n", 1, "has the column 'a' twice"),
        ('a,b\n1,"2\n3,4\n', 2, 'a " that opens here is never closed'),
        ("a,b\n1,2\n\n3,4\n", 3, "is blank"),
    ],
)
def test_a_bad_row_of_a_csv_is_refused_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    error = refusal(written(tmp_path, text))
    assert error.line == line
    assert says in error.message


def test_a_row_over_several_lines_counts_from_its_first(tmp_path: Path) -> None:
    path = written(tmp_path, 'a,b\n"1\n1",2\n3\n')
    assert refusal(path).line == 4


def test_blank_lines_at_the_end_are_no_error(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path, "a,b\n1,2\n\n\n")) == [{"a": "1", "b": "2"}]
    assert rows_of(written(tmp_path, '{"a": 1}\n\n \n')) == [{"a": 1}]


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, 'a,b\n1,"2\n' + "3,4\n" * 10_000), most_line=1_000)
    assert (error.line, "more than 1000 bytes" in error.message) == (2, True)


@pytest.mark.parametrize("packer", ["gzip", "zstd", "bzip2"])
def test_compressed_data_that_are_cut_anywhere_are_refused(tmp_path: Path, packer: str) -> None:
    """Never read as a shorter file."""
    data = PACKERS[packer](b"a,b\n" + b"".join(b"%d,%d\n" % (n, n * 7) for n in range(3_000)))
    for end in {20, len(data) // 2, len(data) - 1}:
        error = refusal(written(tmp_path, data[:end]))
        assert error.code == "input_encoding"
        assert "is cut off" in error.message or "is damaged" in error.message


def test_a_bomb_is_bounded(tmp_path: Path) -> None:
    """By the bytes that it becomes, and by how many times more these are."""
    path = written(tmp_path, gzip.compress(b"name\n" + (b"1" * 999 + b"\n") * 2_000))
    assert refusal(path, rules=InputRules(most_bytes=1_000_000)).code == "input_too_large"
    large = written(tmp_path, zstd.compress(b"name\n" + (b"1" * 9_999 + b"\n") * 8_000), "large")
    assert "times larger" in refusal(large, rules=InputRules(most_expansion=10)).message


def test_several_compressed_files_after_each_other_are_one(tmp_path: Path) -> None:
    """As ``cat a.gz b.gz`` makes them."""
    data = gzip.compress(b"a\n1\n") + gzip.compress(b"2\n")
    assert [row["a"] for row in rows_of(written(tmp_path, data), header=True)] == ["1", "2"]


VALUES = st.none() | st.integers(-(2**53), 2**53) | st.booleans() | CELLS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.none() | st.integers(-(2**60), 2**60), st.none() | CELLS, st.none() | st.booleans()), min_size=1
    )
)
def test_rows_of_parquet_and_arrow_come_back(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    table = pyarrow.table(
        {
            "number": pyarrow.array([row[0] for row in rows], pyarrow.int64()),
            "text": pyarrow.array([row[1] for row in rows], pyarrow.string()),
            "flag": pyarrow.array([row[2] for row in rows], pyarrow.bool_()),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    with pyarrow.ipc.new_file(tmp_path / "in.arrow", table.schema) as file:
        file.write_table(table)
    with pyarrow.ipc.new_stream(tmp_path / "in.stream", table.schema) as stream:
        stream.write_table(table)
    for name in ("in.parquet", "in.arrow", "in.stream"):
        assert [tuple(row.values()) for row in rows_of(tmp_path / name)] == rows


def test_dates_and_decimals_of_parquet_become_texts(tmp_path: Path) -> None:
    from datetime import UTC, date, datetime
    from decimal import Decimal

    values = {
        "day": [date(2026, 1, 2)],
        "at": [datetime(2026, 1, 2, 3, tzinfo=UTC)],
        "price": [Decimal("12.50")],
        "share": [float("nan")],
    }
    pyarrow.parquet.write_table(pyarrow.table(values), tmp_path / "in")
    found = rows_of(tmp_path / "in")
    assert found == [{"day": "2026-01-02", "at": "2026-01-02T03:00:00+00:00", "price": "12.50", "share": None}]
    orjson.dumps(found)


@pytest.mark.parametrize("values", [{"x": [[1]]}, {"x": [{"a": 1}]}, {"x": [b"bytes"]}])
def test_nested_and_binary_columns_of_parquet_are_refused_by_name(tmp_path: Path, values: dict[str, Any]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(values), tmp_path / "in")
    error = refusal(tmp_path / "in")
    assert error.field == "x"
    assert "nested" in error.message or "binary" in error.message


def test_a_parquet_that_is_cut_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"x": list(range(1_000))}), tmp_path / "in")
    data = (tmp_path / "in").read_bytes()
    for end in (100, len(data) // 2, len(data) - 3):
        assert "cannot be read as Parquet" in refusal(written(tmp_path, data[:end], "cut")).message


def test_a_stream_of_arrow_that_is_cut_between_two_batches_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"x": list(range(3_000))})
    with pyarrow.ipc.new_stream(tmp_path / "in", table.schema) as stream:
        for batch in table.to_batches(max_chunksize=1_000):
            stream.write_batch(batch)
    data = (tmp_path / "in").read_bytes()
    assert "is cut off" in refusal(written(tmp_path, data[: len(data) - 8], "cut")).message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\x03\x04....", "Excel sheet"),
        (b'[{"a": 1}]', "JSON array"),
        (b'{\n "a": 1\n}', "over several lines"),
        (b"<html>", "XML or HTML"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    assert says in refusal(written(tmp_path, data)).message


def test_several_files_are_one_table_in_the_order_given(tmp_path: Path) -> None:
    one, other = written(tmp_path, "a,b\n1,2\n", "1.csv"), written(tmp_path, '{"a": 3, "b": 4}\n', "2.jsonl")
    assert rows_of([other, one]) == [{"a": 3, "b": 4}, {"a": "1", "b": "2"}]


def test_a_later_file_with_other_columns_is_refused_with_its_name(tmp_path: Path) -> None:
    one, other = written(tmp_path, "a,b\n1,2\n", "1.csv"), written(tmp_path, "a,c\n3,4\n", "2.csv")
    error = refusal([one, other])
    assert (error.file, error.line) == (str(other), 1)
    assert "has no column 'b'" in error.message


def test_bad_rows_can_be_collected(tmp_path: Path) -> None:
    """Reading goes on behind each."""
    found: list[InvalidInput] = []
    path = written(tmp_path, "a,b\n1\n2,3\n4,5,6\n7,8\n")
    assert rows_of(path, bad_row=found.append) == [{"a": "2", "b": "3"}, {"a": "7", "b": "8"}]
    assert [error.line for error in found] == [2, 4]
