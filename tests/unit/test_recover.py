"""Redis forgets everything, at any moment: ``recover`` rebuilds the records, and no row is paid for twice or lost."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import AmbiguousResult, Gone, InvalidInput, Refused, Unavailable
from batchpipe.model.provider import Batch
from batchpipe.model.records import BatchError, JobRecord, ShardRecord, Stage, State
from batchpipe.pipeline.manifest import basics, note_workspace
from batchpipe.provider import Api
from batchpipe.recover import Report, recover
from batchpipe.sandbox import Sandbox
from batchpipe.storage import Folder, LineFile
from batchpipe.testing import FakeOpenAI, Pump

Rows = Callable[..., list[dict[str, object]]]


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """Two rows a shard."""
    return Pump(tmp_path, max_rows=2)


def go(pump: Pump, turns: int) -> int:
    """Deliver so many messages, moving the clock as needed. Answers how many there were."""
    for done in range(turns):
        if not pump.waiting:
            return done
        pump.advance(max(min(delivery.at for delivery in pump.waiting) - pump.at, 0.0) + 0.001)
        assert pump.step() is not None
    return turns


def forget(pump: Pump, *, messages: bool = True) -> None:
    """Redis loses everything; it is the broker, too, unless the ``messages`` are elsewhere."""
    pump.store.connection.client.flushall()
    if messages:
        pump.waiting.clear()


def again(pump: Pump, *, dry_run: bool = False) -> Report:
    return recover(pump.job_runner, dry_run=dry_run)


def codes(report: Report) -> dict[str, str]:
    return {left.job: left.code for left in report.skipped}


def once(count: int) -> Counter[str]:
    return Counter(f"r{number}" for number in range(count))


def assert_done(pump: Pump, job_id: str, rows: int) -> None:
    """Every row is ok, was paid for once, and nothing is left to do."""
    job = pump.job(job_id)
    assert (job.stage, job.closed, job.total, job.ok) == (State.SUCCEEDED, True, rows, rows)
    assert pump.outcomes(job_id) == {f"r{number}": "ok" for number in range(rows)}
    assert pump.api.billed == once(rows)
    assert pump.store.connection.client.zcard(f"{pump.store.connection.prefix}due") == 0


def manifest_of(pump: Pump, job_id: str) -> Path:
    return pump.folder / job_id / "out" / ".batchpipe" / job_id / "manifest.json"


def change_manifest(pump: Pump, job_id: str, **changes: Any) -> None:
    path = manifest_of(pump, job_id)
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **changes}))


def created(pump: Pump, rows: list[dict[str, object]], **fields: Any) -> str:
    """A job whose batches all run."""
    job_id = pump.submit(rows, **fields)
    pump.api.autofinish = False
    while not pump.job(job_id).shards or any(shard.stage != Stage.CREATED for shard in pump.shards(job_id)):
        assert go(pump, 1)
    pump.api.autofinish = True
    return job_id


# -- whatever was under way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("echo", "messages"), [(True, True), (True, False), (False, True)])
def test_a_job_is_rebuilt_after_any_of_its_turns(tmp_path: Path, chat_rows: Rows, echo: bool, messages: bool) -> None:
    """Also where the list carries no metadata, and where messages of the time before still come."""
    turns = 1
    while True:
        pump = Pump(tmp_path / str(turns), max_rows=2)
        pump.api.autofinish, pump.api.echo_metadata = True, echo
        job_id = pump.submit(chat_rows(3))
        if go(pump, turns) < turns:
            break
        ended = pump.job(job_id).closed
        forget(pump, messages=messages)
        report = again(pump)
        assert ([job.job for job in report.rebuilt], codes(report)) == (
            ([], {job_id: "finished"}) if ended else ([job_id], {})
        )
        pump.run_until_idle()
        if not ended:
            assert_done(pump, job_id, 3)
        assert (pump.api.billed, pump.api.count("create_batch")) == (once(3), 2)
        turns += 1
    assert turns > 10


@pytest.mark.parametrize("seen", [True, False], ids=["in the list at once", "in the list a little later"])
@pytest.mark.parametrize("echo", [True, False])
def test_a_call_that_was_under_way_is_adopted(pump: Pump, chat_rows: Rows, echo: bool, seen: bool) -> None:
    """Its answer is lost with the worker; the list shows it before or after recover has looked."""
    pump.api.echo_metadata = echo
    pump.api.fail_next("create_batch", AmbiguousResult("time-out"), processed=True)
    job_id = pump.submit(chat_rows(2))
    while not pump.api.batches:
        go(pump, 1)
    pump.api.hide_from_list(not seen)
    forget(pump)
    report = again(pump)
    assert report.rebuilt[0].stages == {"created" if seen else "uploaded": 1}
    pump.api.hide_from_list(False)
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    assert len(pump.api.batches) == 1


def test_a_shard_without_a_batch_is_looked_for_twice_before_it_is_sent(pump: Pump, chat_rows: Rows) -> None:
    """Somebody's call may have been under way when Redis died."""
    other = pump.submit(chat_rows(1))  # shows that the list carries metadata
    pump.run_until_idle()
    job_id = pump.submit(chat_rows(1, start=1))
    go(pump, 2)
    forget(pump)
    began, calls = pump.at, len(pump.api.calls)
    assert again(pump).rebuilt[0].stages == {"planned": 1}
    [shard] = pump.shards(job_id)
    assert (shard.intent_at, shard.calls, shard.file_id) == (pump.job(job_id).created_at, ["recovered"], None)
    pump.run_until_idle()
    methods = [call.method for call in pump.api.calls[calls:]]
    before = Counter(methods[: methods.index("create_batch")])
    # recover's own look; one while the call may be under way, which could only find its batch; two that count
    assert (before["iter_batches"], before["batch_page"]) == (1, 3)
    assert pump.api.batches["batch_0002"].created_at >= began + pump.settings.create_grace_seconds
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert pump.api.billed == once(2)
    assert other != job_id


