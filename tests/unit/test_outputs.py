"""Whose an output is: what was paid for stays, whoever uses the folder next and by whatever name; so does what is
others'.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from batchpipe.client.job import Job
from batchpipe.errors import InvalidInput, OutputInUse, StorageTrouble, TransientError
from batchpipe.model.records import JobRecord, Problem, State
from batchpipe.model.views import job_view
from batchpipe.pipeline.manifest import (
    Owner,
    check_apart,
    check_no_workspace,
    check_output_here,
    read_owner,
    results_place,
)
from batchpipe.storage import Folder, place_name
from batchpipe.store import Connection, Store
from batchpipe.testing import FakeOpenAI, Pump, Vanished
from tests.redis_server import new_redis

Rows = Callable[..., list[dict[str, object]]]

OURS = {"id": "job_x", "state": "succeeded", "account": "default", "rows": {}}
OURS |= {"output": "/o/", "output_file": "/o/output.jsonl"}


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    return Pump(tmp_path, max_rows=2)


def rows_of(pump: Pump, job_id: str) -> list[str]:
    """What `results JOB` tells, by the code behind it."""
    return [row.custom_id for row in Job(pump.job(job_id), cast(Any, pump)).results()]


def submit_raw(pump: Pump, rows: list[dict[str, object]], output: str, **fields: Any) -> str:
    """As from a host that does not see the place as the worker does: it claims no name."""
    return pump.submit(rows, output=output, owns=[f"unseen:{output}"], **fields)


def error_of(pump: Pump, job_id: str) -> Problem:
    problem = pump.job(job_id).error
    assert problem is not None
    return problem


def owner_of(folder: str | Path) -> Owner:
    owner = read_owner(Folder(str(folder)))
    assert owner is not None
    return owner


def kept(*paths: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in paths}


# -- 1: nothing without shards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1])
def test_a_job_cancelled_before_it_has_shards_touches_no_results(
    pump: Pump, chat_rows: Rows, tmp_path: Path, turns: int
) -> None:
    """Neither those of an earlier job nor a stranger's, and it is not asked what lies there."""
    place = tmp_path / "shared"
    first = pump.submit(chat_rows(3), output=str(place))
    pump.run_until_idle()
    before = kept(*(place / name for name in ("output.jsonl", "errors.jsonl", "job.json")))
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "output.jsonl").write_text("mine\n")
    for output in (place, strange):
        job_id = submit_raw(pump, chat_rows(2, start=5), str(output))
        pump.cancel(job_id)
        if turns:  # prepared under the cancel flag; else its messages are lost and the sweep brings it to its end
            pump.step()
        pump.run_until_idle()
        job = pump.job(job_id)
        assert (job.state, job.total, job_view(job)["output_file"]) == (State.CANCELLED, 0, None)
        assert rows_of(pump, job_id) == []
    assert kept(*before) == before
    assert rows_of(pump, first) == ["r0", "r1", "r2"]
    assert sorted(path.name for path in strange.iterdir()) == ["output.jsonl"]


def test_a_cancel_while_earlier_results_are_moved_leaves_them_together(chat_rows: Rows, tmp_path: Path) -> None:
    """Its worker dies in the middle; nobody prepares the job after that, but the move is ended."""
    pump = Pump(tmp_path, max_rows=2, store=Store(DyingConnection(new_redis())))
    place = str(tmp_path / "shared")
    first = pump.submit(chat_rows(3), output=place)
    pump.run_until_idle()
    assert isinstance(pump.store.connection, DyingConnection)
    pump.store.connection.dies_after = "set_results"
    second = pump.submit(chat_rows(1), output=place)
    while not pump.vanished:
        pump.step()
    assert sorted(Folder(place).names()) == [".batchpipe", "errors.jsonl", "job.json", "output.jsonl"]
    assert rows_of(pump, first) == ["r0", "r1", "r2"]
    pump.cancel(second)
    pump.run_until_idle()
    assert pump.job(second).state is State.CANCELLED
    assert rows_of(pump, first) == ["r0", "r1", "r2"]
    assert job_view(pump.job(first))["output_file"] == f"{place}/.batchpipe/{first}/output.jsonl"
    assert Folder(f"{place}/.batchpipe/{first}").exists("job.json")
    assert Folder(place).names() == [".batchpipe", "job.json"]
    assert owner_of(place).id == second


