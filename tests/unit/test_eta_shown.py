"""What people and programs are told of the end of jobs: Python, JSON, the admin and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from batchpipe.client.client import Client
from batchpipe.client.forecasts import FEW_READ
from batchpipe.client.measures import Meter
from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.model.pace import bin_of
from batchpipe.model.records import Problem, Stage
from batchpipe.pipeline.sweep import sweep
from batchpipe.store import Connection, Store
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]


class Place:
    """Jobs on a real Redis, and a client that reads them."""

    def __init__(self, folder: Path, store: Store, client: Client, **settings: Any) -> None:
        self.folder = folder
        self.pump = Pump(folder, api=FakeOpenAI(), store=store, max_rows=1, **settings)
        self.client = client

    def created(self, rows: list[dict[str, object]], **fields: Any) -> str:
        job_id = self.pump.submit(rows, **fields)
        for _ in range(10_000):
            if (shards := self.pump.shards(job_id)) and all(shard.stage == Stage.CREATED for shard in shards):
                return job_id
            if self.pump.step() is None:
                self.pump.advance(1)
        raise TimeoutError

    def history(self, job_id: str, *seconds: float, each: int = 10) -> None:
        connection = self.pump.store.connection
        model, now = self.pump.shards(job_id)[0].model, connection.now()
        counts = orjson.dumps({str(bin_of(time)): each for time in seconds}).decode()
        connection.client.hset(f"{connection.prefix}pace:default:{model}", f"{int(now // 86_400)}:took", counts)
        connection.client.zadd(f"{connection.prefix}paces:default", {str(model): now})


@pytest.fixture
def place(tmp_path: Path, redis_url: str, prefix: str) -> Place:
    import redis

    client = Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path / "home"))
    store = Store(Connection(redis.Redis.from_url(redis_url, decode_responses=True), prefix=prefix))
    return Place(tmp_path, store, client)


def test_nothing_is_said_where_nothing_is_known(place: Place, chat_rows: Rows) -> None:
    """Null everywhere, and None."""
    job = place.client.get_job(place.created(chat_rows(2)))
    assert job.eta() is None
    view = job.to_dict()
    assert [view["eta"], *(part["eta"] for part in view["shards"]), *(part["late"] for part in view["shards"])] == [
        None
    ] * 5
    assert place.client.show([job])[0]["eta"] is None


def test_job_and_shards_have_an_eta_everywhere(place: Place, chat_rows: Rows) -> None:
    """In Python, in status, its stream and page, and in a list: the same."""
    job_id = place.created(chat_rows(3))
    place.history(job_id, 300, 600, 1_200)
    job = place.client.get_job(job_id)
    found = job.eta()
    assert found is not None
    now = place.client.now()
    assert now < found.earliest < found.latest < found.nine_in_ten < now + 3_000
    assert found.batches == 30
    assert found.text.startswith("usually ")
    whole, stream = job.to_dict(), orjson.loads(b"".join(job.iter_json()))
    for view in (whole, stream, job.to_page(), place.client.show([job])[0]):
        assert set(view["eta"]) == {"earliest", "latest", "nine_in_ten", "batches", "text"}
        assert view["eta"]["nine_in_ten"] == pytest.approx(found.nine_in_ten, abs=60)
    for part in whole["shards"]:
        assert part["eta"]["nine_in_ten"] < whole["eta"]["nine_in_ten"]


def test_a_large_job_is_foreseen_from_some_of_its_shards(place: Place, chat_rows: Rows) -> None:
    """The same as from all; a list reads no more than these."""
    job_id = place.created(chat_rows(3 * FEW_READ))
    place.history(job_id, 300, 600, 1_200)
    job = place.client.get_job(job_id)
    found = job.eta()
    assert found is not None
    assert place.client.show([job])[0]["eta"]["nine_in_ten"] == pytest.approx(found.nine_in_ten, abs=60)


@pytest.mark.parametrize("limits", [{"batches_in_flight": 2}, {"enqueued_tokens_default": 84}])
def test_the_end_of_a_job_is_that_of_its_last_shard_with_the_line_before_it(
    limits: dict[str, int], place: Place, chat_rows: Rows
) -> None:
    """Twenty shards and room for two: the last one waits for nine others in its place. And behind another job."""
    account = {"default": Account(api_key=SecretStr("k"), **limits)}
    place = Place(place.folder, place.pump.store, place.client, accounts=account)
    job_id, alone = place.pump.submit(chat_rows(20)), place.pump.submit(chat_rows(1, start=100))
    while place.pump.step() is not None:
        pass
    assert len(place.pump.api.batches) == 2
    assert place.client.get_job(job_id).eta() is None, "nothing is known of this model"
    place.history(job_id, 550, 600, 650, each=5_000)
    job = place.client.get_job(job_id)
    found, now = job.eta(), place.client.now()
    assert found is not None
    assert 9 * 600 < found.earliest - now < found.latest - now < 13 * 600
    assert found.nine_in_ten - now < 14 * 600
    listed = place.client.show([job])[0]["eta"]
    assert listed["nine_in_ten"] == pytest.approx(found.nine_in_ten, abs=120)
    parts = [part["eta"]["nine_in_ten"] for part in job.to_dict()["shards"]]
    assert parts[0] - now < 800
    assert parts == sorted(parts)
    other = place.client.get_job(alone).eta()
    assert other is not None
    assert 600 < other.nine_in_ten - now < 2_000, "jobs take turns"


def test_nothing_is_said_of_a_shard_that_waits_for_a_person(place: Place, chat_rows: Rows) -> None:
    """Nobody knows when its pause ends."""
    account = {"default": Account(api_key=SecretStr("k"), batches_in_flight=1)}
    place = Place(place.folder, place.pump.store, place.client, accounts=account)
    job_id = place.pump.submit(chat_rows(2))
    while place.pump.step() is not None:
        pass
    place.history(job_id, 550, 600, 650)
    connection = place.pump.store.connection
    connection.client.hset(connection.job_key(job_id), "send_no_more", "1")
    assert place.client.get_job(job_id).eta() is None


def test_shards_that_wait_for_the_next_hour_are_foreseen_by_the_rate_of_creations(
    place: Place, chat_rows: Rows
) -> None:
    """One creation in six minutes, whatever batches take."""
    account = {"default": Account(api_key=SecretStr("k"), creations_per_hour=10)}
    place = Place(place.folder, place.pump.store, place.client, accounts=account)
    job_id = place.pump.submit(chat_rows(20))
    while place.pump.step() is not None:
        pass
    place.history(job_id, 5, 6, 7)
    found = place.client.get_job(job_id).eta()
    assert found is not None
    assert found.nine_in_ten - place.client.now() == pytest.approx(3_600, rel=0.1)


def test_nothing_is_said_of_a_job_that_is_paused_held_or_over(place: Place, chat_rows: Rows) -> None:
    job_id = place.created(chat_rows(1))
    place.history(job_id, 300, 600)
    job = place.client.get_job(job_id)
    assert job.eta() is not None
    place.pump.store.accounts.pause("default", 60, Problem(code="unauthorized", message="no key"))
    assert (job.eta(), job.to_dict()["eta"]) == (None, None)
    place.pump.store.accounts.resume("default")
    place.client.cancel(job_id)
    assert job.eta() is None


def test_a_late_batch_is_shown_as_late_until_it_ends(place: Place, chat_rows: Rows) -> None:
    """With since when, and what one can do; in Prometheus by account."""
    job_id = place.created(chat_rows(1))
    place.history(job_id, 300, 400, 500)
    shard = place.pump.shards(job_id)[0]
    connection = place.pump.store.connection
    early = connection.now() - 9_000
    connection.client.hset(
        connection.key(job_id, 0), mapping={"created_at": early, "made_at": early, "intent_at": early - 1}
    )
    connection.client.zadd(f"{connection.prefix}inflight:default", {f"{job_id}/0": early})
    sweep(place.pump.job_runner, listing=True)
    late = place.client.get_job(job_id).to_dict()["shards"][0]["late"]
    assert late["since"] == pytest.approx(connection.now(), abs=60)
    assert f"batchpipe cancel {job_id}" in late["message"]
    meter = Meter(lambda: place.pump.store)
    measures = meter.read()
    assert measures.late == {"default": 1.0}
    assert measures.turnarounds.batches == {("default", shard.model): 30}
    assert sorted(quantile for _, _, quantile in measures.turnarounds.took) == ["0.5", "0.9"]
    place.pump.api.finish("batch_0001")
    place.pump.run_until_idle()
    assert place.client.get_job(job_id).to_dict()["shards"][0]["late"] is None
    assert meter.read().late == {"default": 0.0}


def test_a_dated_version_of_a_model_waits_in_the_room_of_its_model(place: Place, chat_rows: Rows) -> None:
    """Rows name the version; the room, and what is said of the end, is that of all versions."""
    account = {"default": Account(api_key=SecretStr("k"), enqueued_tokens_default=84)}
    place = Place(place.folder, place.pump.store, place.client, accounts=account)
    job_id = place.pump.submit(chat_rows(4, model="m-2026-01-31"))
    place.pump.run_due()
    assert len(place.pump.api.batches) < 4
    place.history(job_id, 550, 600, 650)
    assert place.client.get_job(job_id).eta() is not None
