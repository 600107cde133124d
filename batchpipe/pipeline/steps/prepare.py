"""Prepare: stream the input once, check every row, split it into shards, remember the order.

Memory does not grow with the input: rows go straight to their shard files, and of their ids only hashes are
kept, most of them in a temporary file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import BinaryIO

from batchpipe.errors import InvalidInput, StorageTrouble, shortened
from batchpipe.model.records import JobRecord
from batchpipe.model.requests import check_request
from batchpipe.pipeline.shard_files import ShardFiles
from batchpipe.pipeline.sharding import NO_BOUNDS, Bounds, Files, NoFiles, Planner, Prepared
from batchpipe.storage import ANY_INPUT, Checkpoint, DuplicateFinder, Folder, InputRules, input_info, open_input

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
) -> Prepared:
    """Check and split the input of a job; write its shard files and their order into the workspace.

    ``token`` becomes part of every name. ``check`` is called at least every 1,024 rows or MB, and every second in
    which nothing comes; what it raises ends the step. ``output``: the folder of its output, if it may not be opened
    by name. ``bounds``: the most models and shards. Raises InvalidInput for the first bad row, a duplicate id, an
    empty or too varied input, or an output that cannot be written; StorageTrouble (``input_missing``,
    ``input_changed``, ...).
    """
    if job.output:
        (output or Folder(job.output)).check_writable("output.jsonl", "errors.jsonl", "job.json")
    workspace.check_writable()
    files = ShardFiles(workspace, token)
    try:
        found = _scan(job.input, job.endpoint, job.max_rows, job.max_bytes, files, check, rules, bounds)
        files.commit(check)
    except BaseException:
        files.discard()
        raise
    return found


def validate(
    url: str,
    endpoint: str,
    max_rows: int = 50_000,
    max_bytes: int = 200_000_000,
    *,
    check: Callable[[], None] = lambda: None,
    rules: InputRules = ANY_INPUT,
    bounds: Bounds = NO_BOUNDS,
) -> Prepared:
    """Check an input as ``prepare`` does and return the shards that it would make, without writing any."""
    return _scan(url, endpoint, max_rows, max_bytes, NoFiles(), check, rules, bounds)


def _scan(
    url: str,
    endpoint: str,
    max_rows: int,
    max_bytes: int,
    files: Files,
    check: Callable[[], None],
    rules: InputRules,
    bounds: Bounds,
) -> Prepared:
    planner = Planner(files, endpoint, max_rows, max_bytes, bounds=bounds)
    before = input_info(url, rules, check)
    try:
        rows = _scan_rows(url, endpoint, max_bytes, planner, check, rules, longest=bounds.custom_id)
    except InvalidInput:
        if input_info(url, rules, check) != before:
            raise _changed(url) from None  # a bad row may be half of one that is being written
        raise
    if input_info(url, rules, check) != before:
        raise _changed(url)
    return Prepared(planner.all(), rows, files.order_file)


def _too_long(custom_id: str, longest: int, line: int) -> InvalidInput:
    message = f"{shortened(custom_id, 40)!r} has {len(custom_id)} characters; the account's provider takes {longest}"
    return InvalidInput(message, line=line, field="custom_id")


def _scan_rows(
    url: str,
    endpoint: str,
    max_bytes: int,
    planner: Planner,
    check: Callable[[], None],
    rules: InputRules,
    *,
    longest: int | None,
) -> int:
    """Check and place every row; returns how many there are. ``longest``: characters of a ``custom_id``."""
    number = 0
    with DuplicateFinder() as ids:
        with open_input(url, rules, check) as stream:
            for number, line in _numbered_lines(stream, max_bytes, check, rules):
                request = check_request(line, number, endpoint)
                if longest is not None and len(request.custom_id) > longest:
                    raise _too_long(request.custom_id, longest, number)
                ids.note(request.custom_id)
                planner.place(request, line)
        if not number:
            raise InvalidInput("the input has no rows", code="input_empty")
        check()
        suspects = ids.suspects(check)
    if suspects:
        with open_input(url, rules, check) as stream:
            _refuse_repeats(_numbered_lines(stream, max_bytes, check, rules), endpoint, suspects)
    return number


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


def _refuse_repeats(lines: Iterable[tuple[int, bytes]], endpoint: str, suspects: set[int]) -> None:
    """Read the input again to find duplicate ids; equal hashes may also be chance."""
    seen: dict[str, int] = {}
    for number, line in lines:
        name = check_request(line, number, endpoint).custom_id
        if hash(name) not in suspects:
            continue
        if name in seen:
            shown = name if len(name) <= 100 else name[:100] + "..."
            message = f'"{shown}" was used on line {seen[name]} already; give each row an id of its own'
            raise InvalidInput(message, line=number, field="custom_id", code="custom_id_repeated")
        seen[name] = number


def _changed(url: str) -> StorageTrouble:
    return StorageTrouble(f"{url}: the input changed while it was read", code="input_changed")
