"""The paid call against a gateway that answers it in every shape: no key has two batches, whatever comes.

The real SDK over HTTP, the real pipeline and scripts; workers die between an answer and its record.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.errors import CREATE_UNKNOWN
from batchpipe.model.records import JobRecord, ShardRecord
from batchpipe.pipeline.create_actions import CANCELLED
from batchpipe.provider import Api
from batchpipe.storage import Folder
from batchpipe.store import Connection, Store
from batchpipe.store.shards import Shards
from batchpipe.testing import FakeOpenAI, Pump
from batchpipe.testing.pump import Vanished
from tests.fuzz.gateway import MADE, NOT_MADE, Gateway, Manner
from tests.fuzz.jobs import MEMORY, Line, rows_of
from tests.fuzz.odd_results import PLAIN, Results
from tests.fuzz.shapes import BATCH, fuzzed
from tests.fuzz.wire import Answer, Request
from tests.redis_server import new_redis
from tests.size import SCALE

pytestmark = [pytest.mark.scaled, pytest.mark.timeout(600)]

#: A job that has not ended by then waits for a person: those that end by themselves take a quarter of it.
HELD_SECONDS = 1_500.0
shapes = st.sampled_from([*MADE, *(f"-{name}" for name in NOT_MADE)])
manners = st.builds(
    Manner,
    list_metadata=st.booleans(),
    read_metadata=st.booleans(),
    own_files=st.booleans(),
    file_names=st.booleans(),
    lists=st.sampled_from([200, 200, 200, 404, 405]),
    neighbours=st.sampled_from([0, 0, 1, 12]),
)
#: Which turns are taken with the second key, in runs: some upload and create, some come in between.
turns = st.lists(st.tuples(st.booleans(), st.sampled_from([1, 2, 3, 6, 60])), min_size=1, max_size=8).map(
    lambda runs: [second for second, length in runs for _ in range(length)]
)
#: The second key is taken away once it has uploaded, and made some of the calls.
handovers = st.integers(2, 8).map(lambda count: [True] * count)
#: Answers that do not tell which batch was made: later turns look for it, with whichever key they have.
UNTOLD = [name for name, shape in MADE.items() if BATCH["id"].encode() not in shape({**BATCH}, []).message()]
plans_of_two_keys = st.lists(shapes | st.sampled_from(UNTOLD), min_size=1, max_size=5)
deaths = st.lists(st.sampled_from(["", "", "before", "after"]), max_size=6)


class DeadlyShards(Shards):
    """A worker dies before or after it records what an answer named."""

    deaths: list[str]

    def record_named_batches(self, shard: ShardRecord, batch_ids: Mapping[str, bool]) -> None:
        self._dying(lambda: super(DeadlyShards, self).record_named_batches(shard, batch_ids))

    def settle(self, *args: Any, **named: Any) -> Any:
        return self._dying(lambda: super(DeadlyShards, self).settle(*args, **named))

    def _dying(self, act: Any) -> Any:
        death = self.deaths.pop(0) if self.deaths else ""
        if death == "before":
            raise Vanished
        answer = act()
        if death == "after":
            raise Vanished
        return answer


class Job:
    """One job from its beginning to its end. ``held``: it did not end before it was cancelled."""

    def __init__(self, line: Line, manner: Manner, plan: list[str], dying: list[str], rows: int = 4, **account: Any):
        self.gateway = Gateway(Results(PLAIN), manner, plan)
        line.wire.answer = self.gateway
        store = Store(Connection(new_redis()))
        store.shards = shards = DeadlyShards(store.connection)
        shards.deaths = list(dying)
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            pump = Pump(Path(folder), api=cast(FakeOpenAI, line.api), store=store, max_rows=2, account_pause_seconds=30)
            self.gateway.clock = lambda: pump.at
            job_id, self.held = pump.submit(rows_of(rows), attempts=1), False
            try:
                pump.run_until_idle(max_seconds=HELD_SECONDS)
            except TimeoutError:
                self.held = True
                self.trouble = {str(shard.trouble and shard.trouble.code) for shard in pump.shards(job_id)}
                pump.cancel(job_id)
                pump.run_until_idle(max_seconds=7_200.0)
            self.ended = pump.job(job_id).state.ended
            self.outcomes = Counter(pump.outcomes(job_id).values())


class TwoKeys:
    """One job whose turns are taken by workers with two keys, of one project or of two; at last by those with the
    first one alone. What the provider makes counts whoever asked.

    ``untrue``: rows of a batch that was made, of which it is said that it was refused or never asked for. A key of
    another project cannot use a file, so its call would make no second batch; but such a row may be sent again.
    """

    def __init__(self, line: Line, plan: list[str], dying: list[str], turns: list[bool], *, projects: int):
        gateways = [Gateway(Results(PLAIN), Manner(), plan) for _ in range(projects)]
        for tag, gateway in zip("ab", gateways, strict=False):
            gateway.tag, gateway.plan = tag, gateways[0].plan

        def answer(request: Request) -> Answer:
            return gateways[-1 if "sk-second" in request.headers["authorization"] else 0](request)

        line.wire.answer = answer
        store = Store(Connection(new_redis()))
        store.shards = shards = DeadlyShards(store.connection)
        shards.deaths = list(dying)

        def apis(whose: list[bool]) -> Callable[[str], Api]:
            return lambda account: line.second if whose and whose.pop() else line.api

        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            pump = Pump(
                Path(folder),
                api=cast(FakeOpenAI, line.api),
                store=store,
                max_rows=2,
                account_pause_seconds=30,
                refusal_wait_seconds=HELD_SECONDS / 3,  # what is refused for that long is believed before the cancel
            )
            pump.shard_runner.apis, pump.job_runner.apis = apis(turns[::-1]), apis(turns[:])  # the latter sweeps
            for gateway in gateways:
                gateway.clock = lambda: pump.at
            job_id = pump.submit(rows_of(4), attempts=1)
            try:
                pump.run_until_idle(max_seconds=HELD_SECONDS)
            except TimeoutError:
                pump.cancel(job_id)
                pump.run_until_idle(max_seconds=90_000.0)
            self.ended, reasons = pump.job(job_id).state.ended, reasons_of(pump.job(job_id))
        self.made = sum((gateway.made for gateway in gateways), Counter[str]())
        paid = {int(key.split(":")[1]) for key in self.made}
        of_paid = {row: reason for row, reason in reasons.items() if int(row[1:]) // 2 in paid}
        self.untrue = [row for row, why in of_paid.items() if why[0] == "failed" or why[1] == CANCELLED.code]
        unknown = any(code == CREATE_UNKNOWN for _, code in of_paid.values())
        self.lost_by_second = unknown and projects == 2 and gateways[-1].made.total() > 0


def reasons_of(job: JobRecord) -> dict[str, tuple[str, str]]:
    """Outcome and error code of each row that is not ok."""
    with Folder(job.output).reader("errors.jsonl") as file:
        lines = [orjson.loads(line) for line in file]
    return {line["custom_id"]: (line["outcome"], (line["error"] or {}).get("code", "")) for line in lines}


def test_no_key_has_two_batches_though_workers_have_the_keys_of_two_projects(line: Line) -> None:
    """Neither an empty list nor a file that is not found proves anything to the key that did not make the call: what it
    made may be unknown, but nobody says that it was refused, or never asked for.
    """
    lost_by_second = [0]

    @fuzzed(150)
    @given(plans_of_two_keys, deaths, turns | handovers, st.sampled_from([1, 2, 2, 2]))
    def check(plan: list[str], dying: list[str], whose: list[bool], projects: int) -> None:
        job = TwoKeys(line, plan, dying, whose, projects=projects)
        assert max(job.made.values(), default=0) <= 1, "paid twice"
        assert job.ended
        assert not job.untrue
        lost_by_second[0] += job.lost_by_second

    check()
    assert lost_by_second[0] or SCALE < 1  # the case that this is about: the first key cannot know what the other made


def test_no_key_has_two_batches_whatever_answers_come(line: Line) -> None:
    """Nor does a job hang: what nobody can tell ends with a cancel. What lists and batches tell is enough elsewhere."""
    met: Counter[str] = Counter()
    held = [0, 0]

    @fuzzed(200)
    @given(manners, st.lists(shapes, max_size=6), deaths)
    def check(manner: Manner, plan: list[str], dying: list[str]) -> None:
        job = Job(line, manner, plan, dying)
        met.update(job.gateway.met)
        held[job.held] += 1
        assert max(job.gateway.made.values(), default=0) <= 1, "paid twice"
        assert job.ended
        if job.held:
            # an id of others that was taken for ours is a batch that this key does not see
            assert job.trouble & {"create_unknown", "batch_unseen"}
            hides = not (manner.list_metadata and manner.lists == 200)
            assert hides or "the batch of others" in "".join(plan) or manner.neighbours

    check()
    # which of them come is drawn again with each change of a test; that each is met at all, the next test shows
    assert len(met) > 0.5 * (len(MADE) + len(NOT_MADE)) * min(SCALE, 1)
    assert 3 * held[False] > held[True] or SCALE < 1  # half of all made-up servers hide what they have made


@pytest.mark.parametrize("shape", [*MADE])
@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_batch_that_an_answer_named_is_the_batch(line: Line, shape: str, neighbours: int) -> None:
    """Where the list shows what was sent, each shape of answer leads to the one batch, without a person."""
    job = Job(line, Manner(neighbours=neighbours), ["200", shape], [])
    assert (dict(job.outcomes), set(job.gateway.made.values()), job.held) == ({"ok": 4}, {1}, False)


@pytest.mark.parametrize("shape", ["200", "201", "202", "201 without a body", "303", "only an id", "without a status"])
@pytest.mark.parametrize("file_names", [True, False])
def test_a_gateway_that_rewrites_files_and_hides_metadata_gets_one_batch_a_shard(
    line: Line, shape: str, file_names: bool
) -> None:
    """Its answers name the batch; that they show another input file, and no metadata, says nothing against it."""
    manner = Manner(list_metadata=False, read_metadata=False, own_files=False, file_names=file_names)
    job = Job(line, manner, [shape] * 2, [])
    assert (dict(job.outcomes), set(job.gateway.made.values()), job.held) == ({"ok": 4}, {1}, False)


def test_what_a_blind_list_cannot_tell_waits_for_a_person(line: Line) -> None:
    """A batch may have been made: nobody calls again, status says why, and a cancel ends it."""
    manner = Manner(list_metadata=False, read_metadata=False, own_files=False, file_names=False)
    job = Job(line, manner, ["200", "nothing"], [])
    assert (dict(job.outcomes), set(job.gateway.made.values())) == ({"ok": 2, "missing": 2}, {1})
    assert (job.held, "create_unknown" in job.trouble) == (True, True)


def test_a_stranger_in_the_list_does_not_hold_a_shared_account(line: Line) -> None:
    """The first calls of an account made nothing; another program's batch has no metadata, but a file of its own."""
    job = Job(line, Manner(neighbours=1), ["-500", "-500"], [])
    assert (dict(job.outcomes), job.held) == ({"ok": 4}, False)
