"""Writes the results of a job to a file or stdout: as the provider wrote them, or as a table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from batchpipe.client.job import Job
from batchpipe.model.outcome import Outcome
from batchpipe.pipeline.result_tables import Column, write_csv, write_objects, write_parquet
from batchpipe.storage.local import replaced_file


def write_results(
    job: Job, kind: str, names: Sequence[str], output: str | None, *, errors: bool, excel: bool, retries: bool
) -> None:
    """``kind``: jsonl, csv, parquet or text. ``names``: columns of the table; ``output``: a file, else stdout. Raises
    InvalidInput, SettingsError.
    """
    with _target(output) as file:
        if kind == "jsonl" and not names:
            if job.record.retries:
                wanted = (line for state, line in job.lines(retries=retries) if (state == "ok") is not errors)
                file.writelines(wanted)
                return
            with job.results_folder().reader("errors.jsonl" if errors else "output.jsonl") as lines:
                shutil.copyfileobj(lines, file)
            return
        if kind == "text":
            for row in _chosen(job.results(retries=retries), errors=errors):
                file.write(((row.text or "") + "\n").encode(errors="replace"))
            return
        columns, found = job.table(names, retries=retries)
        _write_table(file, kind, columns, _chosen(found, errors=errors), excel=excel)


def _write_table(file: BinaryIO, kind: str, columns: Sequence[Column], rows: Iterable[Outcome], *, excel: bool) -> None:
    if kind == "csv":
        write_csv(file, columns, rows, excel=excel)
    elif kind == "parquet":
        write_parquet(file, columns, rows)
    else:
        write_objects(file, columns, rows)


def _chosen(rows: Iterable[Outcome], *, errors: bool) -> Iterator[Outcome]:
    return (row for row in rows if not errors or row.state != "ok")


@contextmanager
def _target(output: str | None) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replaced_file(output) as file:
        yield file