class DyingConnection(Connection):
    """Its worker dies after one script, once."""

    dies_after = ""

    def run(self, name: str, keys: Any, *args: Any) -> list[Any]:
        answer = super().run(name, keys, *args)
        if name == self.dies_after:
            self.dies_after = ""
            raise Vanished
        return answer


# -- 2: an output is its job's until that is closed ----------------------------------------------------------------


def test_an_ended_job_keeps_its_output_until_it_has_told(chat_rows: Rows, tmp_path: Path) -> None:
    """A receiver fails for minutes: the next job is refused; then it may come, and later telling moves nothing."""
    notify_sites: list[bool] = []

    def notify(job: JobRecord) -> None:
        if not notify_sites:
            raise TransientError("the receiver is down")

    pump = Pump(tmp_path, max_rows=2, notify=notify)
    place = str(tmp_path / "shared")
    first = pump.submit(chat_rows(3), output=place)
    with pytest.raises(TimeoutError):
        pump.run_until_idle(300)
    assert (pump.job(first).state, pump.job(first).closed) == (State.SUCCEEDED, False)
    with pytest.raises(OutputInUse, match=rf"{first}, which has ended, but .*batchpipe wait {first}"):
        pump.submit(chat_rows(1), output=place)
    second = submit_raw(pump, chat_rows(1), place)  # unseen at its submit, it is found when it is prepared
    with pytest.raises(TimeoutError):
        pump.run_until_idle(300)
    problem = error_of(pump, second)
    assert problem.code == "output_in_use"
    notify_sites.append(True)
    pump.run_until_idle()
    third = pump.submit(chat_rows(1, start=9), output=place)
    pump.run_until_idle()
    assert (rows_of(pump, first), rows_of(pump, third)) == (["r0", "r1", "r2"], ["r9"])


def test_late_telling_never_takes_job_json_back(pump: Pump, chat_rows: Rows, tmp_path: Path) -> None:
    """Of a job of another Redis, for instance, whose output was used since."""
    place = tmp_path / "shared"
    notified: list[str] = []

    def replaced(job: JobRecord) -> None:
        if not notified:
            notified.append(job.id)
            (place / "job.json").write_bytes(orjson.dumps({**OURS, "id": "job_newer"}))
            (place / "output.jsonl").write_bytes(b"the newer one's\n")
            raise TransientError("once more")

    pump = Pump(tmp_path / "one", notify=replaced)
    pump.submit(chat_rows(2), output=str(place))
    pump.run_until_idle()
    assert orjson.loads((place / "job.json").read_bytes())["id"] == "job_newer"
    assert (place / "output.jsonl").read_bytes() == b"the newer one's\n"


# -- 3: one folder under several names -----------------------------------------------------------------------------


