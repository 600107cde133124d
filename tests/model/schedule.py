"""Schedules: a string of bytes says who goes on, what is lost and when the clock jumps; then all faults end.

A byte is one choice, and 0 the harmless one: a failing string shrinks to few faults. Strings come from hypothesis or a
seed; the same string is the same schedule.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import redis

from batchpipe.errors import StoreUnavailable
from batchpipe.model.records import JOB, Status
from batchpipe.pipeline.sweep import MOST_LIST_SECONDS
from batchpipe.store import When
from batchpipe.store.scripts import source
from batchpipe.testing import Delivery
from tests.model.invariants import Broken, hold
from tests.model.model_provider import CALL_FAULTS, CREATE_FAULTS
from tests.model.model_store import LEASE, SCRIPT_FAULTS, Source
from tests.model.scheduler import Actor
from tests.model.world import GRACE, World

ACTORS = 4
#: More than any turn has points.
TO_THE_END = 1_000_000
#: Odd fractions: no two times of the protocol are ever the same by accident.
JUMPS = (0.53, 2.37, 9.71, LEASE / 3 + 0.17, LEASE / 2 + 1.13, LEASE + 3.19, 3 * LEASE + 5.23, 1_931.7)
SHIFTS = (0.0, -3_611.3, 3_607.9, -61.7, 67.3, -3.1, 7_219.1)
#: After the last fault everything must have ended within so many seconds and messages.
QUIET_SECONDS, QUIET_STEPS = 8 * 3_600.0, 1_500

T = TypeVar("T")


class Choices:
    """Bytes as choices; when they are used up, every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def pick(self, among: int) -> int:
        """A number below ``among``."""
        if not self:
            return 0
        self._at += 1
        return self._data[self._at - 1] % among

    def one(self, things: list[T] | tuple[T, ...]) -> T:
        return things[self.pick(len(things))]


class Cast:
    """The actors of one process, used by one schedule after another."""

    def __init__(self) -> None:
        self.actors = [Actor() for _ in range(ACTORS)]

    def end(self) -> None:
        for actor in self.actors:
            actor.end()


@contextmanager
def a_cast() -> Iterator[Cast]:
    cast = Cast()
    try:
        yield cast
    finally:
        cast.end()


