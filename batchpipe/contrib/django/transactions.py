"""``submit`` within a transaction: recorded and sent when it commits, and not at all if it rolls back."""

from __future__ import annotations

from collections.abc import Callable

from django.db import transaction


def hold(commit: Callable[[], None]) -> bool:
    """False where no transaction of the default database is open: then there is nothing to wait for."""
    if not transaction.get_connection().in_atomic_block:
        return False
    transaction.on_commit(commit)
    return True
