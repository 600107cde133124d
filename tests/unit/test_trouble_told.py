"""Which events of a job's log are told to people: they exist, and have words for people."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchpipe
from batchpipe.model.notifications import TROUBLE
from batchpipe.model.stalls import LATE, SILENT

PACKAGE = Path(batchpipe.__file__).parent
#: The one place where an event is named after the problem: `pipeline/stalls` logs what `stall_of` has found.
OF_STALLS = {LATE, SILENT}


def modules() -> Iterator[tuple[str, ast.AST]]:
    for folder in ("pipeline", "recover", "client", "model"):
        for path in (PACKAGE / folder).rglob("*.py"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"))


def events() -> Iterator[tuple[str, ast.expr]]:
    """Each ``(event, fields)`` that code writes: tuples of a name and a dictionary."""
    for module, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Tuple) or len(node.elts) != 2:
                continue
            name, fields = node.elts
            if not isinstance(fields, ast.Dict | ast.Name):
                continue
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, fields
            elif isinstance(name, ast.Name) and name.id.isupper():
                yield str(getattr(importlib.import_module(module), name.id)), fields


FOUND = list(events())


def test_each_event_that_is_told_is_one_that_is_logged() -> None:
    """A misspelt one would never be told, and nobody would notice."""
    assert {name for name, _ in FOUND} >= TROUBLE - OF_STALLS
    assert OF_STALLS <= TROUBLE


@pytest.mark.parametrize("event", sorted(TROUBLE - OF_STALLS))
def test_each_event_that_is_told_has_a_message(event: str) -> None:
    """Without one people get the name of the event. Fields in a variable are looked at where they are made."""
    for fields in (fields for name, fields in FOUND if name == event):
        if isinstance(fields, ast.Dict):
            assert "message" in [key.value for key in fields.keys if isinstance(key, ast.Constant)]
