"""Makes requests of the data rows of a table, and keeps the rows for its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from batchpipe.errors import InvalidInput
from batchpipe.model.recipe import Recipe
from batchpipe.model.rendering import Renderer
from batchpipe.pipeline.data_rows import DataRowsWriter
from batchpipe.pipeline.images import image_reader
from batchpipe.pipeline.input_errors import RowErrors
from batchpipe.pipeline.sharding import Bounds, Planner
from batchpipe.storage import DuplicateFinder, InputRules
from batchpipe.storage.tables import Reading, Row, Table, open_tables


class Keep(Protocol):
    """Makes the writer of the rows, once their columns are known."""

    def __call__(self, columns: Sequence[str]) -> DataRowsWriter | None: ...


class TableScan:
    """One reading of a table: each row is made into a request, checked, placed and kept."""

    def __init__(
        self,
        inputs: Sequence[str],
        recipe: Recipe,
        planner: Planner,
        bounds: Bounds,
        *,
        rules: InputRules,
        max_bytes: int,
        keep: Keep,
        check: Callable[[], None],
    ) -> None:
        self._inputs, self._recipe, self._planner, self._bounds = inputs, recipe, planner, bounds
        self._rules, self._max_bytes, self._keep, self._check = rules, max_bytes, keep, check
        self._renderer = Renderer(recipe, image_reader(rules))

    def run(self) -> int:
        """Returns the number of rows. Raises InvalidInput, StorageTrouble."""
        errors, number = RowErrors(), 0
        with DuplicateFinder() as ids:
            with open_tables(self._inputs, self._reading(errors)) as table:
                if not table.columns:
                    raise InvalidInput("the input has no rows", code="input_empty")
                self._renderer.check_columns(table.columns)
                kept = self._keep(table.columns)
                for row in table:
                    number = row.number
                    name = self._place(row, table, kept, errors)
                    if name is not None and self._recipe.id is not None:
                        ids.note(name)
            if not number and not errors:
                raise InvalidInput("the input has no rows", code="input_empty")
            errors.raise_any()
            suspects = ids.suspects(self._check)
        if suspects:
            self._refuse_repeats(suspects)
        return number

    def _reading(self, errors: RowErrors) -> Reading:
        recipe = self._recipe
        most = min(self._max_bytes, self._rules.most_line or self._max_bytes)
        return Reading(
            recipe.delimiter,
            recipe.header,
            recipe.encoding,
            self._rules,
            self._check,
            most_line=most,
            bad_row=errors.add,
        )

    def _place(self, row: Row, table: Table, kept: DataRowsWriter | None, errors: RowErrors) -> str | None:
        try:
            request, line = self._renderer.line(row.number, row.values)
            longest = self._bounds.custom_id
            if longest is not None and len(request.custom_id) > longest:
                message = f"makes an id of {len(request.custom_id)} characters; the account's provider takes {longest}"
                raise InvalidInput(message, field=self._recipe.id)
            if len(line) > self._max_bytes:
                raise InvalidInput(
                    f"makes a request of more than the {self._max_bytes} bytes that a batch file may have"
                )
        except InvalidInput as error:
            errors.add(error.at(row.line, table.file))
            return None
        if errors:
            return None
        self._planner.place(request, line)
        if kept is not None:
            kept.write(row.values)
        return request.custom_id

    def _refuse_repeats(self, suspects: set[int]) -> None:
        """Read the table again to find equal ids; equal hashes may also be chance."""
        seen: dict[str, str] = {}
        column = self._recipe.id or ""
        with open_tables(self._inputs, self._reading(RowErrors())) as table:
            for row in table:
                name = str(row.values.get(column))
                if hash(name) not in suspects:
                    continue
                place = f"{table.file} line {row.line}" if table.file else f"line {row.line}"
                if name in seen:
                    shown = name if len(name) <= 100 else name[:100] + "..."
                    message = f'"{shown}" was used on {seen[name]} already; give each row an id of its own'
                    raise InvalidInput(message, field=column, code="custom_id_repeated").at(row.line, table.file)
                seen[name] = place
