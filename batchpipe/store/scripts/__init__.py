"""The Lua scripts: every write that must be atomic, one file each. ``SHARED`` is prepended to all.

On top of ``common.lua`` is the dictionary of keys and fields; each script's first lines say what it is given and what
it answers.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

#: What all scripts have at their beginning, in this order.
SHARED = ("common", "rooms", "lines", "admission")


@cache
def source(name: str) -> str:
    """The text of a script for Redis, by its file name without ``.lua``: what is shared, and it; no comment lines.

    Redis keeps each script whole, and the dictionary would be in all of them. The lines stay, empty, for the numbers in
    Redis' errors.
    """
    folder = resources.files(__name__)
    text = "".join(folder.joinpath(f"{part}.lua").read_text() for part in (*SHARED, name))
    return re.sub(r"^ *--.*", "", text, flags=re.MULTILINE)
