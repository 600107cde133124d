"""Prepare: stream the input once, check every row, split it into shards, remember the order.

Memory does not grow with the input: rows go straight to their shard files, and of their ids only hashes are
kept, most of them in a temporary file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from batchpipe.errors import InvalidInput, StorageTrouble, shortened
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import DEFAULT_ENDPOINT, JobRecord
from batchpipe.model.requests import check_request, url_of
from batchpipe.pipeline.data_rows import DataRowsWriter, rows_file_of
from batchpipe.pipeline.input_errors import RowErrors
from batchpipe.pipeline.shard_files import ShardFiles
from batchpipe.pipeline.sharding import NO_BOUNDS, Bounds, Files, NoFiles, Planner, Prepared
from batchpipe.storage import (
    ANY_INPUT,
    Checkpoint,
    DuplicateFinder,
    Folder,
    InputRules,
    expanded,
    input_info,
    open_input,
)

if TYPE_CHECKING:
    from batchpipe.pipeline.table_requests import Keep, TableScan

_NEWLINE = ord("\n")


def prepare(
    job: JobRecord,
    workspace: Folder,
    token: str,
    *,
    check: Callable[[], None],
    output: Folder | None = None,
    rules: InputRules = ANY_INPUT,
    bounds: Bounds = NO_BOUNDS,
    recipe: Recipe | None = None,
) -> Prepared:
    """Check and split the input of a job; write its shard files and their order into the workspace, and the data rows
    of a table.

    ``token`` becomes part of every name. ``check`` is called at least every 1,024 rows or MB, and every second in
    which nothing comes; what it raises ends the step. ``output``: the folder of its output, if it may not be opened
    by name. ``bounds``: the most models and shards. ``recipe``: that of the job. Raises InvalidInput for bad rows (of
    several, InvalidRows), a duplicate id, an empty or too varied input, or an output that cannot be written;
    StorageTrouble (``input_missing``, ``input_changed``, ...).
    """
    if job.output:
        (output or Folder(job.output)).check_writable("output.jsonl", "errors.jsonl", "job.json")
    workspace.check_writable()
    files = ShardFiles(workspace, token)
    kept: list[DataRowsWriter] = []

    def keep(columns: Sequence[str]) -> DataRowsWriter:
        kept.append(DataRowsWriter(workspace, rows_file_of(token), columns))
        return kept[0]

    try:
        inputs = expanded(job.inputs or [job.input], rules, check)
        scan = _Scan(inputs, job.endpoint, job.max_rows, job.max_bytes, files, check, rules, bounds)
        found = scan.run(recipe, keep)
        if kept:
            kept[0].commit()
            found = msgspec.structs.replace(found, rows_file=kept[0].name)
        files.commit(check)
    except BaseException:
        files.discard()
        if kept:
            kept[0].discard()
        raise
    return found


def validate(
    inputs: str | Sequence[str],
    endpoint: str,
    max_rows: int = 50_000,
    max_bytes: int = 200_000_000,
    *,
    check: Callable[[], None] = lambda: None,
    rules: InputRules = ANY_INPUT,
    bounds: Bounds = NO_BOUNDS,
    recipe: Recipe | None = None,
) -> Prepared:
    """Check an input as ``prepare`` does and return the shards that it would make, without writing any."""
    found = expanded([inputs] if isinstance(inputs, str) else inputs, rules, check)
    scan = _Scan(found, endpoint, max_rows, max_bytes, NoFiles(), check, rules, bounds)
    return scan.run(recipe, lambda columns: None)


class _Scan:
    """One reading of an input. ``endpoint``: "" where the first row decides."""

    def __init__(
        self,
        inputs: Sequence[str],
        endpoint: str,
        max_rows: int,
        max_bytes: int,
        files: Files,
        check: Callable[[], None],
        rules: InputRules,
        bounds: Bounds,
    ) -> None:
        self._inputs, self._endpoint, self._max_rows, self._max_bytes = inputs, endpoint, max_rows, max_bytes
        self._files, self._check, self._rules, self._bounds = files, check, rules, bounds

    def run(self, recipe: Recipe | None, keep: Keep) -> Prepared:
        before = self._infos()
        if recipe is not None and recipe.makes_requests:
            self._endpoint = recipe.endpoint
        elif not self._endpoint:
            self._endpoint = self._first_endpoint()
        planner = Planner(self._files, self._endpoint, self._max_rows, self._max_bytes, bounds=self._bounds)
        try:
            if recipe is not None and recipe.makes_requests:
                rows = self._table(recipe, planner, keep).run()
            else:
                rows = self._requests(planner)
        except InvalidInput:
            if self._infos() != before:
                raise self._changed() from None  # a bad row may be half of one that is being written
            raise
        if self._infos() != before:
            raise self._changed()
        return Prepared(planner.all(), rows, self._files.order_file, endpoint=self._endpoint)

    def _infos(self) -> list[tuple[int | None, float | None]]:
        return [input_info(url, self._rules, self._check) for url in self._inputs]

    def _changed(self) -> StorageTrouble:
        return StorageTrouble(f"{self._inputs[0]}: the input changed while it was read", code="input_changed")

    def _table(self, recipe: Recipe, planner: Planner, keep: Keep) -> TableScan:
        from batchpipe.pipeline.table_requests import TableScan

        return TableScan(
            self._inputs,
            recipe,
            planner,
            self._bounds,
            rules=self._rules,
            max_bytes=self._max_bytes,
            keep=keep,
            check=self._check,
        )

    def _first_endpoint(self) -> str:
        """That of the first row; of one that names none the default, so that the row is refused in words."""
        for _, line, _ in self._lines():
            return url_of(line) or DEFAULT_ENDPOINT
        return DEFAULT_ENDPOINT

    def _requests(self, planner: Planner) -> int:
        """Check and place every row; returns how many there are."""
        number, longest, errors = 0, self._bounds.custom_id, RowErrors()
        with DuplicateFinder() as ids:
            for at, line, file in self._lines():
                number += 1
                try:
                    request = check_request(line, at, self._endpoint, in_words=not errors.is_full)
                    if longest is not None and len(request.custom_id) > longest:
                        raise _too_long(request.custom_id, longest, at)
                except InvalidInput as error:
                    errors.add(error.within(file))
                    continue
                if not errors:
                    ids.note(request.custom_id)
                    planner.place(request, line)
            if not number:
                raise InvalidInput("the input has no rows", code="input_empty")
            errors.raise_any()
            self._check()
            suspects = ids.suspects(self._check)
        if suspects:
            _refuse_repeats(self._lines(), self._endpoint, suspects)
        return number

    def _lines(self) -> Iterator[tuple[int, bytes, str | None]]:
        """Each line with its number in its file, and the file where there are several."""
        for url in self._inputs:
            file = url if len(self._inputs) > 1 else None
            try:
                with open_input(url, self._rules, self._check) as stream:
                    for number, line in _numbered_lines(stream, self._max_bytes, self._check, self._rules):
                        yield number, line, file
            except InvalidInput as error:
                raise error.within(file) from None


def _too_long(custom_id: str, longest: int, line: int) -> InvalidInput:
    message = f"{shortened(custom_id, 40)!r} has {len(custom_id)} characters; the account's provider takes {longest}"
    return InvalidInput(message, line=line, field="custom_id")


def _numbered_lines(
    stream: BinaryIO, max_bytes: int, check: Callable[[], None], rules: InputRules
) -> Iterator[tuple[int, bytes]]:
    """Each line with its number from 1 and its newline; the last one gets one if it has none. Blank lines at the end,
    which editors and scripts leave, do not count as rows.
    """
    pace, blank = Checkpoint(check), 0
    most = min(max_bytes, rules.most_line or max_bytes)
    for number, line in enumerate(iter(partial(stream.readline, most + 1), b""), 1):
        if line.isspace():
            blank = blank or number
            pace(line)
            continue
        if blank:
            raise InvalidInput("is blank; remove it", line=blank)
        whole = line if line[-1] == _NEWLINE else line + b"\n"
        if len(whole) > max_bytes:
            raise InvalidInput(f"is longer than the {max_bytes} bytes that a batch file may have", line=number)
        if len(whole) > most:
            raise InvalidInput(f"is longer than {most} bytes; see the setting MAX_LINE_BYTES", line=number)
        pace(whole)
        yield number, whole


def _refuse_repeats(lines: Iterable[tuple[int, bytes, str | None]], endpoint: str, suspects: set[int]) -> None:
    """Read the input again to find duplicate ids; equal hashes may also be chance."""
    seen: dict[str, str] = {}
    for number, line, file in lines:
        name = check_request(line, number, endpoint).custom_id
        if hash(name) not in suspects:
            continue
        if name in seen:
            shown = name if len(name) <= 100 else name[:100] + "..."
            message = f'"{shown}" was used on {seen[name]} already; give each row an id of its own'
            raise InvalidInput(message, line=number, field="custom_id", code="custom_id_repeated", file=file)
        seen[name] = f"line {number} of {file}" if file else f"line {number}"
