"""The results of one job as rows: its files, its index, the data rows that they came from, and how answers are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import repeat
from typing import Any

from batchpipe.config.settings import Settings
from batchpipe.errors import WORKSPACE_GONE, PermanentError
from batchpipe.model.answers import OutcomeState
from batchpipe.model.outcome import Outcome, Reads
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import JobRecord
from batchpipe.model.requests import EMBEDDINGS
from batchpipe.model.views import EARLIER
from batchpipe.pipeline.data_rows import open_data_rows
from batchpipe.pipeline.manifest import TABLE_FILES, workspace_of
from batchpipe.pipeline.pricing import prices_of
from batchpipe.pipeline.recipes import read_recipe
from batchpipe.pipeline.result_tables import Column, Kind, kinds_of, table_columns, write_csv, write_parquet
from batchpipe.pipeline.results import ERRORS, INDEX, iter_rows, outcome_of
from batchpipe.storage import Checkpoint, Folder

#: The names of tables of results, by format.
TABLES = dict(zip(("csv", "parquet"), TABLE_FILES, strict=True))


#: The folder within an output where a job's own result files are kept once they are joined with those of retries.
OWN = f"{EARLIER}/own"


def own_files(job: JobRecord, output: Folder) -> Folder:
    """Where a job's own result files lie: in its output, unless these have the rows of its retries, too."""
    for place in (output, Folder(job.output)):
        own = place.child(f"{OWN}/{job.id}")
        if own.exists(ERRORS):
            return own
    return output


class _Later:
    """The rows of a retry, which are some of the job's in the same order."""

    def __init__(self, results: JobResults) -> None:
        self._lines = results.lines()
        self._next = self._read()

    def _read(self) -> tuple[str, OutcomeState, bytes] | None:
        found = next(self._lines, None)
        if found is None:
            return None
        state, line = found
        return outcome_of(0, state is OutcomeState.OK, line).custom_id, state, line

    def take(self, custom_id: str) -> tuple[OutcomeState, bytes] | None:
        """The row of this id, if it is the next one."""
        if self._next is None or self._next[0] != custom_id:
            return None
        _, state, line = self._next
        self._next = self._read()
        return state, line


class JobResults:
    """Reads the results of a job again each time that it is iterated."""

    def __init__(
        self,
        job: JobRecord,
        settings: Settings,
        output: Folder,
        *,
        model: Any = None,
        retries: Sequence[JobResults] = (),
    ) -> None:
        """``output``: where its own result files lie. ``model``: a pydantic model that answers must be. ``retries``:
        the results of its retries, the oldest first; their rows stand in place of its own that are not ok.
        """
        self.job = job
        self._retries = retries
        self._output = output
        self._workspace = workspace_of(job, settings)
        self.recipe = self._recipe()
        parse = self.recipe is not None and self.recipe.answer is not None
        self._reads = Reads(parse=parse, model=model, price=prices_of(settings, job.account))

    def _recipe(self) -> Recipe | None:
        try:
            return read_recipe(self.job, self._workspace)
        except PermanentError:  # its workspace was removed: answers are read as texts
            return None

    def __iter__(self) -> Iterator[Outcome]:
        with ExitStack() as stack:
            given: Iterator[dict[str, Any] | None] = repeat(None)
            if self._has_data():
                given = iter(stack.enter_context(open_data_rows(self._workspace, self.job.rows_file)))
            for at, (state, line) in enumerate(self.lines()):
                yield outcome_of(at, state is OutcomeState.OK, line, self._reads, next(given, None))

    def lines(self) -> Iterator[tuple[OutcomeState, bytes]]:
        r"""For each row its state and its line with its ``\n``: the provider's, or that of ``errors.jsonl``."""
        later = [_Later(retry) for retry in self._retries if retry.is_in_order]
        for is_ok, line in self._own():
            if is_ok and not later:
                yield OutcomeState.OK, line
                continue
            found = outcome_of(0, is_ok, line)
            state = found.state
            for one in later:
                if (again := one.take(found.custom_id)) is not None and state is not OutcomeState.OK:
                    state, line = again
            yield state, line

    def _own(self) -> Iterator[tuple[bool, bytes]]:
        if not self.is_in_order:
            yield from iter_rows(self._output)
            return
        with self._workspace.reader(INDEX) as index:
            yield from iter_rows(self._output, index)

    @property
    def is_in_order(self) -> bool:
        """Whether its rows come in the order of its input: not if its workspace was removed."""
        error = self.job.error
        return (error is None or error.code != WORKSPACE_GONE) and self._workspace.exists(INDEX)

    def _has_data(self) -> bool:
        """Whether its rows can be joined with those of its input: not if the order of the input was lost."""
        return bool(self.job.rows_file) and self.is_in_order and self._workspace.exists(self.job.rows_file)

    def columns(self) -> list[Column]:
        """Those of a table of these results; the data rows are read once for it. Raises StorageTrouble."""
        given: Mapping[str, Kind] | None = None
        if self._has_data():
            with open_data_rows(self._workspace, self.job.rows_file) as rows:
                given = kinds_of(rows.columns, rows)
        return table_columns(given, self.recipe, embeds=self.job.endpoint == EMBEDDINGS)

    def write_tables(self, check: Any, output: Folder | None = None) -> None:
        """Write the tables that the job was asked for, each complete when it has its name; into ``output``, if that is
        not where its own results lie. Raises StorageTrouble,
        SettingsError (a package is missing), what ``check`` raises.
        """
        if not self.job.formats:
            return
        columns = self.columns()
        for kind in self.job.formats:
            with (output or self._output).writer(TABLES[kind]) as file:
                rows = _paced(self, check)
                if kind == "csv":
                    write_csv(file, columns, rows, excel=self.job.excel)
                else:
                    write_parquet(file, columns, rows)
                check()  # a turn that was frozen must not put its table in place


def _paced(rows: Iterable[Outcome], check: Any) -> Iterator[Outcome]:
    pace = Checkpoint(check)
    for row in rows:
        pace(b"")
        yield row
