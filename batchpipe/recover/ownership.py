"""Which of the found jobs this Redis may take over: never those on which another one still works."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from batchpipe.config.settings import Settings
from batchpipe.store.redis_label import label_of

#: Used instead of a label: any Redis.
ANY = "any"


class OwnedElsewhere(NamedTuple):
    """Why a job is left to another Redis, as code and in words, and to which."""

    code: str
    why: str
    label: str


class Owners:
    """Which Redis a job belongs to is the label that was recorded with it; another one's jobs are left to that one.

    Only a person knows that the other Redis is gone for good, and names its label (``of``; ``any``: all of them).
    """

    def __init__(self, settings: Settings, of: Sequence[str]) -> None:
        self.label = label_of(settings)
        self._of = frozenset(of)

    def is_ours(self, label: str | None) -> bool:
        """A job without a label counts as ours."""
        return label is None or label == self.label

    def owned_elsewhere(self, label: str | None) -> OwnedElsewhere | None:
        """None if a lost job of this label may be rebuilt."""
        if label is None or self.is_ours(label) or self._of & {label, ANY}:
            return None
        name = shlex.quote(label)
        why = f"it belongs to Redis {name}: recover there, or, if that one is gone for good, name it here: --of {name}"
        return OwnedElsewhere("foreign", why, label)
