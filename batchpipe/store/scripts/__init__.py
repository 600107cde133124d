"""The Lua scripts: every write that must be atomic, one file each. ``common.lua`` is prepended to all."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def source(name: str) -> str:
    """The full text of a script, by its file name without ``.lua``."""
    folder = resources.files(__name__)
    return folder.joinpath("common.lua").read_text() + folder.joinpath(f"{name}.lua").read_text()
