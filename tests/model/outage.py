"""An outage in the model: most create calls of several shards get no clear answer, while walks through the list are
many, and fail half way, freeze, and see batches late."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import redis

from batchpipe.store.scripts import source
from tests.model.invariants import Broken
from tests.model.model_store import LEASE, Source
from tests.model.schedule import JUMPS, Cast, Choices, Schedule, _story
from tests.model.world import GRACE, World

#: Times that matter here: of a call, of a list that lags, of the grace period, of a lease.
_JUMPS = (1.37, 7.91, GRACE / 2 + 0.7, GRACE - 2.3, GRACE + 0.9, LEASE / 2 - 1.3, LEASE + 1.7, *JUMPS[:2])


class Outage(Schedule):
    """Walks begin at any time; calls are answered seldom, and their batches listed up to a grace period later."""

    def __init__(self, world: World, cast: Cast, choices: Choices) -> None:
        super().__init__(world, cast, choices)
        world.api.list_metadata = choices.pick(2) == 0
        world.api.lag = lambda: choices.one((0.0, GRACE / 2, GRACE - 1.0, GRACE - 1.0))
        world.api.outcome = lambda: choices.one(("", "unanswered", "unanswered", "dropped", "unsent"))
        often: list[tuple[int, Callable[[], None]]] = [
            (8, self.deliver),
            (8, self.go_on),
            (5, self.jump),
            (2, self.freeze),
            (2, self.outlive),
            (3, self.strand),
            (4, self.crash),
            (1, self.lose),
            (1, self.redeliver),
            (6, self.look),
        ]
        self._actions = [action for times, action in often for _ in range(times)]

    def jump(self) -> None:
        self.world.advance(self.choices.one(_JUMPS))

    def look(self) -> None:
        """A sweep that looks at once; now and then it stops on its way."""
        self._begin(lambda: self.world.sweep(listing=True))


def run_outage(client: redis.Redis, folder: Path, cast: Cast, data: bytes, text: Source = source) -> Counter[str]:
    """One schedule, from a new job to its end. Answers what happened in it. Raises Broken, with its story."""
    random.seed(data)
    choices = Choices(data)
    world = World(client, folder, shards=1 + choices.pick(4), text=text)
    try:
        Outage(world, cast, choices).run()
        facts = world.watch.facts
        facts["walks"] += len(world.store.unanswered.walks("default"))
        return facts
    except Broken as broken:
        broken.add_note(_story(world, cast))
        raise
    finally:
        world.close()
