"""The entry point of all commands."""

from __future__ import annotations

import pytest
from pydantic_core import SchemaError, SchemaValidator, core_schema

from batchpipe.cli import is_interrupt


class Interrupted:
    """Ctrl-C strikes while this is looked at."""

    def __repr__(self) -> str:
        raise KeyboardInterrupt


def test_a_ctrl_c_that_pydantic_has_swallowed_is_one() -> None:
    """It strikes while classes are built, as our modules are imported, and comes out as an error of pydantic."""
    with pytest.raises(SchemaError) as caught:
        SchemaValidator(core_schema.nullable_schema(core_schema.literal_schema([Interrupted()])))

    assert is_interrupt(caught.value)


def test_an_error_that_speaks_of_one_is_none() -> None:
    """A site's own code, which runs within our commands, may say what it likes."""
    assert not is_interrupt(RuntimeError("KeyboardInterrupt: "))
