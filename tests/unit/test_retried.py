"""A job and its retries as one: results in input order, files written anew, whatever is killed in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchpipe.client.client import Client, Job
from batchpipe.config.settings import Settings
from batchpipe.errors import OutputInUse, PermanentError, StorageTrouble
from batchpipe.model.records import JOB, State
from batchpipe.pipeline.retried import Joining
from batchpipe.recover import recover
from batchpipe.testing import FakeOpenAI, Pump, polite_answer

Rows = Callable[..., list[dict[str, object]]]


class World:
    """A client and a pump on one Redis; ``fails`` says with which status a row is refused, by custom_id."""

    def __init__(self, url: str, prefix: str, folder: Path) -> None:
        self.folder = folder
        self.client = Client(Settings(_env_file=None, redis_url=url, prefix=prefix, home=folder / "home"))
        self.fails: dict[str, int] = {}
        self.asked: list[tuple[str, Any]] = []
        api = FakeOpenAI(autofinish=True)
        api.answer = self._answer
        self.pump = Pump(folder / "pump", store=self.client.store, api=api)

    def _answer(self, request: Mapping[str, Any]) -> Any:
        name = request["custom_id"]
        self.asked.append((name, request["body"].get("model")))
        return self.fails.get(name) or polite_answer(request)

    def done(self, job: Job) -> Job:
        self.pump.run_until_idle()
        self.client.sweep(listing=False)
        for _ in range(20):
            if job.refresh().record.closed:
                break
            self.pump.sweep() if hasattr(self.pump, "sweep") else self.client.republish(job.id)
            self.pump.run_until_idle()
        assert job.refresh().record.closed
        return job

    def submit(self, rows: list[dict[str, object]], **options: Any) -> Job:
        return self.done(self.client.submit(rows, output=self.folder / "out", attempts=1, **options))

    def retry(self, job: Job, **how: Any) -> Job:
        return self.done(self.client.retry(job.id, **how))


@pytest.fixture
def world(redis_url: str, prefix: str, tmp_path: Path) -> World:
    return World(redis_url, prefix, tmp_path)


def states(job: Job, **how: Any) -> list[tuple[str, str]]:
    return [(row.id, row.state.value) for row in job.results(**how)]


def files(folder: Path) -> tuple[list[str], list[str]]:
    return tuple(  # type: ignore[return-value]
        [orjson.loads(line)["custom_id"] for line in (folder / name).read_bytes().splitlines()]
        for name in ("output.jsonl", "errors.jsonl")
    )


def test_the_results_of_the_first_show_both_as_one(world: World, chat_rows: Rows) -> None:
    """Rows and files, in input order; the first alone on request; numbers of both."""
    world.fails = {"r1": 400, "r3": 422}
    first = world.submit(chat_rows(5))
    assert states(first)[1] == ("r1", "failed")
    del world.fails["r1"]
    retry = world.retry(first)

    assert states(first) == [("r0", "ok"), ("r1", "ok"), ("r2", "ok"), ("r3", "failed"), ("r4", "ok")]
    assert states(first, retries=False) == [
        ("r0", "ok"),
        ("r1", "failed"),
        ("r2", "ok"),
        ("r3", "failed"),
        ("r4", "ok"),
    ]
    assert files(world.folder / "out") == (["r0", "r1", "r2", "r4"], ["r3"])
    view = first.refresh().to_dict()
    assert view["retries"] == [retry.id]
    assert view["rows"] == {"total": 5, "ok": 3, "failed": 2, "missing": 0}
    assert view["rows_with_retries"] == {"ok": 4, "failed": 1, "missing": 0}
    written = orjson.loads((world.folder / "out" / "job.json").read_bytes())
    assert (written["id"], written["rows_with_retries"]) == (first.id, view["rows_with_retries"])
    assert retry.to_dict()["retry_of"] == first.id


def test_only_rows_with_a_code_are_sent_and_their_bodies_may_change(world: World, chat_rows: Rows) -> None:
    world.fails = {"r1": 400, "r2": 422}
    first = world.submit(chat_rows(3))
    world.fails, world.asked = {}, []
    world.retry(first, only=["422"], changes={"model": "gpt-4o"})
    assert world.asked == [("r2", "gpt-4o")]
    assert states(first) == [("r0", "ok"), ("r1", "failed"), ("r2", "ok")]
    world.asked = []
    world.retry(first)
    assert [name for name, _ in world.asked] == ["r1"]  # what another retry has answered is not paid for again
    assert states(first) == [("r0", "ok"), ("r1", "ok"), ("r2", "ok")]
    assert files(world.folder / "out") == (["r0", "r1", "r2"], [])
    with pytest.raises(PermanentError, match="no rows to retry"):
        world.client.retry(first.id, only=["400"])


def test_a_retry_can_be_retried(world: World, chat_rows: Rows) -> None:
    """All of them show what is known."""
    world.fails = {"r0": 400, "r1": 400, "r2": 400}
    first = world.submit(chat_rows(4))
    del world.fails["r0"]
    second = world.retry(first)
    del world.fails["r2"]
    third = world.retry(second)
    assert states(third) == [("r1", "failed"), ("r2", "ok")]
    assert states(second) == [("r0", "ok"), ("r1", "failed"), ("r2", "ok")]
    assert states(first) == [("r0", "ok"), ("r1", "failed"), ("r2", "ok"), ("r3", "ok")]
    assert files(world.folder / "out") == (["r0", "r2", "r3"], ["r1"])


def test_two_retries_at_once_would_pay_twice(world: World, chat_rows: Rows) -> None:
    """The same retry is one job; another waits for it."""
    world.fails = {"r1": 400}
    first = world.submit(chat_rows(2))
    retry = world.client.retry(first.id)
    assert world.client.retry(first.id).id == retry.id
    with pytest.raises(PermanentError, match=f"the retry {retry.id} of job {first.id} has not ended"):
        world.client.retry(first.id, only=["400"])


def test_one_retry_of_a_tree_runs_at_a_time_also_when_the_output_was_taken(world: World, chat_rows: Rows) -> None:
    """Of whichever job of it: both would pay for the same rows."""
    world.fails = {"r0": 400, "r1": 422}
    first = world.submit(chat_rows(2))
    world.submit(chat_rows(1, start=7))
    second = world.retry(first)
    third = world.client.retry(second.id)
    with pytest.raises(OutputInUse, match=f"job {first.id} cannot be retried while job {third.id} has not ended"):
        world.client.retry(first.id, only=["422"])
    world.done(third)
    world.asked = []
    world.retry(first, only=["422"])
    assert [name for name, _ in world.asked] == ["r1"]


def test_nobody_takes_the_output_while_a_retry_will_write_there(world: World, chat_rows: Rows) -> None:
    world.fails = {"r1": 400}
    first = world.submit(chat_rows(2))
    world.client.retry(first.id)
    with pytest.raises(OutputInUse):
        world.client.submit(chat_rows(1), output=world.folder / "out")


def test_an_output_that_another_job_has_taken_is_left_alone(world: World, chat_rows: Rows) -> None:
    """The first one's results were moved; as rows they are shown as one all the same."""
    world.fails = {"r1": 400}
    first = world.submit(chat_rows(2))
    other = world.submit(chat_rows(1, start=7))
    world.fails = {}
    world.retry(first)
    assert files(world.folder / "out") == (["r7"], [])
    assert states(first.refresh()) == [("r0", "ok"), ("r1", "ok")]
    assert states(other) == [("r7", "ok")]