class Schedule:
    """One course of one world."""

    def __init__(self, world: World, cast: Cast, choices: Choices) -> None:
        self.world, self.actors, self.choices = world, cast.actors, choices
        self.at_work: dict[Actor, Delivery | None] = {}
        world.api.lag = lambda: choices.pick(4) * (GRACE - 1.0) / 3
        world.api.endings = lambda: choices.one((Status.COMPLETED,) * 5 + (Status.FAILED, Status.EXPIRED))
        world.api.outcome = lambda: choices.one(("",) * 7 + ("unanswered", *CREATE_FAULTS))
        often: list[tuple[int, Callable[[], None]]] = [
            (6, self.deliver),
            (10, self.go_on),
            (4, self.jump),
            (3, self.freeze),
            (2, self.outlive),
            (3, self.strand),
            (2, self.crash),
            (2, self.deliver_early),
            (1, self.lose),
            (1, self.double),
            (2, self.redeliver),
            (1, self.republish),
            (2, self.sweep),
            (1, self.cancel),
            (1, self.shift),
        ]
        self._actions = [action for times, action in often for _ in range(times)]

    def run(self) -> None:
        """All choices, then the quiet end. Raises Broken."""
        try:
            while self.choices:
                self.choices.one(self._actions)()
            self.quiet()
        finally:
            for actor in self.actors:
                if actor.parked:
                    self.world.hand_over(actor, actor.kill)

    # -- actions ---------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """The next message to a worker, at its time."""
        if self.world.waiting:
            delivery = min(self.world.waiting, key=lambda delivery: delivery.at)
            self.world.advance(max(delivery.at - self.world.at, 0.0) + 0.011)
            self._work(delivery)

    def deliver_early(self) -> None:
        """Any message, out of its order and, as hosts' clocks differ, out of its time."""
        if self.world.waiting:
            self._work(self.choices.one(self.world.waiting))

    def go_on(self) -> None:
        if parked := [actor for actor in self.actors if actor.parked and not actor.frozen]:
            actor = self.choices.one(parked)
            self._arm(actor)
            self.let(actor, self._points())

    def jump(self) -> None:
        self.world.advance(self.choices.one(JUMPS))

    def freeze(self) -> None:
        """A host stands still, or goes on again."""
        if parked := [actor for actor in self.actors if actor.parked]:
            actor = self.choices.one(parked)
            actor.frozen = not actor.frozen

    def outlive(self) -> None:
        """A host stands still while all others go on, perhaps past the end of its lease, and then goes on, too."""
        if parked := [actor for actor in self.actors if actor.parked]:
            self._outlive(self.choices.one(parked))

    def strand(self) -> None:
        """The same, for a worker that has come just to one of these; or a cancel comes then."""
        ready = [delivery for delivery in self.world.waiting if delivery.link == "create"]
        free = [actor for actor in self.actors if not actor.parked]
        if not (ready and free):
            return
        stop_at = self.choices.one(("create_batch", "settle", "intent", "intent done"))
        self._strand(self.choices.one(ready), stop_at)
        if free[0].parked:
            if self.choices.pick(4) == 3:
                self.world.watch.facts["cancel"] += 1
                self.world.cancel()
            else:
                self._outlive(free[0])

    def crash(self) -> None:
        """A worker is gone between two steps; its message comes back, or does not."""
        if parked := [actor for actor in self.actors if actor.parked]:
            delivery = self.vanish(self.choices.one(parked))
            if delivery is not None and self.choices.pick(2):
                self.world.waiting.append(delivery)

    def lose(self) -> None:
        if self.world.waiting:
            self.world.waiting.remove(self.choices.one(self.world.waiting))

    def double(self) -> None:
        if self.world.waiting:
            self.world.waiting.append(self.choices.one(self.world.waiting))

    def redeliver(self) -> None:
        """A message that was delivered, perhaps long ago, comes again."""
        if self.world.past:
            self.world.waiting.append(self.choices.one(self.world.past))

    def republish(self) -> None:
        """A message published again: by a webhook, or one that voids what is under way."""
        index = self.choices.pick(len(self.world.watch.seen.shards) + 1) - 1
        when: When = "always" if self.choices.pick(2) else "waiting"
        self._begin(lambda: self.world.job_runner.republish(self.world.job_id, index if index >= 0 else JOB, when=when))

    def sweep(self) -> None:
        self._begin(self.world.sweep)

    def cancel(self) -> None:
        """Not in every schedule: nothing is created after it."""
        if self.choices.pick(8) == 7:
            self.world.watch.facts["cancel"] += 1
            self._begin(self.world.cancel)

    def shift(self) -> None:
        """Redis' clock is set back or leaps forward, or is right again. Not in every schedule."""
        if self.choices.pick(8) >= 6:
            self.world.move_redis_clock(self.choices.one(SHIFTS))

    def _outlive(self, actor: Actor) -> None:
        actor.frozen = True
        for _ in range(self.choices.one((2, 5, 10, 20, 40))):
            self._calmly()
        actor.frozen = self.choices.pick(4) == 3

    # -- what a test that knows its course does by hand ------------------------------------------------------------

    def until(self, reached: Callable[[], bool]) -> None:
        """Let things happen by themselves, with sweeps in between."""
        while not reached():
            hold(self._calmly(), "it ended before")
            self.world.sweep()

    def strand_next(self, stop_at: str) -> None:
        """A free worker takes the next create message and comes to a stop there."""
        self._strand(next(delivery for delivery in self.world.waiting if delivery.link == "create"), stop_at)

    def let(self, actor: Actor, points: int) -> None:
        """Let a worker go on for so many points."""
        self._acted(actor, partial(actor.resume, points))

    def vanish(self, actor: Actor) -> Delivery | None:
        """A worker is killed. Answers the message it was at."""
        self.world.watch.facts["crash"] += 1
        self.world.hand_over(actor, actor.kill)
        return self.at_work.pop(actor, None)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _points(self) -> int:
        """How far an actor goes before the next one may: often a single step."""
        return self.choices.one((TO_THE_END, 1, 1, 2, 3, 5, 8, 13))

    def _arm(self, actor: Actor) -> None:
        actor.fault = self.choices.one(("",) * 6 + SCRIPT_FAULTS + CALL_FAULTS)

    def _strand(self, delivery: Delivery, stop_at: str) -> None:
        self.world.advance(max(delivery.at - self.world.at, 0.0) + 0.011)
        self._work(delivery, stop_at)

    def _work(self, delivery: Delivery, stop_at: str = "") -> None:
        self._begin(lambda: self.world.turn(delivery), delivery, stop_at)

    def _begin(self, body: Callable[[], object], delivery: Delivery | None = None, stop_at: str = "") -> None:
        free = [actor for actor in self.actors if not actor.parked]
        if not free:
            return
        if delivery is not None:
            self.world.take(delivery)
        actor, points = free[0], TO_THE_END if stop_at else self._points()
        self._arm(actor)
        self.at_work[actor] = delivery

        def act() -> bool:
            return actor.begin(lambda: _unless_away(body), points, stop_at)

        self._acted(actor, act)

    def _acted(self, actor: Actor, act: Callable[[], bool]) -> None:
        if self.world.hand_over(actor, act):
            delivery = self.at_work.pop(actor, None)
            if delivery is not None:
                self.world.follow(delivery, actor.result)

    # -- the end ---------------------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """No more faults: who is at work ends its turn, then messages and sweeps until nothing is left."""
        world = self.world
        for actor in self.actors:
            actor.frozen, actor.fault = False, ""
            if actor.parked:
                self.let(actor, TO_THE_END)
        ends = world.at + QUIET_SECONDS
        for _ in range(QUIET_STEPS):
            if not self._calmly():
                break
            if world.at > ends:
                hold(False, "hours later something is still left to do", world.watch.seen)
        else:
            hold(False, "it goes round in circles", world.watch.seen)
        # by then each batch stands in the provider's list, and it is time for a look into all of it, however long it is
        world.advance(MOST_LIST_SECONDS + 1.0)
        world.sweep()
        statuses = {batch.id: batch.status for batch in world.api.batches.values()}
        world.watch.still(statuses, metadata=world.api.list_metadata)

    def _calmly(self) -> bool:
        """The next thing that happens by itself, without faults: a message or a sweep. False: nothing is left."""
        world = self.world
        ahead = world.store.connection.clock().now - world.at  # due times are Redis'
        moments = [delivery.at for delivery in world.waiting] + [at - ahead for at in world.watch.seen.due.values()]
        if not moments:
            return False
        world.advance(max(min(moments) - world.at, 0.0) + 0.011)
        ready = [delivery for delivery in world.waiting if delivery.at <= world.at]
        if ready:
            delivery = world.take(min(ready, key=lambda delivery: delivery.at))
            world.follow(delivery, world.turn(delivery))
        else:
            world.sweep()
        return True


