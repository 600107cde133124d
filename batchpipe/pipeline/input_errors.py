"""The wrong rows of an input, collected: the first twenty with their places, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence

from batchpipe.errors import InvalidInput

#: Wrong rows that are named.
MOST_NAMED = 20


class InvalidRows(InvalidInput):
    """Several rows are wrong. ``errors``: the first twenty; ``count``: how many there are."""

    def __init__(self, errors: Sequence[InvalidInput], count: int) -> None:
        first = errors[0]
        lines = [error.message for error in errors]
        if count > len(errors):
            lines.append(f"and {count - len(errors):,} more rows")
        super().__init__("\n".join([*lines, f"{count:,} rows are wrong; nothing was sent"]), code=first.code)
        self.line, self.field, self.file = first.line, first.field, first.file
        self.errors, self.count = tuple(errors), count


class RowErrors:
    """Collects what is wrong while an input is read."""

    def __init__(self) -> None:
        self._errors: list[InvalidInput] = []
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def is_full(self) -> bool:
        """No more are named: further ones are only counted, which needs no words."""
        return len(self._errors) >= MOST_NAMED

    def add(self, error: InvalidInput) -> None:
        """Note a wrong row. Raises the error itself if it is about the file: then no further row can be read."""
        if error.line is None or error.code == "input_format":
            raise self._with(error)
        self.count += 1
        if not self.is_full:
            self._errors.append(error)

    def _with(self, error: InvalidInput) -> InvalidInput:
        return error if not self._errors else InvalidRows([*self._errors, error], self.count + 1)

    def stop(self, error: InvalidInput) -> InvalidInput:
        """What to raise where reading cannot go on after this error."""
        return self._with(error)

    def raise_any(self) -> None:
        """Raises InvalidInput if a row is wrong: of several, InvalidRows."""
        if self.count == 1:
            raise self._errors[0]
        if self.count:
            raise InvalidRows(self._errors, self.count)