def test_a_turn_that_dies_while_it_joins_is_repeated(
    world: World, chat_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any point: the own files are kept first, and everything is made of them."""
    world.fails = {"r1": 400}
    first = world.submit(chat_rows(3))
    world.fails = {}
    left, real = [3], Joining._join_into

    def dies(self: Joining, lease: Any, job: Any) -> None:
        real(self, lease, job)
        left[0] -= 1
        if left[0] > 0:
            raise StorageTrouble("died")

    monkeypatch.setattr(Joining, "_join_into", dies)
    world.retry(first)
    assert left == [0]
    assert states(first) == [("r0", "ok"), ("r1", "ok"), ("r2", "ok")]
    assert states(first, retries=False)[1] == ("r1", "failed")
    assert files(world.folder / "out") == (["r0", "r1", "r2"], [])


def test_a_row_that_is_landed_after_a_retry_is_shown(world: World, chat_rows: Rows) -> None:
    """Its own files are put back, merged with what was landed, and joined with the retry again."""
    pump = world.pump
    pump.api.autofinish = False
    first = world.client.submit(chat_rows(3), output=world.folder / "out", attempts=1, max_rows=1)
    with suppress(TimeoutError):  # its batches run
        pump.run_until_idle(300.0)
    lost, *others = pump.api.batches
    pump.api.batches[lost].project = "elsewhere"
    for batch in others:
        pump.api.finish(batch, rows={"r2": 400})
    pump.run_until_idle(4 * 86_400.0)
    assert states(first.refresh()) == [("r0", "missing"), ("r1", "ok"), ("r2", "failed")]
    pump.api.autofinish = True
    world.fails = {"r0": 400}
    world.retry(first)
    assert files(world.folder / "out") == (["r1", "r2"], ["r0"])
    world.fails, pump.api.batches[lost].project = {}, ""
    pump.api.finish(lost)
    first.land()
    pump.run_until_idle(3_600.0)
    world.done(first)
    assert states(first) == [("r0", "ok"), ("r1", "ok"), ("r2", "ok")]
    assert states(first, retries=False) == [("r0", "ok"), ("r1", "ok"), ("r2", "failed")]
    assert files(world.folder / "out") == (["r0", "r1", "r2"], [])
    assert first.record.results == str(world.folder / "out")


def test_a_retry_that_redis_has_lost_is_recovered_with_its_link(world: World, chat_rows: Rows) -> None:
    """Also where only the retry was lost: it ends in one result all the same."""
    world.fails = {"r1": 400}
    first = world.submit(chat_rows(3))
    world.fails = {}
    retry = world.client.retry(first.id)
    world.pump.job_runner.run("prepare", retry.id, JOB, retry.record.epoch)
    connection = world.client.store.connection
    connection.client.hset(connection.job_key(first.id), "retries", "[]")
    for key in connection.client.scan_iter(f"{connection.prefix}*{retry.id}*"):
        connection.client.delete(key)
    world.pump.waiting.clear()
    report = recover(world.pump.job_runner)
    assert [one.job for one in report.rebuilt] == [retry.id]
    world.done(retry)
    assert first.refresh().record.retries == [retry.id]
    assert states(first) == [("r0", "ok"), ("r1", "ok"), ("r2", "ok")]
    assert files(world.folder / "out") == (["r0", "r1", "r2"], [])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_results_of_any_tree_of_retries_are_the_latest_or_the_ok_ones(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, chat_rows: Rows
) -> None:
    """Against a dict."""
    world = World(redis_url, f"{{retried-{data.draw(st.uuids())}}}:", tmp_path_factory.mktemp("retried"))
    count = data.draw(st.integers(1, 6))
    names = [f"r{number}" for number in range(count)]
    status = st.sampled_from([0, 400, 422])

    def draw() -> None:
        world.fails = {name: code for name in names if (code := data.draw(status))}

    draw()
    first = world.submit(chat_rows(count))
    ok = {name for name in names if name not in world.fails}
    known = [first]
    for _ in range(data.draw(st.integers(0, 4))):
        job = known[data.draw(st.integers(0, len(known) - 1))]
        draw()
        world.asked = []
        only = data.draw(st.sampled_from([(), ("400",), ("422",)]))
        try:
            retry = world.retry(job, only=only)
        except PermanentError:  # there is nothing to retry
            continue
        asked = {name for name, _ in world.asked}
        if retry.id not in [one.id for one in known]:
            known.append(retry)
        ok |= {name for name in asked if name not in world.fails}
    assert states(first.refresh()) == [(name, "ok" if name in ok else "failed") for name in names]
    assert first.state in (State.SUCCEEDED, State.PARTIAL, State.FAILED)
