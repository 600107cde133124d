"""The range of a number, in words. Pure."""

from __future__ import annotations


def in_range(least: float | None, most: float | None, *, above: float | None = None) -> str:
    """What follows "a number": `` from 1 to 100``, `` of 1 or more``, `` above 0 and up to 600``; "": there is none."""
    up_to = "" if most is None else _plain(most)
    if above is not None:
        return f" above {_plain(above)}" + (f" and up to {up_to}" if up_to else "")
    if least is not None:
        return f" from {_plain(least)} to {up_to}" if up_to else f" of {_plain(least)} or more"
    return f" of at most {up_to}" if up_to else ""


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