def test_all_ways_of_writing_a_place_have_one_name(tmp_path: Path) -> None:
    """Local ones by where they really lead, also before they are there; URLs by their parts."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    base = os.path.realpath(tmp_path)
    for path in ("real/out", "real/out/", "real//out", "real/x/../out", "link/out"):
        assert place_name(f"{tmp_path}/{path}") == f"{base}/real/out"
        assert place_name(f"file://{tmp_path}/{path}") == f"{base}/real/out"
    for url in ("s3://b/a/c", "s3a://b/a/c/", "S3://b//a/./c", "simplecache::s3://b/a/x/../c"):
        assert place_name(url) == "s3://b/a/c"
    assert place_name("memory://a/b") == place_name("memory:///a/b/")
    assert place_name("gs://b/a") != place_name("s3://b/a")


def test_a_file_system_that_folds_case_has_one_name_for_all_cases(tmp_path: Path) -> None:
    """Found by looking: an entry that is there under its name in the other case, too."""
    (tmp_path / "Disk" / "Out").mkdir(parents=True)
    disk = os.path.realpath(tmp_path / "Disk")

    def same(one: str, other: str) -> bool:
        return one.startswith(f"{disk}/") and one.lower() == other.lower()

    names = {place_name(f"{disk}/{path}", same=same) for path in ("Out", "Out/New", "Other/New")}
    assert names == {f"{disk}/out", f"{disk}/out/new", f"{disk}/other/new"}
    assert place_name(f"{disk}/Out") == f"{disk}/Out"  # this one does not


@pytest.mark.parametrize("name", ["link", "sub/../real", "real/", "file"])
def test_one_folder_under_two_names_is_one_jobs(pump: Pump, chat_rows: Rows, tmp_path: Path, name: str) -> None:
    """At the submit; and where only the worker sees it, when it is prepared. Afterwards both have their rows."""
    (tmp_path / "real").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    other = f"file://{tmp_path}/link" if name == "file" else f"{tmp_path}/{name}"
    first = pump.submit(chat_rows(2), output=str(tmp_path / "real"))
    with pytest.raises(OutputInUse, match=first):
        pump.submit(chat_rows(1), output=other)
    second = submit_raw(pump, chat_rows(1, start=5), other)
    pump.run_until_idle()
    problem = error_of(pump, second)
    assert problem.code == "output_in_use"
    assert first in problem.message
    assert pump.api.count("create_batch") == 1
    third = submit_raw(pump, chat_rows(1, start=7), other)
    pump.run_until_idle()
    assert (rows_of(pump, first), rows_of(pump, third)) == (["r0", "r1"], ["r7"])


def test_a_link_that_was_set_to_anothers_folder_costs_nobody_his_rows(chat_rows: Rows, tmp_path: Path) -> None:
    """It is looked at again when results are put in place: they go to a place of their own, and the record says so."""
    pump = Pump(tmp_path, workspace=str(tmp_path / "ws"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = pump.submit(chat_rows(2), output=str(tmp_path / "a"))
    pump.run_until_idle()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "b")
    second = pump.submit(chat_rows(1, start=5), output=str(link), workspace=str(tmp_path / "ws" / "second"))
    while not pump.api.batches or len(pump.api.batches) < 2:
        pump.advance(1)
        pump.step()
    link.unlink()
    link.symlink_to(tmp_path / "a")
    pump.run_until_idle()
    assert (rows_of(pump, first), rows_of(pump, second)) == (["r0", "r1"], ["r5"])
    place = f"{tmp_path}/ws/second/results"
    assert results_place(pump.job(second)).url == place
    assert job_view(pump.job(second))["output_file"] == f"{place}/output.jsonl"
    assert Folder(place).exists("job.json")
    assert owner_of(tmp_path / "a").id == first
    assert any(event["event"] == "results_elsewhere" for event in pump.store.events.read(second))


def test_two_redis_with_one_folder_cost_nobody_his_rows(chat_rows: Rows, tmp_path: Path) -> None:
    """The second is refused while the first has not ended; the first finds its files moved when the second is done."""
    pumps = [Pump(tmp_path / name, api=FakeOpenAI(autofinish=True)) for name in ("one", "two")]
    place = str(tmp_path / "shared")
    first = pumps[0].submit(chat_rows(2), output=place)
    pumps[0].step()
    refused = pumps[1].submit(chat_rows(1), output=place)
    pumps[1].run_until_idle()
    problem = error_of(pumps[1], refused)
    assert "is unknown here" in problem.message
    pumps[0].run_until_idle()
    second = pumps[1].submit(chat_rows(1, start=5), output=place)
    pumps[1].run_until_idle()
    assert (rows_of(pumps[0], first), rows_of(pumps[1], second)) == (["r0", "r1"], ["r5"])


# -- 4: the record says where --------------------------------------------------------------------------------------


def test_a_job_names_its_own_files_after_another_has_used_its_output(
    pump: Pump, chat_rows: Rows, tmp_path: Path
) -> None:
    """In `status --json`, in `Job.result()`, and by every name of the folder."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    jobs = []
    for start, name in enumerate(("real", "link", "real")):
        jobs.append(pump.submit(chat_rows(start + 1, start=10 * start), output=str(tmp_path / name)))
        pump.run_until_idle()
    for number, job_id in enumerate(jobs):
        result = Job(pump.job(job_id), cast(Any, pump)).result()
        assert result.output_file is not None
        assert result.error_file is not None
        lines = [orjson.loads(line)["custom_id"] for line in Path(result.output_file).read_bytes().splitlines()]
        assert lines == [f"r{10 * number + row}" for row in range(number + 1)]
        assert result.ok == number + 1
        assert Path(result.error_file).read_bytes() == b""
        assert rows_of(pump, job_id) == lines


