"""What makes a batch fail before any row is run."""

from __future__ import annotations

import json

import pytest

from batchpipe.sandbox import Sandbox


def encode(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def found(batch):
    return [(error.code, error.line, error.param) for error in batch.errors.data]


def bad(row, **changes):
    changed = {**row("bad"), **changes}
    return {key: value for key, value in changed.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"custom_id": ...}, ("invalid_request", 2, "custom_id")),
        ({"custom_id": 7}, ("invalid_request", 2, "custom_id")),
        ({"custom_id": "r0"}, ("duplicate_custom_id", 2, "custom_id")),
        ({"method": "GET"}, ("invalid_request", 2, "method")),
        ({"method": ...}, ("invalid_request", 2, "method")),
        ({"url": "/v1/embeddings"}, ("url_mismatch", 2, "url")),
        ({"url": "/chat/completions"}, ("url_mismatch", 2, "url")),
        ({"url": ...}, ("url_mismatch", 2, "url")),
        ({"body": ...}, ("invalid_request", 2, "body")),
        ({"body": "text"}, ("invalid_request", 2, "body")),
        ({"body": {"model": "other", "messages": []}}, ("model_mismatch", 2, "body.model")),
        ({"body": {"model": "gpt-4o-mini", "stream": True}}, ("invalid_request", 2, "body.stream")),
    ],
)
def test_a_bad_row_fails_the_batch_with_its_line(api, sandbox, row, changes, error):
    """The batch ends as failed; errors.data names code, line and param; nothing ran, nothing was billed."""
    batch = api.run(encode(row("r0"), bad(row, **changes), row("r2")))

    assert (batch.status, found(batch)) == ("failed", [error])
    assert batch.errors.data[0].message
    assert batch.failed_at >= batch.created_at
    assert batch.in_progress_at is batch.output_file_id is batch.error_file_id is None
    assert sandbox.ledger.rows() == []


@pytest.mark.parametrize("line", [b"{broken", b"[1, 2]", b'"text"', b"\xff\xfe", b'{"a": NaN}', b"\xef\xbb\xbf{}", b""])
def test_a_line_that_is_no_json_object_is_named(api, row, line):
    """Broken JSON, other JSON, bad UTF-8, a BOM, a blank line in the middle."""
    batch = api.run(encode(row("r0")) + line + b"\n" + encode(row("r2")))

    assert (batch.status, found(batch)) == ("failed", [("invalid_json_line", 2, None)])
    assert batch.errors.data[0].message == "This line is not parseable as valid JSON."


def test_blank_lines_at_the_end_do_no_harm(api, row):
    """Editors leave them."""
    assert api.run(encode(row()) + b"\n  \n").status == "completed"


def test_the_last_line_needs_no_newline(api, row):
    """As with the real API."""
    assert api.run(encode(row("a"), row("b")).rstrip()).request_counts.completed == 2


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
def test_an_empty_file_fails(api, content):
    """There must be at least one request."""
    batch = api.run(content)

    assert (batch.status, found(batch)) == ("failed", [("empty_file", None, "input_file_id")])


def test_many_errors_are_reported_up_to_100(api, row):
    """Each with its line."""
    some = api.run(encode(*(bad(row, custom_id=f"r{n}", method="GET") for n in range(3))))
    many = api.run(encode(*(bad(row, custom_id=f"r{n}", method="GET") for n in range(150))))

    assert [error.line for error in some.errors.data] == [1, 2, 3]
    assert len(many.errors.data) == 100


def test_over_50000_rows_fail(api, row):
    """50,000 are allowed (the limit itself is tested with smaller numbers), one more is not."""
    line = '{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{}}\n'

    batch = api.run("".join(line % number for number in range(50_001)).encode())

    assert (batch.status, found(batch)) == ("failed", [("too_many_tasks", None, "input_file_id")])


def test_the_limits_themselves_are_allowed(api_for, row):
    """Exactly as many rows, bytes and inputs as allowed pass; one more does not."""
    data = encode(row("a"), row("b"))
    embed = {"method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": ["x", "y"]}}
    embeddings = encode(*({"custom_id": str(n), **embed} for n in range(2)))
    with Sandbox(validating_seconds=0, max_rows=2, max_file_bytes=len(data), max_embedding_inputs=4) as sandbox:
        api = api_for(sandbox)
        assert api.run(data).status == "completed"
        assert api.run(embeddings, "/v1/embeddings").status == "completed"
        large = api.run(data + b"\n")
        rows = api.run(b'{"custom_id":"a"}\n' * 3)
        inputs = api.run(embeddings.replace(b'"y"', b'"y","z"'), "/v1/embeddings")

    assert found(large) == [("invalid_request", None, "input_file_id")]
    assert "larger than the" in large.errors.data[0].message
    assert "too_many_tasks" in {code for code, _, _ in found(rows)}
    assert found(inputs) == [("too_many_tasks", 2, "body.input")]


def test_over_200_mb_fail(api, sandbox, tmp_path):
    """A sparse file will do."""
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        file.truncate(200_000_001)
    with path.open("rb") as file:
        uploaded = api.client.files.create(file=file, purpose="batch")

    batch = api.client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    assert found(api.wait(batch)) == [("invalid_request", None, "input_file_id")]


def test_over_50000_embedding_inputs_fail(api):
    """The inputs of all rows are summed."""
    line = {"method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": ["x"] * 2000}}

    batch = api.run(encode(*({"custom_id": str(n), **line} for n in range(26))), "/v1/embeddings")

    assert found(batch) == [("too_many_tasks", 26, "body.input")]


def test_a_list_of_tokens_is_one_embedding_input(api_for):
    """A list of integers is one text; a list of such lists is several."""
    body = {"model": "m", "input": [1, 2, 3]}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    with Sandbox(validating_seconds=0, max_embedding_inputs=1) as sandbox:
        api = api_for(sandbox)
        assert api.run(encode(row), "/v1/embeddings").status == "completed"
        body["input"] = [[1], [2]]
        assert api.run(encode(row), "/v1/embeddings").status == "failed"
