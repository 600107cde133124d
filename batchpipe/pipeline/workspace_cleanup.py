"""Files that killed turns have left in a workspace: each a full copy of an input, or of answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from posixpath import join

from batchpipe.storage import Folder

#: A shard or order file with the token of its turn, or the draft of one.
_OF_TURN = re.compile(
    r"\.?(?:\d{5,12}|order|rows)-(?P<token>\w{1,64})(?:\.jsonl)?(?:\.zst)?(?P<draft>\.\d{1,12}-\w{1,32}\.part)?"
)


def remove_files_of_killed_turns(workspace: Folder, tokens: Collection[str], check: Callable[[], None]) -> None:
    """Remove shard and order files, and their drafts, of all other turns than these.

    The caller must hold the lease of the job, which ``check`` verifies after the files are listed. So what is removed
    belongs to turns that had lost the lease, never to a later one. Raises StorageTrouble, what ``check`` raises.
    """
    found = []
    for sub in ("shards", ""):
        for name in workspace.names(sub):
            match = _OF_TURN.fullmatch(name)
            if match is not None and match["token"] not in tokens:
                found.append(join(sub, name))
    _remove(workspace, found, check)


def remove_leftovers(workspace: Folder, kept: Collection[str], check: Callable[[], None]) -> None:
    """Remove the working files of an ended job except the ``kept`` names: copies that no record names. ``check`` as
    above. Raises StorageTrouble, what ``check`` raises.
    """
    found = [join(sub, name) for sub in ("shards", "collected") for name in workspace.names(sub)]
    found += [name for name in workspace.names() if name.endswith(".part") or name.startswith("order-")]
    _remove(workspace, [name for name in found if name not in kept], check)


def _remove(workspace: Folder, names: list[str], check: Callable[[], None]) -> None:
    check()
    for name in names:
        workspace.remove(name)


def token_of(order_file: str) -> str:
    """The token of the turn that wrote an order file."""
    return order_file.removeprefix("order-")
