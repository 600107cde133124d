"""What comes from outside has a length where it enters a record, and what is kept of jobs has an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from batchpipe.cli import cli
from batchpipe.cli.common import emit_parts
from batchpipe.cli.status import MOST_LINES, _print_shards, _Seen
from batchpipe.client.client import Client
from batchpipe.config.settings import Settings
from batchpipe.errors import InvalidInput, Refused
from batchpipe.model.records import JobRecord, Problem, ShardRecord, Stage, State, new_job_id
from batchpipe.model.requests import MAX_MODEL, check_request
from batchpipe.model.views import job_view, json_of_job, shard_view
from batchpipe.pipeline.manifest import noted_workspaces, pretty, prune_workspaces
from batchpipe.pipeline.messages import Message
from batchpipe.pipeline.republish_many import PUBLISHED_AT_ONCE
from batchpipe.pipeline.runner import words
from batchpipe.pipeline.sharding import Bounds, NoFiles, Planner
from batchpipe.pipeline.sweep import sweep
from batchpipe.provider.parse import MOST_ERROR_TEXTS, parse_batch
from batchpipe.storage import LineFile
from batchpipe.store import Connection, JobLease, Store
from batchpipe.store.records import encode_value
from batchpipe.tasks.runtime import runtime
from batchpipe.testing import FakeOpenAI, Pump
from tests.redis_server import new_redis

ENDPOINT = "/v1/chat/completions"
Rows = Callable[..., list[dict[str, object]]]


def line(model: str = "m", name: str = "a", url: str = ENDPOINT) -> bytes:
    row = {"custom_id": name, "method": "POST", "url": url, "body": {"model": model, "messages": []}}
    return orjson.dumps(row) + b"\n"


# -- texts ---------------------------------------------------------------------------------------------------------


def test_the_errors_of_a_batch_keep_every_line_and_the_texts_of_some() -> None:
    """Which rows were refused is needed for each row; 1,000 texts of a megabyte are needed by nobody."""
    data = [{"code": "c" * 9_000, "message": "m" * 100_000, "param": "p" * 9_000, "line": at} for at in range(1, 3_001)]
    batch = parse_batch({"id": "batch_1", "status": "s" * 9_000, "errors": {"data": data}})
    assert [error.line for error in batch.errors] == list(range(1, 3_001))
    assert sum(error.message is not None for error in batch.errors) == MOST_ERROR_TEXTS
    assert len(encode_value(batch.errors)) < 150_000
    assert len(batch.status or "") <= 64


def test_what_a_batch_says_of_itself_is_bounded_and_our_own_marks_are_kept() -> None:
    metadata = {**{f"k{at}": "v" for at in range(5_000)}, "long": "x" * 10**6, "batchpipe_job": "job_1"}
    batch = parse_batch({"id": "b", "metadata": metadata, "usage": dict.fromkeys(map(str, range(9_999)), 1)})
    assert batch.metadata["batchpipe_job"] == "job_1"
    assert len(orjson.dumps(batch.metadata)) < 10_000
    assert len(batch.usage) <= 64


def test_a_row_that_was_refused_among_many_is_marked_though_its_text_is_not_kept(
    tmp_path: Path, chat_rows: Rows
) -> None:
    """Every row that was named fails; the others of its batch are sent again."""
    api = FakeOpenAI()
    pump = Pump(tmp_path, api=api)
    job_id = pump.submit(chat_rows(300), attempts=1)
    for _ in range(10_000):
        if pump.shards(job_id) and pump.shards(job_id)[0].stage == Stage.CREATED:
            break
        if pump.step() is None:
            pump.advance(1)
    errors = [{"code": "bad", "message": f"row {at}", "line": at} for at in range(1, 251)]
    batch = pump.shards(job_id)[0].batch_id
    assert batch is not None
    api.fail(batch, parse_batch({"id": "b", "errors": {"data": errors}}).errors)
    pump.run_until_idle()
    lines = [orjson.loads(row) for row in (tmp_path / job_id / "out" / "errors.jsonl").read_bytes().splitlines()]
    codes = [row["error"]["code"] for row in lines]
    assert codes[:100] == ["bad"] * 100
    assert codes[100:250] == ["row_refused"] * 150
    assert codes[250:] == ["batch_refused"] * 50


@pytest.mark.parametrize("error", [ValueError("x" * 10**7), Refused("y" * 10**7, code="c" * 10**6, param="p" * 10**6)])
def test_no_error_becomes_a_long_text(error: Exception) -> None:
    """An exception of a receiver, or a provider's words."""
    problem = Problem(code=getattr(error, "code", "e"), message=words(error))
    assert len(orjson.dumps([problem.code, problem.message])) < 5_000
    assert len(encode_value(Problem(code="c" * 10**6, message="m" * 10**6))) < 5_000


