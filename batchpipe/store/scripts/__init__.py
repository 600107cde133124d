"""The Lua scripts: every write that must be atomic, one file each. ``SHARED`` is part of all.

On top of ``common.lua`` is the dictionary of keys and fields; each script's first lines say what it is given and what
it answers.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

#: What all scripts have at their beginning, in this order.
SHARED = ("hashes", "common", "rooms", "lines", "admission")


@cache
def source(name: str) -> str:
    """The text of a script for Redis, by its file name without ``.lua``: the common parts and the script, without
    comment lines. What the script has changed of hashes is written when it ends.

    Redis keeps each script whole, and the dictionary would be in all of them. The lines stay, empty, for the numbers in
    Redis' errors.
    """
    parts = "".join(_code(part) for part in SHARED)
    return f"{parts}local function script(){_code(name)}end\nreturn run(script)\n"


def _code(name: str) -> str:
    text = resources.files(__name__).joinpath(f"{name}.lua").read_text()
    return re.sub(r"^ *--.*", "", text, flags=re.MULTILINE)