# -- 5: whose job.json is ------------------------------------------------------------------------------------------


def test_a_job_json_of_any_size_names_its_owner(tmp_path: Path) -> None:
    """60,000 shards are 17 MB."""
    shards = [{"index": index, "batch_id": "batch_" + "x" * 250} for index in range(70_000)]
    text = orjson.dumps({**OURS, "shards": shards}, option=orjson.OPT_INDENT_2)
    assert len(text) > 1 << 24
    (tmp_path / "job.json").write_bytes(text)
    owner = owner_of(tmp_path)
    assert (owner.id, owner.ended, owner.has_files) == ("job_x", True, True)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"id": "job_x"}',
        orjson.dumps({**OURS, "id": "../x"}),
        orjson.dumps({**OURS, "state": "mine"}),
        orjson.dumps({**OURS, "more": "x" * (1 << 24)}),
        orjson.dumps({**OURS, "shards": [1, 2]}, option=orjson.OPT_INDENT_2)[:60],
    ],
)
def test_a_job_json_that_cannot_be_understood_is_not_nobodys(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "job.json").write_bytes(text)
    with pytest.raises(InvalidInput, match=r"job\.json is there and batchpipe did not write it") as caught:
        read_owner(Folder(str(tmp_path)))
    assert caught.value.code == "output_foreign"