@pytest.mark.parametrize("row", [line(url="u" * 10**7), line(model="m" * 10**7), line(name="n" * 10**7, url="/v1/x")])
def test_what_is_said_of_a_bad_row_does_not_grow_with_it(row: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_request(row, 1, ENDPOINT)
    assert len(caught.value.message) < 400


def test_the_name_of_a_model_has_an_end() -> None:
    assert check_request(line(model="m" * MAX_MODEL), 1, ENDPOINT).model == "m" * MAX_MODEL
    with pytest.raises(InvalidInput, match=r"body.model: has 201 characters"):
        check_request(line(model="m" * (MAX_MODEL + 1)), 1, ENDPOINT)


# -- models and shards ---------------------------------------------------------------------------------------------


def test_a_job_of_too_many_models_fails_in_one_line_that_names_the_setting(tmp_path: Path, chat_rows: Rows) -> None:
    pump = Pump(tmp_path)
    rows = [row for at in range(101) for row in chat_rows(1, model=f"model-{at}", start=at)]
    job_id = pump.submit(rows)
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.state, job.shards) == (State.FAILED, 0)
    assert job.error is not None
    assert job.error.code == "too_many_models"
    assert "BATCHPIPE_MAX_MODELS" in job.error.message
    assert "\n" not in job.error.message


def test_as_many_models_as_the_setting_says_are_sent(tmp_path: Path, chat_rows: Rows) -> None:
    pump = Pump(tmp_path, max_models=9)
    job_id = pump.submit([row for at in range(9) for row in chat_rows(2, model=f"model-{at}", start=2 * at)])
    pump.run_until_idle()
    assert pump.job(job_id).state is State.SUCCEEDED


def test_a_job_of_too_many_shards_is_refused_before_it_fills_the_disk() -> None:
    planner = Planner(NoFiles(), ENDPOINT, 1, 10**9, bounds=Bounds(9, 3))
    for at in range(3):
        row = line(name=str(at))
        planner.place(check_request(row, at + 1, ENDPOINT), row)
    with pytest.raises(InvalidInput, match="BATCHPIPE_MAX_SHARDS"):
        planner.place(check_request(line(), 4, ENDPOINT), line())


# -- the list of workspaces ----------------------------------------------------------------------------------------


def test_the_newest_lines_of_a_long_list_are_read(tmp_path: Path) -> None:
    """The newest jobs are those that are not done."""
    file = LineFile(tmp_path / "list")
    for at in range(100):
        file.append(b"line %03d" % at)
    assert list(file.newest(45)) == [b"line %03d\n" % at for at in range(95, 100)]
    assert list(file.newest(44)) == [b"line %03d\n" % at for at in range(96, 100)]
    assert len(list(file.newest(10**9))) == 100


def test_the_list_of_workspaces_forgets_jobs_that_are_over_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchpipe.pipeline.manifest.PRUNED_BYTES", 1_000)
    settings = Settings(_env_file=None, home=tmp_path)
    file = LineFile(tmp_path / "workspaces.jsonl")
    running, over, lost, old = new_job_id(), new_job_id(), new_job_id(), "job_000000001aaaaaaaaaa"
    for job in (old, running, over, lost) * 10:
        file.append(orjson.dumps({"job": job, "workspace": "/w", "output": "/o"}))
    file.append(b"not json")
    now = 1e9 + 40 * 86_400.0
    prune_workspaces(settings, lambda jobs: {running: False, over: True}, now)
    left = [orjson.loads(line)["job"] for line in noted_workspaces(settings)]
    assert left == [running, lost] * 10
    file.append(orjson.dumps({"job": old, "workspace": "/w", "output": "/o"}))
    size = file.path.stat().st_size
    prune_workspaces(settings, lambda jobs: {running: False, over: True}, now)
    assert file.path.stat().st_size == size  # it has not doubled since


# -- views of many shards ------------------------------------------------------------------------------------------


def many(count: int) -> Iterator[ShardRecord]:
    for index in range(count):
        trouble = Problem(code="x", message="why") if index == count - 1 else None
        stage = Stage.CREATED if index % 2 else Stage.COLLECTED
        yield ShardRecord(job="job_x", index=index, rows=1, stage=stage, ok=1, trouble=trouble)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("ok", [None, 3])
def test_the_text_in_parts_is_that_of_the_view(count: int, ok: int | None) -> None:
    job = JobRecord(id="job_x", ok=ok, round=1, name="日本 \n", shards=count)
    whole = pretty(job_view(job, many(count)))
    assert b"".join(json_of_job(job, lambda: many(count))) == whole


def test_json_in_parts_has_its_control_characters_written_out(capfd: pytest.CaptureFixture[str]) -> None:
    job = JobRecord(id="job_x", name="a\u202eb\x9b")
    emit_parts(json_of_job(job, lambda: many(1)))
    printed = capfd.readouterr().out
    assert not {"\u202e", "\x9b"} & set(printed)
    assert orjson.loads(printed)["name"] == job.name


