"""A page of batches that is decoded quickly is what the tolerant way makes of it, or is left to that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpipe.model.provider import Batch
from batchpipe.provider.fast_page import fast_page
from batchpipe.provider.parse import parse_batch

WHOLE: dict[str, Any] = {
    "id": "batch_1",
    "object": "batch",
    "status": "COMPLETED",
    "input_file_id": "file-1",
    "output_file_id": "file-2",
    "error_file_id": "file-3",
    "created_at": 1_700_000_000,
    "in_progress_at": 1_700_000_010,
    "completed_at": 1_700_000_020,
    "expired_at": None,
    "failed_at": 1_700_000_030,
    "cancelled_at": None,
    "expires_at": 1_700_086_400,
    "request_counts": {"total": 3, "completed": 1, "failed": None},
    "metadata": {"batchpipe_key": "job_x:0:1"},
    "errors": {"data": [{"code": "x", "line": 3}]},
    "usage": {"input_tokens": 7},
}


def page(*items: Any, **fields: Any) -> bytes:
    return json.dumps({"object": "list", "data": list(items), "has_more": False, **fields}).encode()


def test_a_page_as_it_should_be_is_decoded_quickly() -> None:
    """With all that is used of it; Azure's "" means no file."""
    whole = parse_batch(WHOLE)
    left_out = [name for name in Batch.__struct_fields__ if getattr(whole, name) == getattr(Batch(id=""), name)]
    assert left_out == []  # so that a new field of a batch is compared, too
    assert fast_page(page({**WHOLE, "output_file_id": ""})) == ([parse_batch({**WHOLE, "output_file_id": ""})], False)
    assert fast_page(page(WHOLE, {"id": "batch_2"}, has_more=True)) == (
        [parse_batch(WHOLE), parse_batch({"id": "batch_2"})],
        True,
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"<html>",
        b'{"data": null, "has_more": false}',
        b'{"has_more": false}',
        page({"id": None}),
        page({"status": "completed"}),
        page({"id": ".."}),
        page(7),
        page(WHOLE, has_more="yes"),
        json.dumps({"data": []}).encode(),
        page(WHOLE) + b"x",
    ],
)
def test_what_is_not_is_no_empty_page(content: bytes) -> None:
    """It is left to who takes it for trouble."""
    assert fast_page(content) is None


_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["", "x", "\u00e9\u00c9", "..", "\ud83d\ude00", "x" * 600]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["total", "completed", "failed", "data", "a"]), st.integers(-2, 5), max_size=3),
)


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.sampled_from([name for name in WHOLE if name != "id"]), _values, max_size=4))
def test_both_ways_give_the_same_batches(changed: dict[str, Any]) -> None:
    item = {**WHOLE, **changed}
    found = fast_page(page(item))
    if found is not None:
        assert found == ([parse_batch(json.loads(page(item))["data"][0])], False)