def test_trouble_with_reading_job_json_is_not_taken_for_nobodys(
    pump: Pump, chat_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that is away for a moment must not cost the results that lie there."""
    place = str(tmp_path / "shared")
    first = pump.submit(chat_rows(2), output=place)
    pump.run_until_idle()
    away = [3]
    real = Folder.reader

    def reader(folder: Folder, name: str) -> Any:
        if name == "job.json" and away[0]:
            away[0] -= 1
            raise StorageTrouble("the storage is away")
        return real(folder, name)

    monkeypatch.setattr(Folder, "reader", reader)
    second = pump.submit(chat_rows(1, start=5), output=place)
    pump.run_until_idle()
    assert away == [0]
    assert (rows_of(pump, first), rows_of(pump, second)) == (["r0", "r1"], ["r5"])


def test_a_job_whose_results_went_elsewhere_has_none_beside_its_job_json(tmp_path: Path) -> None:
    """What lies there by such a name is somebody else's, and not moved aside as its own."""
    elsewhere = {**OURS, "output_file": "/ws/job_x/results/output.jsonl"}
    (tmp_path / "job.json").write_bytes(orjson.dumps(elsewhere))
    assert not owner_of(tmp_path).has_files
    check_output_here(str(tmp_path))
    (tmp_path / "errors.jsonl").write_text("theirs")
    with pytest.raises(InvalidInput, match="errors"):
        check_output_here(str(tmp_path))


# -- what others wrote ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["output.jsonl", "errors.jsonl", "job.json"])
@pytest.mark.parametrize("base", ["local", "memory"])
def test_files_of_others_are_refused_before_anything_is_sent(
    pump: Pump, chat_rows: Rows, tmp_path: Path, name: str, base: str
) -> None:
    """In one line that names the file: at the submit where it is local, and when the job is prepared."""
    place = str(tmp_path / "theirs") if base == "local" else f"memory://{tmp_path}/theirs"
    with Folder(place).writer(name) as file:
        file.write(b'{"mine": 1}\n')
    if base == "local":
        with pytest.raises(InvalidInput, match=f"{name} is there and batchpipe did not write it"):
            check_output_here(place)
    job_id = pump.submit(chat_rows(1), output=place)
    pump.run_until_idle()
    problem = error_of(pump, job_id)
    assert problem.code == "output_foreign"
    assert "\n" not in problem.message
    assert pump.api.calls == []
    assert [found for found in Folder(place).names() if not found.startswith(".")] == [name]
    with Folder(place).reader(name) as found:
        assert found.read() == b'{"mine": 1}\n'


@pytest.mark.parametrize("name", ["output.jsonl", "errors.jsonl", "job.json"])
def test_a_file_that_others_write_while_a_job_runs_is_left_alone(
    pump: Pump, chat_rows: Rows, tmp_path: Path, name: str
) -> None:
    """The results go to a place of the job's own."""
    place = tmp_path / "out"
    job_id = pump.submit(chat_rows(2), output=str(place))
    pump.step()
    (place / name).write_bytes(b"theirs\n")
    pump.run_until_idle()
    assert (place / name).read_bytes() == b"theirs\n"
    assert rows_of(pump, job_id) == ["r0", "r1"]
    assert results_place(pump.job(job_id)).url == f"{pump.job(job_id).workspace}/results"


def test_a_damaged_job_json_does_not_hide_results(pump: Pump, chat_rows: Rows, tmp_path: Path) -> None:
    """It names nobody else."""
    job_id = pump.submit(chat_rows(2), output=str(tmp_path / "out"))
    pump.run_until_idle()
    (tmp_path / "out" / "job.json").write_bytes(b"{")
    assert rows_of(pump, job_id) == ["r0", "r1"]


def test_results_never_overwrite_the_input(pump: Pump, chat_rows: Rows, tmp_path: Path) -> None:
    """By whatever names the two are given."""
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for source in (f"{tmp_path}/link/output.jsonl", f"file://{tmp_path}/out/../out/errors.jsonl"):
        with pytest.raises(InvalidInput, match="would be overwritten"):
            check_apart(source, str(tmp_path / "out"))
    with pytest.raises(InvalidInput, match="would be overwritten"):
        check_apart("s3a://bucket/x//output.jsonl", "s3://bucket/x/")
    first = pump.submit(chat_rows(2), output=str(tmp_path / "out"))
    pump.run_until_idle()
    second = pump.submit(chat_rows(1), input=f"{tmp_path}/link/output.jsonl", output=str(tmp_path / "out"))
    pump.run_until_idle()
    problem = error_of(pump, second)
    assert "would be overwritten" in problem.message
    assert rows_of(pump, first) == ["r0", "r1"]


def test_working_files_of_another_job_are_no_output(tmp_path: Path) -> None:
    """Neither below its output nor in the common folder; its own are."""
    other, own = "job_" + "a" * 19, "job_" + "b" * 19
    for place in (f"{tmp_path}/out/.batchpipe/{other}", f"{tmp_path}/out/x/../.batchpipe/{other}/shards/x"):
        with pytest.raises(InvalidInput, match=f"working files of job {other}"):
            check_no_workspace(place, own, None)
    for below in ("", "/shards", "/collected/x"):
        with pytest.raises(InvalidInput, match=f"working files of job {other}"):
            check_no_workspace(f"s3a://b/ws/{other}{below}", own, "s3://b/ws/")
    check_no_workspace(f"s3://b/ws/{own}", own, "s3://b/ws/")
    check_no_workspace(f"s3://b/ws/{other}/retry-x", own, "s3://b/ws/")
    check_no_workspace(f"{tmp_path}/{other}/out", own, None)