def test_status_shows_what_is_in_trouble_and_sums_of_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    seen = _Seen()
    for shard in many(5_000):
        seen.add(shard)
    shown = seen.lines()
    _print_shards(seen, shown, [shard_view(shard) for shard in shown])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == MOST_LINES + 4
    assert lines[0] == "shards    5,000: 2,500 collected, 2,500 created; 1 in trouble"
    assert lines[1].startswith("SHARD ")
    assert lines[3].strip() == "! why"
    assert lines[-1] == "and 4,900 more shards: --json has them all"


# -- records that cannot be read -----------------------------------------------------------------------------------


def test_a_sweep_goes_on_past_a_record_that_cannot_be_read(tmp_path: Path, chat_rows: Rows) -> None:
    """It is named and put aside; what is due after it is published again."""
    store = Store(Connection(new_redis()))
    pump = Pump(tmp_path, store=store, api=FakeOpenAI())
    jobs = [pump.submit(chat_rows(1)) for _ in range(2)]
    store.connection.client.delete(f"{store.connection.prefix}job:{jobs[0]}")
    store.connection.client.set(f"{store.connection.prefix}job:{jobs[0]}", "no hash")
    pump.waiting.clear()
    pump.advance(3_600)
    sweep(pump.job_runner)
    assert {message.job for message in pump.published[2:]} == {jobs[1]}
    pump.advance(120)
    assert jobs[0] not in {job for job, _ in store.due.overdue()}


def test_doctor_names_a_record_that_cannot_be_read(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchpipe.cli.doctor import _trouble

    prefix = f"{{{new_job_id()}}}:"
    client = Client(Settings(_env_file=None, redis_url=redis_url, home=tmp_path))
    monkeypatch.setattr(client.store.connection, "prefix", prefix)
    job_id = new_job_id()
    client.store.jobs.submit(JobRecord(id=job_id, epoch=1, output="/o"))
    client.store.connection.client.hset(f"{prefix}job:{job_id}", "stage", "archived")
    [finding] = _trouble(client.health().open_jobs())
    assert "cannot be read" in finding.detail


def test_a_cancel_of_many_shards_publishes_a_few_at_once_and_the_sweep_the_others(
    tmp_path: Path, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for it in a web request waits for a few messages, whatever the job's size."""
    count = 70
    client = Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path))
    job = JobRecord(id=new_job_id(), epoch=1, output="/o", task_ids=["p"])
    client.store.jobs.submit(job)
    stages = [State.PENDING.value]
    lease = client.store.leases.claim_job(job.id, 1, stages, deadline=99, enter=State.PREPARING.value)
    assert isinstance(lease, JobLease)
    client.store.leases.plan(lease, {}, many_planned(job.id, count), ["m"])
    runner = runtime(client.settings).job_runner
    sent: list[int] = []
    monkeypatch.setattr(runner, "_publish", lambda message: sent.append(message.index))
    assert client.cancel(job.id).state is State.CANCELLING
    assert sorted(sent) == list(range(PUBLISHED_AT_ONCE))
    sweep(runner, listing=False)
    assert sorted(sent) == list(range(count))


@pytest.fixture
def waiting(tmp_path: Path, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path)), monkeypatch)