@pytest.mark.parametrize(("mute", "stage", "verdict"), [(False, "planned", "cancel"), (True, "uploaded", "late")])
def test_a_worker_of_the_time_before_whose_call_is_answered_late_does_no_harm(
    pump: Pump, chat_rows: Rows, mute: bool, stage: str, verdict: str
) -> None:
    """It settles: what it made is adopted where the shard waits for it under the same key, else it cancels it."""
    created(pump, chat_rows(2))
    pump.api.echo_metadata = not mute
    job_id = pump.submit(chat_rows(2))
    while pump.api.count("upload") < 2:
        go(pump, 1)
    [before] = pump.shards(job_id)
    forget(pump)
    again(pump)
    assert pump.shards(job_id)[0].stage == stage
    assert pump.store.shards.settle(before, "batch_9999", token="gone", after=0.0, changes={}).verdict == verdict


def test_a_batch_that_ended_meanwhile_is_downloaded(pump: Pump, chat_rows: Rows) -> None:
    job_id = created(pump, chat_rows(3))
    for batch_id in pump.api.batches:
        pump.api.finish(batch_id)
    forget(pump)
    pump.advance(86_400)
    assert again(pump).rebuilt[0].stages == {"created": 2}
    pump.run_until_idle()
    assert_done(pump, job_id, 3)


def test_two_batches_of_the_same_rows_leave_one(pump: Pump, chat_rows: Rows) -> None:
    """The oldest that lives is kept, as create would keep it; the others are cancelled and reported."""
    job_id = created(pump, chat_rows(2))
    [first] = pump.api.batches.values()
    for _ in range(2):
        pump.advance(1)
        pump.api.create_batch(
            endpoint="/v1/chat/completions",
            completion_window="24h",
            input_file_id=first.input_file_id,
            metadata=first.metadata,
            extra={},
        )
    forget(pump)
    report = again(pump)
    assert {batch.batch_id for batch in report.cancelled} == {"batch_0002", "batch_0003"}
    assert report.orphans == []
    assert pump.shards(job_id)[0].batch_id == "batch_0001"
    pump.run_until_idle()
    assert_done(pump, job_id, 2)


def send_again(pump: Pump) -> None:
    """Until there is a second batch: its shard waits for room without a message, which the sweep grants."""
    for _ in range(500):
        if len(pump.api.batches) >= 2:
            return
        if not go(pump, 1):
            pump.advance(30)
            pump.sweep()
    raise AssertionError("no second batch")


def test_batches_of_earlier_tries_are_spent(pump: Pump, chat_rows: Rows) -> None:
    """The provider's queue was full: the first batch was refused, a second made under a new key."""
    job_id = created(pump, chat_rows(2))
    pump.api.fail("batch_0001", [BatchError(code="token_limit_exceeded", message="full")])
    send_again(pump)
    forget(pump)
    again(pump)
    [shard] = pump.shards(job_id)
    assert (shard.key, shard.batch_id, shard.spent) == (f"{job_id}:0:2", "batch_0002", ["batch_0001"])
    assert (
        pump.store.shards.place_of_batch("batch_0001") == pump.store.shards.place_of_batch("batch_0002") == (job_id, 0)
    )
    pump.run_until_idle()
    assert_done(pump, job_id, 2)


