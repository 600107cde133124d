"""The Lua scripts: every write that must be atomic, one file each; what they share is at the beginning of each.

On top of ``common.lua`` is the dictionary of keys and fields; each script's first lines say what it is given and what
it answers.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

#: What scripts have at their beginning, in this order: all of them the first, those that need room the others, too.
SHARED, OF_ROOM = ("hashes", "common"), ("rooms", "lines", "admission")


@cache
def source(name: str) -> str:
    """The text of a script for Redis, by its file name without ``.lua``: the shared parts and the script, without
    comment lines. What the script has changed of hashes is written when it ends.

    Redis keeps each script whole, and the dictionary would be in all of them. The lines stay, empty, for the numbers in
    Redis' errors.
    """
    parts = "".join(_code(part) for part in parts_of(name))
    return f"{parts}local function script(){_code(name)}end\nreturn run(script)\n"


def parts_of(name: str) -> tuple[str, ...]:
    """What this script has at its beginning. Redis runs it at each call, so what it does not need is left out."""
    return (*SHARED, *OF_ROOM) if _of_room().search(_code(name)) else SHARED


@cache
def _of_room() -> re.Pattern[str]:
    """Finds a call that leads to the parts about room."""
    found = re.findall(r"^local function (\w+)", "".join(map(_code, OF_ROOM)), flags=re.MULTILINE)
    return re.compile(rf"\b(?:{'|'.join(['note_end_of_batch', *found])})\(|\b(?:admission\.|read_rooms\b|reading\b)")


def _code(name: str) -> str:
    text = resources.files(__name__).joinpath(f"{name}.lua").read_text()
    return re.sub(r"^ *--.*", "", text, flags=re.MULTILINE)