class Waiting:
    """A client, jobs whose shards wait until a pause ends, and what is sent of them."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client, self.runner = client, runtime(client.settings).job_runner
        self.sent: list[tuple[str, int]] = []
        self.calls = 0
        run = self.client.store.connection.run

        def counted(*args: Any) -> Any:
            self.calls += 1
            return run(*args)

        def note(message: Message) -> None:
            self.sent.append((message.job, message.index))

        monkeypatch.setattr(self.client.store.connection, "run", counted)
        monkeypatch.setattr(self.runner, "_publish", note)

    def job(self, count: int, *, account: str = "default", troubled: Sequence[int] = ()) -> str:
        store = self.client.store
        job = JobRecord(id=new_job_id(), epoch=1, output=f"/o/{new_job_id()}", task_ids=["p"], account=account)
        store.jobs.submit(job)
        lease = store.leases.claim_job(job.id, 1, [State.PENDING.value], deadline=99, enter=State.PREPARING.value)
        assert isinstance(lease, JobLease)
        store.leases.plan(lease, {}, many_planned(job.id, count), ["m"])
        pipe = store.connection.client.pipeline(transaction=False)
        for index in range(count):
            pipe.hset(
                f"{store.connection.prefix}shard:{job.id}:{index}", "next_at", str(store.connection.host_time() + 600)
            )
        for index in troubled:
            full = encode_value(Problem(code="account_full", message="full"))
            pipe.hset(f"{store.connection.prefix}shard:{job.id}:{index}", "trouble", full)
        pipe.execute()
        self.calls = 0
        return job.id

    def sweep_all(self) -> None:
        while self.client.store.connection.client.exists(f"{self.client.store.connection.prefix}to_republish"):
            sweep(self.runner, listing=False)


@pytest.mark.parametrize("count", [10, 1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_end_of_a_pause_publishes_a_few_at_once_and_the_sweeps_the_others(waiting: Waiting, count: int) -> None:
    """A command and a request of the web take as long for 10,000 shards that wait as for 20."""
    large, others = waiting.job(count), [waiting.job(1) for _ in range(30)]
    waiting.job(3, account="other")
    waiting.client.store.accounts.pause("default", 600, Problem(code="insufficient_quota", message="no money"))
    waiting.calls = 0
    found = waiting.client.resume("DEFAULT")
    assert (found.paused, found.republished, len(waiting.sent)) == (True, PUBLISHED_AT_ONCE, PUBLISHED_AT_ONCE)
    assert waiting.calls < 3 * PUBLISHED_AT_ONCE
    waiting.sweep_all()
    assert len(waiting.sent) == len(set(waiting.sent))
    assert set(waiting.sent) == {(large, index) for index in range(count)} | {(job, 0) for job in others}


def test_what_waits_for_a_person_is_found_by_the_sweeps_where_there_is_much(waiting: Waiting) -> None:
    """The account is not paused: only those shards look again, wherever they stand."""
    wait = [3, 700, 1_234]
    job = waiting.job(1_300, troubled=wait)
    found = waiting.client.resume("default")
    assert (found, waiting.sent) == ((False, 1, 1), [(job, 3)])
    waiting.sweep_all()
    assert waiting.sent == [(job, index) for index in wait]
    assert waiting.client.resume("nobody") == (False, 0, 0)


def test_a_job_whose_worker_is_gone_is_published_a_few_at_once_and_then_by_the_sweeps(waiting: Waiting) -> None:
    """As ``run`` and ``wait`` do that go on with it."""
    job = waiting.job(450)
    waiting.client.republish(job)
    assert sorted(waiting.sent) == [(job, index) for index in range(PUBLISHED_AT_ONCE)]
    waiting.sweep_all()
    assert sorted(waiting.sent) == [(job, index) for index in range(450)]


def test_a_page_of_the_web_shows_a_thousand_shards_and_where_to_go_on(waiting: Waiting) -> None:
    """Whatever the job's size; it says how many there are in all."""
    job = waiting.client.get_job(waiting.job(2_300))
    first, indexes = job.to_page(), list[int]()
    assert (first["shards_in_all"], first["next"], first["rows"]["ok"]) == (2_300, 1_000, None)
    page = first
    while page["next"] is not None:
        indexes += [shard["index"] for shard in page["shards"]]
        page = job.to_page(page["next"], 10_000)
    assert indexes + [shard["index"] for shard in page["shards"]] == list(range(2_300))
    assert len(job.to_page(2_299, 5)["shards"]) == len(job.to_page(5, -1)["shards"]) == 1
    assert job.to_page(10**20)["shards"] == []
    few = waiting.client.get_job(waiting.job(3))
    assert few.to_page() == {**few.to_dict(), "shards_in_all": 3, "next": None}


def many_planned(job_id: str, count: int) -> Iterator[ShardRecord]:
    for index in range(count):
        yield ShardRecord(job=job_id, index=index, epoch=1, rows=1, task_ids=["u", "c", "p", "d"])


def test_list_shows_a_job_that_cannot_be_read_and_logs_say_what_was_dropped(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, text in {"REDIS_URL": redis_url, "PREFIX": prefix}.items():
        monkeypatch.setenv(f"BATCHPIPE_{key}", text)
    monkeypatch.setattr("batchpipe.client.job.MOST_EVENTS", 3)
    store = Store.connect(redis_url, prefix=prefix)
    jobs = [JobRecord(id=new_job_id(), epoch=1, output=f"/o/{at}") for at in range(2)]
    for job in jobs:
        store.jobs.submit(job)
    store.connection.client.hset(f"{prefix}job:{jobs[0].id}", "stage", "archived")
    for at in range(3):
        store.events.add(jobs[1].id, "deferred", number=at)
    listed = CliRunner().invoke(cli, ["list"])
    assert f"{jobs[0].id}  unreadable" in listed.stdout
    assert f"{jobs[1].id}  pending" in listed.stdout
    logs = CliRunner().invoke(cli, ["logs", jobs[1].id])
    assert "older events were dropped" in logs.stderr
    assert "number=2" in logs.stdout
    status = CliRunner().invoke(cli, ["status", jobs[1].id, "--json"])
    assert orjson.loads(status.stdout)["shards"] == []