def test_a_second_try_that_was_under_way_is_looked_for(pump: Pump, chat_rows: Rows) -> None:
    """Redis died while the create call after a full queue had no answer yet."""
    job_id = created(pump, chat_rows(2))
    pump.api.fail("batch_0001", [BatchError(code="token_limit_exceeded", message="full")])
    pump.api.fail_next("create_batch", AmbiguousResult("time-out"), processed=True)
    send_again(pump)
    pump.api.hide_from_list("batch_0002")
    forget(pump)
    assert again(pump).rebuilt[0].stages == {"uploaded": 1}
    pump.api.hide_from_list(False)
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    assert len(pump.api.batches) == 2


# -- rounds --------------------------------------------------------------------------------------------------------


def test_a_second_round_is_rebuilt_after_any_of_its_turns(tmp_path: Path, chat_rows: Rows) -> None:
    """What the first round has brought is kept; only what was sent again is waited for."""
    turns, seen = 1, set[str]()
    while True:
        pump = Pump(tmp_path / str(turns), max_rows=2)
        answered = Counter[str]()

        def answer(request: Any, answered: Counter[str] = answered) -> Any:
            answered[request["custom_id"]] += 1
            return 500 if request["custom_id"] in ("r1", "r4") and answered[request["custom_id"]] == 1 else {"a": 1}

        pump.api.answer = answer
        job_id = pump.submit(chat_rows(5))
        while pump.job(job_id).round < 2:
            assert go(pump, 1)
        if go(pump, turns) < turns:
            break
        ended = pump.job(job_id).closed
        forget(pump)
        for job in again(pump).rebuilt:
            assert (job.round, job.stages.pop("collected")) == (2, 3)
            seen |= job.stages.keys()
        pump.run_until_idle()
        if not ended:
            assert_done(pump, job_id, 5)
            assert [shard.round for shard in pump.shards(job_id)] == [1, 1, 1, 2]
        assert answered == once(5) + Counter(["r1", "r4"])
        turns += 1
    assert seen == {"planned", "created"}


def test_a_manifest_of_the_first_release_is_read(pump: Pump, chat_rows: Rows) -> None:
    """It names one order file and no rounds."""
    job_id = created(pump, chat_rows(3))
    path = manifest_of(pump, job_id)
    manifest = orjson.loads(path.read_bytes())
    shards = [{name: s[name] for name in ("index", "file", "rows", "bytes", "model")} for s in manifest["shards"]]
    [order] = manifest.pop("order_files")
    path.write_bytes(orjson.dumps({**manifest, "order_file": order, "shards": shards, "from_the_future": 1}))
    forget(pump)
    again(pump)
    pump.run_until_idle()
    assert_done(pump, job_id, 3)


# -- the records ---------------------------------------------------------------------------------------------------


def test_the_records_are_as_before(pump: Pump, chat_rows: Rows) -> None:
    """What the user gave, the indexes, the lists; the epoch begins at the unix time, beyond all that was before."""
    job_id = created(pump, chat_rows(3), key="k", tags={"user": 7}, metadata={"team": "a"}, name="mine", queue="other")
    before, shards = pump.job(job_id), pump.shards(job_id)
    forget(pump)
    again(pump)
    after = pump.job(job_id)
    same = (
        *("id", "name", "tags", "metadata", "key", "queue", "input", "output", "workspace", "order_files", "round"),
        *("shards", "open", "total", "attempts", "max_rows", "created_at", "stage", "endpoint", "account"),
    )
    assert {name: getattr(after, name) for name in same} == {name: getattr(before, name) for name in same}
    assert after.epoch == int(pump.at)
    assert all(shard.epoch == after.epoch + 1 for shard in pump.shards(job_id))
    kept = ("index", "round", "file", "rows", "bytes", "model", "batch_id", "file_id", "stage", "try_")
    for old, new in zip(shards, pump.shards(job_id), strict=True):
        assert {name: getattr(new, name) for name in kept} == {name: getattr(old, name) for name in kept}
    assert pump.store.jobs.id_of_key("k") == job_id
    assert [job.id for job in pump.store.jobs.newest(state=State.RUNNING)] == [job_id]
    assert [event["event"] for event in pump.store.events.read(job_id)] == ["recovered"]


