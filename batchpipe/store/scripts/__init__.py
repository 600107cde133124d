"""The Lua scripts: every write that must be atomic, one file each. ``common.lua`` is prepended to all.

On top of that is the dictionary of keys and fields; each script's first lines say what it is given and what it answers.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources


@cache
def source(name: str) -> str:
    """The text of a script for Redis, by its file name without ``.lua``: common part and script, without comment lines.

    Redis keeps each script whole, and the dictionary would be in all of them. The lines stay, empty, for the numbers in
    Redis' errors.
    """
    folder = resources.files(__name__)
    text = folder.joinpath("common.lua").read_text() + folder.joinpath(f"{name}.lua").read_text()
    return re.sub(r"^ *--.*", "", text, flags=re.MULTILINE)
