"""``submit`` within a transaction: recorded and sent when it commits, and not at all if it rolls back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connection, connections, transaction


def hold(commit: Callable[[], None]) -> bool:
    """False if no transaction is open: then there is nothing to wait for. If there are several, all must commit."""
    opened = [one.alias for one in connections.all(initialized_only=True) if _is_open(one)]
    if not opened and connection.in_atomic_block:
        opened = [connection.alias]  # the one of a TestCase: ``captureOnCommitCallbacks`` simulates its commit
    left = len(opened)

    def committed() -> None:
        nonlocal left
        left -= 1
        if not left:
            commit()

    for alias in opened:
        transaction.on_commit(committed, using=alias)
    return bool(opened)


def _is_open(one: Any) -> bool:
    """True if the site's own code has a transaction open there; Django's ``TestCase`` opens one on each database."""
    blocks = one.atomic_blocks
    return one.in_atomic_block and not (blocks and all(getattr(block, "_from_testcase", False) for block in blocks))