def test_what_is_known_is_left_alone(pump: Pump, chat_rows: Rows) -> None:
    """A second recover, at once or later, changes nothing."""
    job_id = created(pump, chat_rows(3))
    forget(pump)
    again(pump)
    records = pump.job(job_id), pump.shards(job_id)
    assert codes(again(pump)) == {job_id: "known"}
    assert (pump.job(job_id), pump.shards(job_id)) == records
    assert pump.store.jobs.restore(*records) == ("known", "")
    pump.run_until_idle()
    assert_done(pump, job_id, 3)


def test_a_key_that_was_taken_meanwhile_stays_with_its_new_job(pump: Pump, chat_rows: Rows) -> None:
    """The lost job runs on all the same: its batches are paid."""
    lost = created(pump, chat_rows(2), key="k")
    forget(pump)
    new = pump.submit(chat_rows(2), key="k")
    assert [job.job for job in again(pump).rebuilt] == [lost]
    assert pump.store.jobs.id_of_key("k") == new


# -- jobs that were not prepared -----------------------------------------------------------------------------------


def submitted(pump: Pump, rows: list[dict[str, object]], **fields: Any) -> JobRecord:
    """A job as ``submit`` leaves it: recorded, and noted on this host."""
    job = pump.job(pump.submit(rows, **fields))
    note_workspace(pump.settings, job, record=basics(job))
    return job


def test_a_job_that_was_not_prepared_is_submitted_again_under_its_id(pump: Pump, chat_rows: Rows) -> None:
    """Nothing of it was sent, and it is known what was asked for."""
    created(pump, chat_rows(1))  # the list shows that it carries metadata
    job = submitted(pump, chat_rows(3), key="k", name="nightly", metadata={"team": "a"})
    forget(pump)
    dry = recover(pump.job_runner, dry_run=True)
    assert [(found.job, found.round, found.stages) for found in dry.rebuilt if found.job == job.id] == [(job.id, 0, {})]
    assert job.id in [found.job for found in again(pump).rebuilt]
    assert pump.store.jobs.id_of_key("k") == job.id
    pump.run_until_idle()
    done = pump.job(job.id)
    assert (done.stage, done.ok, done.name, done.metadata) == (State.SUCCEEDED, 3, "nightly", {"team": "a"})


def test_a_job_that_has_ended_is_not_revived_when_its_output_was_taken_away(pump: Pump, chat_rows: Rows) -> None:
    """Its workspace, which lies elsewhere, shows that its results were written."""
    pump.api.answer = lambda request: 400
    job_id = pump.submit(chat_rows(2), workspace=str(pump.folder / "work" / "w"))
    pump.run_until_idle()
    note_workspace(pump.settings, pump.job(job_id))
    Folder(pump.job(job_id).output).remove("")
    forget(pump)
    pump.api.batches.clear()
    assert {left.job: left.code for left in again(pump).skipped} == {job_id: "finished"}


def test_a_job_too_old_for_the_providers_list_is_left_to_a_person(pump: Pump, chat_rows: Rows) -> None:
    """Its batches may have been there, and paid."""
    job_id = created(pump, chat_rows(2))
    forget(pump)
    pump.api.batches.clear()
    pump.advance(26 * 86_400)
    assert codes(again(pump)) == {job_id: "too_old"}


def test_a_job_that_was_prepared_on_this_host_is_not_submitted_again(pump: Pump, chat_rows: Rows) -> None:
    """Its workspace is gone, and its rows may be paid for."""
    job = submitted(pump, chat_rows(1))
    pump.step()
    Folder(job.workspace).remove("")
    Folder(job.output).remove("")
    forget(pump)
    assert codes(again(pump)) == {job.id: "not_prepared"}


def test_a_job_is_not_submitted_again_where_the_provider_may_have_something_of_it(pump: Pump, chat_rows: Rows) -> None:
    """A list without metadata or file names tells nothing."""
    created(pump, chat_rows(1))
    pump.api.echo_metadata = False
    for file in pump.api.files.values():
        file.name = ""
    job = submitted(pump, chat_rows(1))
    forget(pump)
    assert codes(again(pump))[job.id] == "maybe_sent"


def test_a_cancel_that_was_asked_for_on_this_host_is_not_forgotten(pump: Pump, chat_rows: Rows) -> None:
    """Whether the job had batches or was not prepared yet."""
    running, fresh = created(pump, chat_rows(2)), submitted(pump, chat_rows(2)).id
    for job_id in (running, fresh):
        note_workspace(pump.settings, pump.job(job_id), cancel=True)
    forget(pump)
    again(pump)
    pump.run_until_idle()
    assert [pump.job(job_id).stage for job_id in (running, fresh)] == [State.CANCELLED] * 2
    assert len(pump.api.batches) == 1


