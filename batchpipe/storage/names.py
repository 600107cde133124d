"""One name for each place, however it is written: the owner of a place is looked up by it."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Callable
from contextlib import suppress

from batchpipe.storage.backends import local_path

#: Schemes for the same store.
_SAME_STORE = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}
#: Chained in front of a URL, they do not change where the files lie.
_CACHES = frozenset({"simplecache", "filecache", "blockcache"})
#: How many entries of a folder are examined for one that shows whether its file system ignores case.
_PROBED = 32

Same = Callable[[str, str], bool]


def same_file(one: str, other: str) -> bool:
    """Whether two paths lead to one file; False if one of them leads nowhere."""
    try:
        there = os.stat(other)  # mostly the one that is not there
        return os.path.samestat(os.stat(one), there)
    except OSError:
        return False


def place_name(place: str, *, same: Same = same_file) -> str:
    """The one name of a path or URL, as this host sees it; it need not exist yet.

    For a local one its real path (links, ``..``, ``file://`` and slashes resolved), case-folded if the file system
    ignores case; for a URL its scheme without aliases and its path without doubled slashes and dots.
    """
    path = local_path(place)
    return _remote_name(place) if path is None else _local_name(os.path.realpath(path), same)


def real_place(place: str) -> str:
    """A local place without the links in its path; "" for a URL, which has none."""
    path = local_path(place)
    return "" if path is None else os.path.realpath(path)


def folded_place(place: str) -> str:
    """The name that a place has on a file system that ignores case, whether or not its own does. It takes less than
    ``place_name``, and places that it tells apart are apart.
    """
    path = local_path(place)
    return _remote_name(place) if path is None else _folded(os.path.realpath(path))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _local_name(path: str, same: Same) -> str:
    name, at, folds, there = "", "/", False, True
    for part in path.strip("/").split("/"):
        here = os.path.join(at, part)
        if there and os.path.lexists(here):
            folds = _is_folded(at, part, same)
        elif there:
            there, folds = False, _folds(at, same)
        name += "/" + (_folded(part) if folds else part)
        at = here
    return name


def _is_folded(folder: str, entry: str, same: Same) -> bool:
    """Whether an entry is also found by its name in the other case."""
    other = entry.swapcase()
    return other != entry and same(os.path.join(folder, entry), os.path.join(folder, other))


def _folds(folder: str, same: Same) -> bool:
    """Whether a folder ignores case: shown by one of its entries, else by its own name."""
    entries: list[str] = []
    with suppress(OSError), os.scandir(folder) as found:
        entries += (entry.name for entry, _ in zip(found, range(_PROBED), strict=False))
    for entry in entries:
        if entry.swapcase() != entry:
            return _is_folded(folder, entry, same)
    above, own = os.path.split(folder.rstrip("/"))
    return bool(own) and _is_folded(above, own, same)


def _remote_name(url: str) -> str:
    links = url.split("::")
    chain = [link for link in links[:-1] if link.lower() not in _CACHES]
    kind, _, path = links[-1].partition("://")
    kind = _SAME_STORE.get(kind.lower(), kind.lower())
    return "::".join([*chain, f"{kind}://{posixpath.normpath('/' + path).lstrip('/')}"])
