"""Which of the found jobs this Redis may take over: never those on which another one still works."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from batchpipe.config.settings import Settings
from batchpipe.recover.discovery import Trace
from batchpipe.store.redis_label import answers, label_of

#: Used instead of a label: any Redis.
ANY = "any"


class Refusal(NamedTuple):
    """Why a job is left to another Redis, as code and in words, and to which."""

    code: str
    why: str
    label: str


class Owners:
    """What the labels of jobs mean to the Redis that recover is called for.

    A new Redis automatically takes over the jobs of one that is gone if the old one accepts no connection, and nothing
    was submitted to the new one yet, or it has taken over jobs of the old one before. In all other cases a person must
    decide, and name the label (``of``).
    """

    def __init__(self, settings: Settings, traces: Sequence[Trace], of: Sequence[str]) -> None:
        self.label = label_of(settings)
        self._of = frozenset(of)
        ours = [trace for trace in traces if trace.redis == self.label]
        self._has_jobs = any(not trace.taken for trace in ours)
        self._followed = {label for trace in ours for label in trace.taken}
        self._answers: dict[str, bool | None] = {}

    def is_ours(self, label: str | None) -> bool:
        """Jobs from before there were labels count as ours."""
        return label is None or label == self.label

    def refusal(self, label: str | None) -> Refusal | None:
        """None if a lost job of this label may be rebuilt."""
        if label is None or self.is_ours(label) or self._of & {label, ANY}:
            return None
        if label not in self._answers:
            self._answers[label] = answers(label)
        there = self._answers[label]
        if there is False and (not self._has_jobs or label in self._followed):
            return None
        name, silent = shlex.quote(label), ", which does not answer" if there is False else ""
        why = (
            f"it belongs to Redis {name}{silent}: recover there, or, if that one is gone for good, name it here: "
            f"--of {name}"
        )
        return Refusal("foreign_silent" if silent else "foreign", why, label)