# -- what cannot be rebuilt ----------------------------------------------------------------------------------------


def test_a_job_that_was_not_prepared_is_to_be_submitted_again(pump: Pump, chat_rows: Rows) -> None:
    job_id = pump.submit(chat_rows(2))
    line = {"job": job_id, "workspace": pump.job(job_id).workspace, "output": pump.job(job_id).output}
    noted = LineFile(pump.settings.home / "workspaces.jsonl")
    noted.append(orjson.dumps(line))
    noted.append(b'{"job": "job_cut')
    forget(pump)
    report = again(pump)
    assert codes(report) == {job_id: "not_prepared"}
    assert "submit it again" in report.lost[0].why
    pump.advance(40 * 86_400)  # nobody wants to hear of it for ever
    assert again(pump).skipped == []


def test_a_workspace_that_is_gone_is_asked_for_while_the_provider_has_its_batches(pump: Pump, chat_rows: Rows) -> None:
    """ "Submit it again" would pay twice."""
    job_id = created(pump, chat_rows(3))
    manifest_of(pump, job_id).unlink()
    forget(pump)
    report = again(pump)
    assert codes(report) == {job_id: "no_workspace"}
    assert [(batch.batch_id, batch.job) for batch in report.orphans] == [
        ("batch_0002", job_id),
        ("batch_0001", job_id),
    ]


@pytest.mark.parametrize("which", ["shards", "order", "collected"])
def test_missing_files_are_named(pump: Pump, chat_rows: Rows, which: str) -> None:
    """Of the round under way its requests, of earlier rounds what they brought, of all the order."""
    pump.api.answer = lambda request: 500 if request["custom_id"] == "r0" else {"a": 1}
    job_id = pump.submit(chat_rows(2))
    while pump.job(job_id).round < 2:
        go(pump, 1)
    shards, workspace = pump.shards(job_id), manifest_of(pump, job_id).parent
    name = {
        "shards": shards[1].file,
        "order": pump.job(job_id).order_files[0],
        "collected": shards[0].collected_file or "",
    }[which]
    (workspace / name).unlink()
    forget(pump)
    report = again(pump)
    assert codes(report) == {job_id: "files_missing"}
    assert name in report.lost[0].why
    assert pump.store.connection.client.keys("*") == []


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [{"index": "x"}]},
        {"shards": []},
        {"round": 3},
        {"round": 2, "order_files": ["a", "b"]},
        {"created_at": "long ago"},
        {"order_files": []},
    ],
)
def test_a_damaged_manifest_is_said_to_be_one(pump: Pump, chat_rows: Rows, change: dict[str, Any]) -> None:
    job_id = created(pump, chat_rows(2))
    change_manifest(pump, job_id, **change)
    forget(pump)
    assert codes(again(pump)) == {job_id: "manifest_damaged"}


def test_a_manifest_that_leads_out_of_its_folder_reads_nothing_there(pump: Pump, chat_rows: Rows) -> None:
    job_id = created(pump, chat_rows(2))
    path = manifest_of(pump, job_id)
    manifest = orjson.loads(path.read_bytes())
    manifest["shards"][0]["file"] = "../../../input.jsonl"
    path.write_bytes(orjson.dumps(manifest))
    forget(pump)
    assert codes(again(pump)) == {job_id: "files_missing"}


def test_an_account_that_is_said_to_have_no_list_is_believed(tmp_path: Path, chat_rows: Rows) -> None:
    """Nobody asks it: its answer would mean nothing."""
    account = Account(api_key=SecretStr("k"), lists_batches=False)
    pump = Pump(tmp_path, accounts={"default": account}, max_rows=2)
    job_id = created(pump, chat_rows(2))
    forget(pump)
    assert codes(again(pump)) == {job_id: "cannot_list"}
    assert pump.api.count("iter_batches") == 0


def test_metadata_that_is_said_to_be_wrong_is_not_read(tmp_path: Path, chat_rows: Rows) -> None:
    """The names of the input files tell whose a batch is."""
    account = Account(api_key=SecretStr("k"), echoes_metadata=False)
    pump = Pump(tmp_path, accounts={"default": account}, max_rows=2)
    job_id = created(pump, chat_rows(2))
    pump.api.batches["batch_0001"].metadata["batchpipe_key"] = "job_other:0:1"
    forget(pump)
    assert again(pump).rebuilt[0].stages == {"created": 1}
    pump.run_until_idle()
    assert_done(pump, job_id, 2)


