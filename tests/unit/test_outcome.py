"""What a row of results says: text, answer, embedding, usage, cost; and nothing raises for an odd body."""

from __future__ import annotations

import base64
import csv
import io
from array import array
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from batchpipe.errors import InvalidInput
from batchpipe.model.answers import OutcomeState
from batchpipe.model.outcome import Outcome, Reads
from batchpipe.model.recipe import Recipe
from batchpipe.pipeline.result_tables import (
    arrow_table,
    chosen_columns,
    kinds_of,
    polars_frame,
    table_columns,
    write_csv,
    write_parquet,
)


def outcome(body: Any = None, **fields: Any) -> Outcome:
    response = {"status_code": 200, "body": body}
    return Outcome(**{"index": 0, "custom_id": "a", "state": OutcomeState.OK, "response": response, **fields})


def chat(content: Any, **message: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    choice = {"message": {"content": content, **message}, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


def test_the_text_of_a_chat_is_all_of_its_parts() -> None:
    assert outcome(chat("hello")).text == "hello"
    assert outcome(chat([{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}])).text == "hello"
    assert (outcome(chat(None, refusal="no")).text, outcome(chat(None, refusal="no")).refusal) == (None, "no")


def test_the_text_of_a_response_is_all_output_parts_of_all_messages() -> None:
    """Not the first one, and not the reasoning."""
    parts = [{"type": "output_text", "text": "he"}, {"type": "output_text", "text": "l"}]
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "content": parts},
        {"type": "message", "content": [{"type": "output_text", "text": "lo"}, {"type": "refusal", "refusal": "no"}]},
    ]
    row = outcome(
        {
            "object": "response",
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": output,
        }
    )
    assert (row.text, row.refusal, row.finish_reason) == ("hello", "no", "max_output_tokens")


def test_an_embedding_is_an_array_also_from_base64() -> None:
    packed = base64.b64encode(array("f", [0.5, 1.5]).tobytes()).decode()
    assert outcome({"data": [{"embedding": [0.5, 1.5]}, {"embedding": [2]}]}).embedding == array("d", [0.5, 1.5])
    assert outcome({"data": [{"embedding": packed}]}).embedding == array("f", [0.5, 1.5])


def test_an_answer_is_parsed_where_a_schema_was_asked_for() -> None:
    class Thing(BaseModel):
        word: str

    body = chat('{"word": "w"}')
    assert outcome(body).answer == '{"word": "w"}'
    assert outcome(body, reads=Reads(parse=True)).answer == {"word": "w"}
    assert outcome(body, reads=Reads(parse=True, model=Thing)).answer == Thing(word="w")
    assert outcome(chat("no"), reads=Reads(parse=True, model=Thing)).answer is None
    assert outcome(chat("no"), reads=Reads(parse=True)).answer is None


def test_the_cost_is_exact_and_unknown_where_the_price_is() -> None:
    row = outcome(chat("x"), reads=Reads(price=lambda model, usage: usage["total_tokens"] * 75_000))
    assert row.cost == Decimal("0.000000525")
    assert outcome(chat("x")).cost is None
    assert row.usage == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "output", "type", "text", "data", "embedding", "usage", "model"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_no_body_makes_a_property_raise(body: Any, error: Any) -> None:
    row = outcome(body, error=error, state=OutcomeState.FAILED, reads=Reads(parse=True))
    for name in ("id", "text", "answer", "embedding", "refusal", "finish_reason", "usage", "cost", "model", "reason"):
        getattr(row, name)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXTS, st.none() | st.integers(-(2**60), 2**60), TEXTS), min_size=1, max_size=20))
def test_tables_are_read_back_as_they_were_written(rows: list[tuple[Any, ...]]) -> None:
    """By csv, pyarrow, pandas and polars."""
    given_rows = [{"name": name, "size": size} for name, size, _ in rows]
    outcomes = [outcome(chat(said), input=values) for values, (_, _, said) in zip(given_rows, rows, strict=True)]
    columns = table_columns(kinds_of(["name", "size"], given_rows), None)
    text, packed = io.BytesIO(), io.BytesIO()
    write_csv(text, columns, outcomes)
    write_parquet(packed, columns, outcomes)

    read = list(csv.DictReader(io.StringIO(text.getvalue().decode(), newline="")))
    assert [(row["name"], row["size"], row["answer"]) for row in read] == [
        (name, "" if size is None else str(size), said) for name, size, said in rows
    ]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(packed.getvalue()))
    for found in (table, arrow_table(columns, outcomes)):
        assert [(row["name"], row["answer"]) for row in found.to_pylist()] == [(name, said) for name, _, said in rows]
        assert polars_frame(found)["answer"].to_list() == [said for *_, said in rows]
        assert found.to_pandas()["answer"].tolist() == [said for *_, said in rows]


def test_a_name_that_is_taken_gets_a_number() -> None:
    columns = table_columns({"answer": "text", "state": "text"}, None)
    assert [column.name for column in columns][:4] == ["answer", "state", "answer_2", "state_2"]


def test_each_field_of_the_schema_is_a_column_of_its_type() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": ["string", "null"]}, "c": {"type": "array"}}}
    columns = table_columns(None, Recipe(endpoint="/x", answer=schema))
    assert [(column.name, column.kind) for column in columns[:4]] == [
        ("custom_id", "text"),
        ("a", "int"),
        ("b", "text"),
        ("c", "text"),
    ]


def test_columns_are_chosen_by_name() -> None:
    columns = table_columns(None, None)
    assert [column.name for column in chosen_columns(columns, ["answer", "model"])] == ["answer", "model"]
    with pytest.raises(InvalidInput, match="there is no column 'nope'"):
        chosen_columns(columns, ["nope"])


def test_cells_that_look_like_formulas_are_escaped_for_spreadsheets() -> None:
    outcomes = [outcome(chat(said)) for said in ("=1+1", "+1", "-1", "@x", "\tx", "plain")]
    file = io.BytesIO()
    write_csv(file, table_columns(None, None), outcomes, excel=True)
    assert file.getvalue().startswith(b"\xef\xbb\xbf")
    read = list(csv.DictReader(io.StringIO(file.getvalue().decode("utf-8-sig"), newline="")))
    assert [row["answer"] for row in read] == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "plain"]


def test_numbers_that_a_column_would_change_are_kept_as_texts() -> None:
    """More than a float, or 64 bits, can hold."""
    rows: list[dict[str, Any]] = [{"a": 2**60 + 1, "b": 1}, {"a": 0.5, "b": 2**70}]
    assert kinds_of(["a", "b"], rows) == {"a": "text", "b": "text"}
    outcomes = [outcome(chat("x"), input=row) for row in rows]
    found = arrow_table(table_columns(kinds_of(["a", "b"], rows), None), outcomes).to_pylist()
    assert [(row["a"], row["b"]) for row in found] == [(str(2**60 + 1), "1"), ("0.5", str(2**70))]


def test_the_answers_of_a_model_with_aliases_fill_the_columns_of_its_schema() -> None:
    class Thing(BaseModel):
        size: int = Field(alias="Size")

    schema = {"properties": {"Size": {"type": "integer"}}}
    (column, *_) = table_columns({}, Recipe(endpoint="/x", answer=schema))
    assert column.get(outcome(chat('{"Size": 5}'), reads=Reads(parse=True, model=Thing))) == 5
