"""The Lua scripts: every write that must be atomic, one file each; what they share is at the beginning of each.

On top of ``common.lua`` is the dictionary of keys and fields; each script's first lines say what it is given and what
it answers.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

#: What scripts have at their beginning, in this order: all of them the first, those that need room the others, too.
SHARED, OF_ROOM = ("hashes", "common", "claiming"), ("rooms", "lines", "admission")
#: The scripts that call a function of these parts (a test compares).
NEEDS_ROOM = (
    *("admit", "advance", "check_holds", "grant", "hold_in_flight", "intent", "observe_tokens", "plan", "read_limit"),
    *("read_ratio", "read_rooms", "read_waiting", "read_waiting_jobs", "record_batch_status", "record_page", "settle"),
    "withdraw",
)


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
    return (*SHARED, *OF_ROOM) if name in NEEDS_ROOM else SHARED


def _code(name: str) -> str:
    text = resources.files(__name__).joinpath(f"{name}.lua").read_text()
    return re.sub(r"^ *--.*", "", text, flags=re.MULTILINE)