@pytest.mark.parametrize(
    "error",
    [
        Refused("no list here", status=405),
        Gone("no such thing", status=404),
        Unavailable("a page", code="http_404_page", status=404),
    ],
)
def test_a_provider_without_a_list_leaves_the_job_to_a_human(pump: Pump, chat_rows: Rows, error: Exception) -> None:
    job_id = created(pump, chat_rows(2))
    forget(pump)
    pump.api.fail_next("iter_batches", error)
    assert codes(again(pump)) == {job_id: "cannot_list"}
    assert pump.store.connection.client.keys("*") == []


def test_a_provider_that_is_down_is_asked_again_later(pump: Pump, chat_rows: Rows) -> None:
    job_id = created(pump, chat_rows(2))
    forget(pump)
    pump.api.fail_next("iter_batches", Unavailable("HTTP 503", status=503))
    assert codes(again(pump)) == {job_id: "account_unread"}
    assert [job.job for job in again(pump).rebuilt] == [job_id]


def test_batches_without_any_mark_leave_the_job_to_a_human(pump: Pump, chat_rows: Rows) -> None:
    """No metadata and no list of files: whose batches they are cannot be known."""
    pump.api.echo_metadata = False
    job_id = created(pump, chat_rows(2))
    forget(pump)
    pump.api.fail_next("iter_files", Refused("no list here", status=405))
    assert codes(again(pump)) == {job_id: "cannot_match"}


def test_a_missing_key_is_reported_and_stops_only_its_own_jobs(tmp_path: Path, chat_rows: Rows) -> None:
    """The other accounts are looked into all the same."""
    pump = Pump(tmp_path, accounts={"default": Account(api_key=SecretStr("k")), "team": Account()}, max_rows=2)
    jobs = {created(pump, chat_rows(2)): account for account in ("default", "gone")}
    for job_id, account in jobs.items():
        change_manifest(pump, job_id, account=account)
    forget(pump)
    report = again(pump)
    assert [jobs[job.job] for job in report.rebuilt] == ["default"]
    assert [(jobs[left.job], left.code) for left in report.lost] == [("gone", "no_account")]
    assert [(unread.account, unread.code) for unread in report.unread] == [("team", "no_api_key")]


def test_an_output_that_is_another_jobs_now_is_left_to_it(pump: Pump, chat_rows: Rows) -> None:
    """As when the user gave the lost job up, moved its job.json away and started over."""
    output = str(pump.folder / "shared")
    lost = created(pump, chat_rows(2), output=output)
    forget(pump)
    (pump.folder / "shared" / "job.json").unlink()
    new = pump.submit(chat_rows(2), output=output)
    assert codes(again(pump)) == {lost: "output_in_use"}
    while (new_state := pump.job(new).stage) in (State.PENDING, State.PREPARING):
        go(pump, 1)
    assert new_state == State.RUNNING
    assert codes(again(pump)) == {lost: "output_taken", new: "known"}


def test_places_outside_the_allowed_roots_are_not_used(pump: Pump, chat_rows: Rows) -> None:
    """A manifest is a file like any other: it must not lead anywhere."""
    job_id = created(pump, chat_rows(2))
    forget(pump)
    pump.job_runner.settings = pump.settings.model_copy(update={"allowed_roots": ("/nowhere",)})
    assert codes(again(pump)) == {job_id: "not_allowed"}


# -- where workspaces are found ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "{job}", "{job}/out", "{job}/out/.batchpipe", "{job}/out/.batchpipe/{job}"])
def test_workspaces_are_found_in_folders(pump: Pump, chat_rows: Rows, folder: str) -> None:
    """An output, a folder of outputs, a folder of workspaces, or the workspace itself, without the list at home."""
    job_id = created(pump, chat_rows(2), output=str(pump.folder / "{job}" / "out"))
    Folder(str(pump.settings.home)).remove("")
    forget(pump)
    place = str(pump.folder / folder.format(job=job_id))
    report = recover(pump.job_runner, [place], dry_run=True)
    assert [job.job for job in report.rebuilt] == ([job_id] if folder != "" else [])