def _unless_away(body: Callable[[], object]) -> object:
    """Whoever sweeps or publishes again meets a Redis that is away, too; a turn has its own answer to that."""
    try:
        return body()
    except StoreUnavailable:
        return None


def run_schedule(client: redis.Redis, folder: Path, cast: Cast, data: bytes, text: Source = source) -> Counter[str]:
    """One schedule, from a new job to its end. Answers what happened in it. Raises Broken, with its story."""
    random.seed(data)  # the pipeline spreads its pauses
    choices = Choices(data)
    rounds, shards = 1 + choices.pick(3), 1 + choices.pick(2)
    world = World(client, folder, rounds=rounds, shards=shards, text=text, parks=len(data) % 2 == 1)
    try:
        Schedule(world, cast, choices).run()
        facts = world.watch.facts
        facts["schedules"] += 1
        facts["told more than once"] += world.notified > 1
        facts["rounds beyond the first"] += int(world.watch.seen.job.get("round", "0")) - 1
        return facts
    except Broken as broken:
        broken.add_note(_story(world, cast))
        raise
    finally:
        world.close()


def _story(world: World, cast: Cast) -> str:
    """Who did what when, up to the broken promise."""
    start = world.story[0][0]
    names: dict[Actor | None, str] = {actor: str(number) for number, actor in enumerate(cast.actors)}
    names[None] = "-"
    lines = [f"{at - start:9.2f} {names[actor]} {words[:150]}" for at, actor, words in world.story[-120:]]
    return "\n".join(["seconds, actor, what:", *lines])
