"""Patterns of inputs: ``exports/*.csv``, ``s3://bucket/day=*/``. What they stand for is read once and sorted."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence

from batchpipe.errors import InvalidInput
from batchpipe.storage.backends import filesystem, local_path, scheme, storage_errors
from batchpipe.storage.patience import in_thread, wait
from batchpipe.storage.rules import ANY_INPUT, InputRules

#: Files that one input may have.
MOST_FILES = 10_000
_MAGIC = re.compile(r"[*?\[]")


def is_pattern(place: str) -> bool:
    """Whether a path or URL stands for several files: it has ``*``, ``?`` or ``[``, and is no file itself; or it is a
    folder of an object store (it ends with ``/``).
    """
    path = local_path(place)
    if path is not None:
        return bool(_MAGIC.search(path)) and not os.path.lexists(os.path.expanduser(path))
    if scheme(place) in ("http", "https", "data"):
        return False
    return bool(_MAGIC.search(place)) or place.endswith("/")


def expanded(
    places: Sequence[str], rules: InputRules = ANY_INPUT, check: Callable[[], None] = lambda: None
) -> list[str]:
    """The files of these places, in the order given; those of a pattern sorted. Raises InvalidInput (a pattern that
    fits no file, ``input_missing``; too many), StorageTrouble.
    """
    found: list[str] = []
    for place in places:
        found += list(_files_of(place, check)) if is_pattern(place) else [place]
        if len(found) > MOST_FILES:
            raise InvalidInput(f"{place}: more than {MOST_FILES:,} files; give fewer and larger ones", field="input")
    return found


def _files_of(pattern: str, check: Callable[[], None]) -> Iterator[str]:
    path = local_path(pattern)
    found = _local(path) if path is not None else _remote(pattern, check)
    if not found:
        raise InvalidInput(f"{pattern}: no file fits this pattern", field="input", code="input_missing")
    yield from found


def _local(pattern: str) -> list[str]:
    found = glob.iglob(os.path.expanduser(pattern), recursive=True)
    return sorted(name for name in found if os.path.isfile(name))


def _remote(pattern: str, check: Callable[[], None]) -> list[str]:
    with storage_errors(pattern):
        fs, path = filesystem(pattern)
        star = f"{path.rstrip('/')}/*" if pattern.endswith("/") else path
        found = wait(in_thread(lambda: fs.glob(star, detail=True)), check)
    kind = pattern.partition("://")[0]
    names = sorted(name for name, info in found.items() if info.get("type") == "file" and info.get("size") != 0)
    return [f"{kind}://{name}" for name in names]