def test_a_place_with_outputs_of_many_jobs_is_looked_through(pump: Pump, chat_rows: Rows) -> None:
    """And other people's manifests there are left alone."""
    jobs = {f"job_{name * 19}": pump.folder / "jobs" / name for name in ("a", "b")}
    for job_id, output in jobs.items():
        workspace = str(output / ".batchpipe" / job_id)
        created(pump, chat_rows(2), id=job_id, output=str(output), workspace=workspace)
    (pump.folder / "jobs" / "site").mkdir()
    for name, text in {"site/manifest.json": '{"id": "app"}', "manifest.json": "[1]", "c": ""}.items():
        (pump.folder / "jobs" / name).write_text(text)
    Folder(str(pump.settings.home)).remove("")
    forget(pump)
    report = recover(pump.job_runner, [str(pump.folder / "jobs")] * 2)
    assert {job.job for job in report.rebuilt} == set(jobs)
    assert report.skipped == []


def test_the_workspace_setting_is_looked_through(tmp_path: Path, chat_rows: Rows) -> None:
    pump = Pump(tmp_path, workspace="memory://recovering", max_rows=2)
    job_id = "job_" + "w" * 19
    created(pump, chat_rows(3), id=job_id, workspace=f"memory://recovering/{job_id}")
    Folder(str(pump.settings.home)).remove("")
    forget(pump)
    assert [job.job for job in again(pump).rebuilt] == [job_id]
    pump.run_until_idle()
    assert_done(pump, job_id, 3)


def test_an_output_that_was_moved_is_used_where_it_is_now(pump: Pump, chat_rows: Rows) -> None:
    """Brought from another machine, say."""
    job_id = created(pump, chat_rows(3), output=str(pump.folder / "before"))
    workspace = Path(pump.job(job_id).workspace)
    forget(pump)
    target = pump.folder / "after" / ".batchpipe" / job_id
    target.parent.mkdir(parents=True)
    workspace.rename(target)
    path = target / "manifest.json"
    stated = {"workspace": str(pump.folder / "before" / ".batchpipe" / job_id)}
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **stated}))
    report = recover(pump.job_runner, [str(pump.folder / "after")])
    assert [job.output for job in report.rebuilt] == [str(pump.folder / "after")]
    pump.run_until_idle()
    assert_done(pump, job_id, 3)


def test_a_folder_that_is_not_there_is_refused(pump: Pump) -> None:
    with pytest.raises(InvalidInput, match="no such folder"):
        recover(pump.job_runner, [str(pump.folder / "nowhere")])


# -- the dry run ---------------------------------------------------------------------------------------------------


def reading(pump: Pump, **options: Any) -> Report:
    """A dry run, of which it is asserted that it has changed nothing anywhere."""
    client = pump.store.connection.client

    def everything() -> dict[Any, Any]:  # the dump of a large hash depends on what was read of it
        keys = client.keys("*")
        return {key: client.hgetall(key) if client.type(key) == "hash" else client.dump(key) for key in keys}

    records = everything()
    calls, published = len(pump.api.calls), len(pump.published)
    report = again(pump, dry_run=True)
    assert everything() == records
    assert {call.method for call in pump.api.calls[calls:]} <= {"iter_batches", "iter_files", "retrieve"}
    assert len(pump.published) == published
    return report


def test_a_dry_run_tells_what_would_be_rebuilt(pump: Pump, chat_rows: Rows) -> None:
    job_id = created(pump, chat_rows(3))
    forget(pump)
    report = reading(pump)
    assert [(job.job, job.stages) for job in report.rebuilt] == [(job_id, {"created": 2})]
    assert (report.skipped, report.orphans, report.gone, report.orphan_files) == ([], [], [], [])


def test_a_dry_run_finds_nothing_wrong_where_nothing_is(pump: Pump, chat_rows: Rows) -> None:
    """At no moment of a job's life: what is under way is no orphan and no orphan."""
    job_id = pump.submit(chat_rows(5))
    while go(pump, 1):
        report = reading(pump)
        assert (report.rebuilt, report.orphans, report.gone, report.orphan_files) == ([], [], [], [])
        assert set(codes(report).values()) <= {"known"}
    assert_done(pump, job_id, 5)


def test_a_dry_run_tells_of_orphans_and_leaves_them_alone(pump: Pump, chat_rows: Rows) -> None:
    """Batches with our tag of which no record knows: of unknown jobs, and second ones of known shards."""
    job_id = created(pump, chat_rows(2))
    known = pump.api.batches["batch_0001"]

    def make(key: str, status: str = "in_progress") -> Batch:
        made: Batch = pump.api.create_batch(
            endpoint="/v1/chat/completions",
            completion_window="24h",
            input_file_id=known.input_file_id,
            metadata={"batchpipe_key": key} if key else {},
            extra={},
        )
        pump.api.batches[made.id].status = status
        return made

    make("job_unknown:3:1")
    make("job_unknown:4:1", "completed")
    make(f"{job_id}:0:1")
    make(f"{job_id}:7:1")
    make("nonsense")
    pump.api.files[known.input_file_id].name = "theirs.jsonl"
    make("")
    report = reading(pump)
    assert [(orphan.batch_id, orphan.job, orphan.shard) for orphan in report.orphans] == [
        ("batch_0005", job_id, 7),
        ("batch_0004", job_id, 0),
        ("batch_0002", "job_unknown", 3),
    ]
    report = again(pump)
    assert [batch.batch_id for batch in report.cancelled] == ["batch_0004"]
    assert {orphan.batch_id for orphan in report.orphans} == {"batch_0005", "batch_0002"}


