"""The messages that ask for turns, and what becomes of each.

Nothing here depends on Celery: runners are given ``publish``, and handle each message with one of three outcomes:
Continue (with the chain), Retry (by countdown) or Done (drop the rest of the chain).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from batchpipe.model.steps import chain_from
from batchpipe.store import ClaimDenied

#: A turn whose lease has ended before it began is tried again after so many seconds.
LOST_SECONDS = 1.0


@dataclass(frozen=True)
class Message:
    """One chain to publish: from the stage on, for this epoch, with these Celery task ids."""

    job: str
    index: int
    epoch: int
    stage: str
    task_ids: list[str]
    queue: str
    countdown: float = 0.0  #: seconds until the first link runs
    large: bool = False  #: its transfers need slots and come after short work; False if published again
    small: bool = False  #: so little work that whoever publishes it may do it at once instead, see ``visits``

    def links(self) -> list[str]:
        """The names of the steps that it leads through."""
        return [step.name for step in chain_from(self.index, self.stage)]


@dataclass(frozen=True)
class Continue:
    """Go on with the next link of the chain."""

    why: str = field(default="", compare=False)  #: for people who watch the tasks
    after: float = 0.0  #: seconds until that link runs
    link: str = ""  #: its name, if links before it are left out; else it is the next one
    small: bool = field(default=False, compare=False)  #: the shard is so small that no link of it needs a slot


@dataclass(frozen=True)
class Retry:
    """Run the same task again after so many seconds."""

    after: float
    why: str = field(default="", compare=False)  #: for people who watch the tasks
    reason: str = field(default="failure", compare=False)  #: for the counters


@dataclass(frozen=True)
class Done:
    """End here and drop the rest of the chain."""

    why: str = field(default="", compare=False)  #: for people who watch the tasks


Next = Continue | Retry | Done
Publish = Callable[[Message], None]
#: How many messages wait in a queue of the broker; None if the broker cannot tell.
WaitingIn = Callable[[str], int | None]

#: What people read of a message that was not granted its turn.
_DENIED = {
    "lease": "another worker has it",
    "early": "too early: another message will do it",
    "stage": "nothing to do: it is at another step",
    "epoch": "void: a newer message replaces it",
    "gone": "the job is gone",
}


def lost_lease(was_ahead: bool) -> Retry | Done:
    """The outcome of a message whose lease has ended before its turn. ``was_ahead``: it was claimed by the turn before,
    and may have ended before anybody did anything, so the message comes once more; if another has the record, it is
    void.
    """
    return Retry(LOST_SECONDS, "its lease ended before it began", "lease") if was_ahead else Done()


def denied(claim: ClaimDenied) -> Retry | Done:
    """The outcome of a message if its claim was not granted."""
    why = _DENIED.get(claim.why, claim.why)
    return Retry(claim.after + 0.1, why, "lease") if claim.why == "lease" else Done(why)
