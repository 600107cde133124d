"""The checks that OpenAI makes of an input file before it runs a row. Streams the file; keeps only ids and offsets."""

from __future__ import annotations

from array import array
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from batchpipe.sandbox.answers import input_tokens
from batchpipe.sandbox.models import is_slip, nearest

#: How many errors a batch reports at most.
MAX_ERRORS = 100
#: How many lines are checked before the others get a turn.
SLICE = 64


@dataclass(frozen=True)
class Limits:
    """How large an input may be."""

    max_rows: int
    max_bytes: int
    max_embedding_inputs: int


@dataclass
class Report:
    """What the check found: where each row starts, the model, and the errors (`errors.data`)."""

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    model: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0  #: of all rows' input, if they were to be counted

    def add(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> None:
        """Note an error."""
        self.errors.append({"code": code, "line": line, "message": message, "param": param})


def canonical(endpoint: str, azure: bool) -> str:
    """Azure's older API spells endpoints without `/v1`; both name the same thing there."""
    return f"/v1{endpoint}" if azure and not endpoint.startswith("/v1/") else endpoint


def check(
    path: Path,
    endpoint: str,
    limits: Limits,
    *,
    azure: bool = False,
    any_model: bool = True,
    count_tokens: bool = False,
) -> Generator[None, None, Report]:
    """Check a file; yields now and then so that other batches can run, and returns the report."""
    checker = _Checker(canonical(endpoint, azure), limits, azure, any_model, count_tokens)
    size = path.stat().st_size
    if size > limits.max_bytes:
        message = f"The input file is {size} bytes, larger than the {limits.max_bytes} maximum for the Batch API."
        checker.report.add("invalid_request", message, param="input_file_id")
        return checker.report
    with path.open("rb") as file:
        offset = 0
        for number, raw in enumerate(file, start=1):
            if not checker.line(number, offset, raw):
                return checker.report
            offset += len(raw)
            if number % SLICE == 0:
                yield
    checker.end()
    return checker.report


class _Checker:
    def __init__(self, endpoint: str, limits: Limits, azure: bool, any_model: bool, count_tokens: bool) -> None:
        self.report = Report()
        self._endpoint = endpoint
        self._limits = limits
        self._azure = azure
        self._any_model = any_model
        self._count_tokens = count_tokens
        self._ids: set[str] = set()
        self._inputs = 0
        self._blank: int | None = None  # a blank line is an error only if something follows it

    def line(self, number: int, offset: int, raw: bytes) -> bool:
        """Check one line. Returns False if there is no point in reading on."""
        if not raw.strip():
            self._blank = self._blank or number
            return True
        if self._blank is not None:
            self._bad_json(self._blank)
            self._blank = None
        if len(self.report.offsets) >= self._limits.max_rows:
            message = f"The input file has more than the maximum of {self._limits.max_rows} requests."
            self.report.add("too_many_tasks", message, param="input_file_id")
            return False
        self.report.offsets.append(offset)
        try:
            row = orjson.loads(raw)
        except orjson.JSONDecodeError:
            self._bad_json(number)
        else:
            self._row(number, row)
        return len(self.report.errors) < MAX_ERRORS and self._inputs <= self._limits.max_embedding_inputs

    def end(self) -> None:
        """All lines are read."""
        if not self.report.offsets and not self.report.errors:
            message = "The input file is empty. Please upload a file with at least one request."
            self.report.add("empty_file", message, param="input_file_id")

    def _bad_json(self, number: int) -> None:
        self.report.add("invalid_json_line", "This line is not parseable as valid JSON.", line=number)

    def _row(self, number: int, row: object) -> None:
        if not isinstance(row, dict):
            self._bad_json(number)
            return
        custom_id, body = row.get("custom_id"), row.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            self._invalid(number, "custom_id", "Missing required parameter: 'custom_id', a string.")
        elif custom_id in self._ids:
            message = "The custom_id for this request is a duplicate of another request of the batch."
            self.report.add("duplicate_custom_id", message, line=number, param="custom_id")
        else:
            self._ids.add(custom_id)
        if row.get("method") != "POST":
            self._invalid(number, "method", "Invalid method for a batch request: only 'POST' is supported.")
        url = row.get("url")
        if not isinstance(url, str) or canonical(url, self._azure) != self._endpoint:
            message = "The URL provided for this request does not match the batch endpoint."
            self.report.add("url_mismatch", message, line=number, param="url")
        if not isinstance(body, dict):
            self._invalid(number, "body", "Missing required parameter: 'body', a JSON object.")
        else:
            self._body(number, body)

    def _body(self, number: int, body: dict[str, Any]) -> None:
        if self._count_tokens:
            self.report.tokens += input_tokens(body)
        if body.get("stream"):
            self._invalid(number, "body.stream", "Streaming is not supported in the Batch API.")
        model = body.get("model")
        if isinstance(model, str):
            if self.report.model is None:
                self.report.model = model
                self._check_model(number, model)
            elif model != self.report.model:
                message = f"All requests of a batch must use one model: {model!r} is not {self.report.model!r}."
                self.report.add("model_mismatch", message, line=number, param="body.model")
        if self._endpoint == "/v1/embeddings":
            self._inputs += count_inputs(body.get("input"))
            if self._inputs > self._limits.max_embedding_inputs:
                message = f"The file has more than {self._limits.max_embedding_inputs} embedding inputs."
                self.report.add("too_many_tasks", message, line=number, param="body.input")

    def _check_model(self, number: int, model: str) -> None:
        if self._any_model or not is_slip(model):
            return
        message = f"The model `{model[:100]}` does not exist or you do not have access to it."
        if (near := nearest(model)) is not None:
            message += f" (The sandbox asks: did you mean `{near}`? With --any-model it takes any name.)"
        self.report.add("model_not_found", message, line=number, param="body.model")

    def _invalid(self, number: int, param: str, message: str) -> None:
        self.report.add("invalid_request", message, line=number, param=param)


def count_inputs(value: object) -> int:
    """How many texts an embeddings `input` holds: a list of integers is one text, given as tokens."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return len(value)
    return 1