def test_a_dry_run_tells_of_records_whose_batch_is_gone(pump: Pump, chat_rows: Rows) -> None:
    """Not in the list is not enough: the provider must say so of the batch itself."""
    job_id = created(pump, chat_rows(3))
    pump.api.hide_from_list("batch_0002")
    del pump.api.batches["batch_0001"]
    report = reading(pump)
    assert [(gone.batch_id, gone.job, gone.shard) for gone in report.gone] == [("batch_0001", job_id, 0)]


def test_a_dry_run_tells_of_orphan_files(pump: Pump, chat_rows: Rows) -> None:
    """Inputs of ended or unknown jobs that no batch has used; not those of a job that may be rebuilt."""
    job_id = created(pump, chat_rows(2))
    names = (f"batchpipe-{job_id}-0-1.jsonl", "batchpipe-job_unknown-0-1.jsonl", "theirs.jsonl")
    files = {name: pump.api._add(name, b"{}\n", "batch") for name in names}
    assert [file.file_id for file in reading(pump).orphan_files] == [files[names[1]]]
    pump.store.connection.client.flushall()
    assert [file.file_id for file in reading(pump).orphan_files] == [files[names[1]]]
    pump.waiting.clear()
    again(pump)
    pump.run_until_idle()
    assert_done(pump, job_id, 2)
    left = files[names[0]] in pump.api.files  # unless the job has tidied up behind itself
    assert {file.file_id for file in reading(pump).orphan_files} == {
        files[names[1]],
        *([files[names[0]]] if left else []),
    }


def test_a_list_of_files_that_is_refused_costs_only_the_orphans(pump: Pump, chat_rows: Rows) -> None:
    job_id = created(pump, chat_rows(2))
    forget(pump)
    pump.api.fail_next("iter_files", Refused("no list here", status=405), times=2)
    report = reading(pump)
    assert ([job.job for job in report.rebuilt], report.orphan_files) == ([job_id], [])


def test_a_job_of_a_sandbox_that_is_gone_is_no_loss(pump: Pump, chat_rows: Rows) -> None:
    """Its server ended with its run; nothing was paid for."""
    job_id = created(pump, chat_rows(2))
    change_manifest(pump, job_id, account="sandbox")
    forget(pump)
    report = again(pump)
    assert (codes(report), report.lost) == ({job_id: "sandbox_gone"}, [])


def test_uploads_that_no_batch_used_are_known_to_the_shard_again(pump: Pump, chat_rows: Rows) -> None:
    """So that they are deleted when the job ends, as those of other jobs are."""
    job_id = created(pump, chat_rows(2))
    spare = pump.api._add(f"batchpipe-{job_id}-0-1.jsonl", b"", "batch")
    forget(pump)
    again(pump)
    shard: ShardRecord = pump.shards(job_id)[0]
    assert (shard.unused_files, shard.file_id) == ([spare], pump.api.batches["batch_0001"].input_file_id)


# -- the list of files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [False, True], ids=["fake", "sdk"])
def test_files_are_listed_newest_first_with_their_names(real: bool, sandbox: Sandbox) -> None:
    """On the fake provider as over the real SDK."""
    api: Any = Api(Account(api_key=SecretStr("sk-test"), base_url=sandbox.base_url)) if real else FakeOpenAI()
    ids = [api.upload(io.BytesIO(b"{}" * size), f"file-{size}.jsonl", lambda: None) for size in (1, 2, 3)]
    files = list(api.iter_files(0.0))
    assert [(file.id, file.name, file.bytes) for file in files] == [
        (ids[size - 1], f"file-{size}.jsonl", 2 * size) for size in (3, 2, 1)
    ]
    assert all(file.created_at > 1.6e9 for file in files)
    api.delete_file(ids[0])
    assert [file.id for file in api.iter_files(0.0)] == [ids[2], ids[1]]
