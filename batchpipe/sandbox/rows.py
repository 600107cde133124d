"""Run one row: ask the answerer, apply the faults, build the line of the output or the error file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from batchpipe.sandbox.answers import answer
from batchpipe.sandbox.batches import Batch, Usage
from batchpipe.sandbox.errors import ApiError, error_body, error_type
from batchpipe.sandbox.faults import Fault, Faults
from batchpipe.sandbox.ledger import LedgerRow
from batchpipe.sandbox.unwanted import unwanted
from batchpipe.sandbox.validation import canonical

#: Answers a row: (url, body) -> (status code, response body).
Answerer = Callable[[str, dict[str, Any]], tuple[int, Any]]


@dataclass
class RowResult:
    """The result of a row. A row that is missing has neither line."""

    output: bytes = b""
    error: bytes = b""
    completed: bool = False
    failed: bool = False
    usage: Usage = field(default_factory=Usage)
    ledger: LedgerRow | None = None


def local_answer(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    """The sandbox's own answer."""
    try:
        return 200, answer(url, body)
    except ApiError as error:
        return error.status, error.body()


def run_row(batch: Batch, position: int, raw: bytes, faults: Faults, answerer: Answerer) -> RowResult:
    """Run the row of an input line. `position` is its place in the order in which the batch runs."""
    row = orjson.loads(raw)
    custom_id: str = row["custom_id"]
    fault = faults.for_row(batch.metadata or {}, custom_id)
    result = RowResult()
    status: int | None
    if fault is not None and fault.kind == "row_body":
        return _odd_body(batch, position, raw, row, fault, answerer)
    if fault is not None and fault.kind == "row_answer":
        return _odd_answer(batch, position, raw, row, fault, answerer)
    if fault is not None and not fault.billed:
        status, body, billed = _faulty(fault), None, False
    else:
        status, body = answerer(canonical(row["url"], batch.azure), row["body"])
        billed = status == 200
        result.usage = usage_of(body) if billed else Usage()
    result.ledger = _ledger(batch, position, raw, custom_id, status, billed, result.usage)
    if fault is not None and fault.kind == "row_missing":
        result.completed = billed
    elif fault is not None:
        _fail(result, batch, custom_id, fault)
    else:
        result.completed, result.failed = status == 200, status != 200
        line = _line(batch, custom_id, status, body)
        result.output, result.error = (line, b"") if result.completed else (b"", line)
    return result


def _odd_body(
    batch: Batch, position: int, raw: bytes, row: dict[str, Any], fault: Fault, answerer: Answerer
) -> RowResult:
    """A row with status 200, counted as completed, with an unusual body."""
    custom_id: str = row["custom_id"]
    url = canonical(row["url"], batch.azure)
    _, usual = answerer(url, row["body"])
    body = _changed(usual, fault, url)
    if isinstance(body, dict) and not fault.billed and "usage" in body:
        body["usage"] = None
    result = RowResult(completed=True, usage=usage_of(body) if fault.billed else Usage())
    status = 200 if fault.status is None else fault.status
    result.output = _line(batch, custom_id, status, body)
    result.ledger = _ledger(batch, position, raw, custom_id, status, fault.billed, result.usage)
    return result


def _odd_answer(
    batch: Batch, position: int, raw: bytes, row: dict[str, Any], fault: Fault, answerer: Answerer
) -> RowResult:
    """A row that is answered and paid for, with an answer that nobody wants: invalid, cut or refused."""
    custom_id: str = row["custom_id"]
    status, body = answerer(canonical(row["url"], batch.azure), row["body"])
    body = unwanted(body, fault.mode)
    result = RowResult(completed=status == 200, failed=status != 200, usage=usage_of(body))
    line = _line(batch, custom_id, status, body)
    result.output, result.error = (line, b"") if result.completed else (b"", line)
    result.ledger = _ledger(batch, position, raw, custom_id, status, status == 200, result.usage)
    return result


def _changed(usual: object, fault: Fault, url: str) -> object:
    """By default what such an endpoint returns for its own trouble: a failed response, or an error as the body."""
    if isinstance(fault.json, dict):
        return {**usual, **fault.json} if isinstance(usual, dict) else fault.json
    if fault.json is not None:
        return fault.json
    code = fault.code or "server_error"
    error = {"code": code, "message": fault.message or "The sandbox was told to fail this row."}
    if url == "/v1/responses" and isinstance(usual, dict):
        return {**usual, "status": "failed", "error": error, "output": []}
    return {"error": error}


def _ledger(
    batch: Batch, position: int, raw: bytes, custom_id: str, status: int | None, billed: bool, usage: Usage
) -> LedgerRow:
    digest = hashlib.blake2b(raw.strip(), digest_size=16).hexdigest()
    return LedgerRow(batch.id, position, batch.job, custom_id, digest, status, int(billed), usage.input, usage.output)


def skipped_line(batch: Batch, raw: bytes, code: str, message: str) -> bytes:
    """The error file's line for a row that was not run."""
    return _not_executed(batch, orjson.loads(raw)["custom_id"], code, message)


def usage_of(body: object) -> Usage:
    """The tokens of a response body, in either of the two spellings."""
    told = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(told, dict):
        return Usage()

    def number(*path: str) -> int:
        found: Any = told
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        return found if isinstance(found, int) else 0

    return Usage(
        input=number("prompt_tokens") or number("input_tokens"),
        cached=number("prompt_tokens_details", "cached_tokens") or number("input_tokens_details", "cached_tokens"),
        output=number("completion_tokens") or number("output_tokens"),
        reasoning=number("completion_tokens_details", "reasoning_tokens")
        or number("output_tokens_details", "reasoning_tokens"),
    )


def _faulty(fault: Fault) -> int | None:
    if fault.kind == "row_missing" or (fault.status is None and fault.code is not None):
        return None
    return 500 if fault.status is None else fault.status


def _fail(result: RowResult, batch: Batch, custom_id: str, fault: Fault) -> None:
    status = _faulty(fault)
    message = fault.message or "The sandbox was told to fail this row."
    if status is None:
        result.failed = True
        result.error = _not_executed(batch, custom_id, fault.code or "server_error", message)
    elif status == 0:
        # The real API does this, too: such lines are in the output file and count as completed.
        result.completed = True
        result.output = _line(batch, custom_id, 0, {})
    else:
        result.failed = True
        body = error_body(message, type=error_type(status), code=fault.code)
        result.error = _line(batch, custom_id, status, body)


def _ids(batch: Batch, custom_id: str) -> str:
    text = f"{batch.id}\0{custom_id}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _line(batch: Batch, custom_id: str, status: int | None, body: object) -> bytes:
    unique = _ids(batch, custom_id)
    response = {"status_code": status, "request_id": f"req_{unique}", "body": body}
    return _dump({"id": f"batch_req_{unique}", "custom_id": custom_id, "response": response, "error": None})


def _not_executed(batch: Batch, custom_id: str, code: str, message: str) -> bytes:
    line = {"id": f"batch_req_{_ids(batch, custom_id)}", "custom_id": custom_id, "response": None}
    return _dump({**line, "error": {"code": code, "message": message}})


def _dump(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
