"""The Python API, from a script of its own; a site's own Celery app and worker do the work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.user_machine import Machine, until

#: What the tests below look at; it runs once and prints one JSON document.
SCRIPT = """
import json, sys, time
from pathlib import Path

import batchpipe
import pydantic
import shop

CHAT = "/v1/chat/completions"

def request(custom_id, model="gpt-4o-mini"):
    body = {"model": model, "messages": [{"role": "user", "content": "Tell me about " + custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}

class Body(pydantic.BaseModel):
    model: str
    messages: list[dict]
    user: str | None = None

class Request(pydantic.BaseModel):
    custom_id: str
    method: str = "POST"
    url: str = CHAT
    body: Body

told = {}
drawn = []

def rows():
    for number in range(5):
        drawn.append(number)
        yield request(f"r{number}")

# From an iterator of dicts; two rows fail
here = Path.cwd()
job = batchpipe.submit(
    rows(), output=here / "dicts", name="dicts", queue="shop", tags={"user": 7}, metadata={"story": "dicts"},
    extra={"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, key="dicts",
    on_done=shop.done.s("first"),
)
told["id"], told["drawn"] = job.id, list(drawn)
again = batchpipe.submit([], key="dicts")
told["same_key"] = again.id
try:
    told["too_early"] = str(job.result())
except batchpipe.PermanentError as error:
    told["too_early"] = error.code
told["wait_is_self"] = job.wait(timeout=30) is job
told["state"], told["is_state"] = job.state, isinstance(job.state, batchpipe.State)
told["refreshed"] = job.refresh().state
told["results"] = [[row.index, row.custom_id, row.state] for row in job.results()]
told["response_of_ok"] = next(iter(job.results())).response["body"]["object"]
told["errors"] = [[row.custom_id, row.state, row.attempts, row.response["status_code"]] for row in job.errors()]
told["lazy"] = type(job.results()).__name__
result = job.result()
told["result"] = result.to_dict()
told["result_round_trips"] = [
    batchpipe.BatchResult.from_dict(result.to_dict()) == result,
    batchpipe.BatchResult.from_json(result.to_json()) == result,
]
told["logs"] = [event["event"] for event in job.logs()]
told["log_keys"] = all({"id", "at", "event"} <= set(event) for event in job.logs())
told["metrics"] = job.metrics()
told["dict"] = job.to_dict()
told["json_is_dict"] = json.loads(job.to_json()) == job.to_dict()
told["from_dict"] = batchpipe.Job.from_dict(job.to_dict()).id
told["from_json"] = batchpipe.Job.from_json(job.to_json()).state
told["got"] = batchpipe.get_job(job.id).tags
told["name"] = job.name

# From pydantic models; with a task as on_done; without an output
models = batchpipe.submit(
    (Request(custom_id=f"p{n}", body=Body(model="gpt-4o", messages=[{"role": "user", "content": str(n)}]))
     for n in range(3)),
    queue="shop", on_done=shop.done,
).wait(30)
told["models"] = [models.state, [row.custom_id for row in models.results()], models.to_dict()["output"]]
told["models_id"] = models.id

# From a path
Path("paths.jsonl").write_text("".join(json.dumps(request(f"f{n}")) + "\\n" for n in range(3)))
path = batchpipe.submit(Path("paths.jsonl"), output="paths", queue="shop")
told["path"] = [path.wait(30).state, [row.custom_id for row in path.results()]]

# Cancel
slow = batchpipe.submit([request("s")], output="slow", queue="shop", metadata={"story": "stuck"})
try:
    slow.wait(timeout=0.2)
except TimeoutError as error:
    told["timeout"] = str(error)
told["cancelling"] = batchpipe.cancel(slow.id).state
told["cancel_again"] = slow.cancel().state
told["cancelled"] = slow.wait(30).state
told["cancel_of_ended"] = slow.cancel().state

# Lists and errors
told["list"] = [[job.id, job.state] for job in batchpipe.list_jobs()]
told["partial"] = [job.id for job in batchpipe.list_jobs(state="partial")]
told["limit"] = len(batchpipe.list_jobs(limit=1, state=batchpipe.State.SUCCEEDED))

def refused(*arguments, **options):
    try:
        batchpipe.submit(*arguments, output="refused", **options)
    except batchpipe.BatchpipeError as error:
        return [type(error).__name__, str(error)]

told["refused"] = {
    "empty": refused(iter([])),
    "nan": refused([request("a"), {**request("b"), "body": {"x": float("nan")}}]),
    "odd": refused([request("a"), object()]),
    "number": refused(7),
    "metadata": refused([request("a")], metadata={"batchpipe_job": "x"}),
    "too_many": refused([request("a")], metadata={str(n): "x" for n in range(14)}),
    "extra": refused([request("a")], extra={"input_file_id": "file-1"}),
    "on_done": refused([request("a")], on_done=3.5),
}
try:
    batchpipe.get_job("job_nothing")
except batchpipe.JobNotFound as error:
    told["unknown"] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def site(new_machine: Callable[..., Machine]) -> Machine:
    """A user's site: its own app, its own queue, its own worker."""
    machine = new_machine("site")
    shutil.copy(Path(__file__).with_name("shop.py"), machine.folder)
    machine.environment["PYTHONPATH"] = str(machine.folder)
    assert machine.sandbox is not None
    machine.sandbox.faults.add("row_fails", status=400, custom_id="^r[13]$", where={"story": "dicts"})
    machine.sandbox.faults.add("stuck", where={"story": "stuck"})
    options = ["--pool", "threads", "--concurrency", "4", "--queues", "shop", "--loglevel", "INFO"]
    machine.await_ready(machine.start_python("-m", "celery", "-A", "shop", "worker", *options))
    return machine


@pytest.fixture(scope="module")
def observed(site: Machine) -> dict[str, Any]:
    found: dict[str, Any] = site.python(SCRIPT)
    return found


def test_submit_takes_an_iterator_of_dicts(observed: dict[str, Any]) -> None:
    """It is read to its end before submit returns."""
    assert observed["drawn"] == [0, 1, 2, 3, 4]
    assert observed["dict"]["rows"] == {"total": 5, "ok": 3, "failed": 2, "missing": 0}


def test_submit_takes_pydantic_models_and_finds_an_output_by_itself(observed: dict[str, Any], site: Machine) -> None:
    state, ids, output = observed["models"]
    assert (state, ids) == ("succeeded", ["p0", "p1", "p2"])
    assert output.startswith(str(site.home))


def test_submit_takes_a_path(observed: dict[str, Any]) -> None:
    assert observed["path"] == ["succeeded", ["f0", "f1", "f2"]]


def test_submit_with_the_same_key_returns_the_first_job(observed: dict[str, Any]) -> None:
    assert observed["id"] == observed["same_key"]


def test_results_are_all_rows_in_the_order_of_the_input(observed: dict[str, Any]) -> None:
    """Ok or not."""
    states = ["ok", "failed", "ok", "failed", "ok"]
    assert [[n, f"r{n}", state] for n, state in enumerate(states)] == observed["results"]
    assert observed["response_of_ok"] == "chat.completion"
    assert observed["lazy"] == "generator"


def test_errors_are_the_rows_that_are_not_ok(observed: dict[str, Any]) -> None:
    assert observed["errors"] == [["r1", "failed", 1, 400], ["r3", "failed", 1, 400]]


def test_result_is_refused_while_the_job_runs(observed: dict[str, Any]) -> None:
    assert observed["too_early"] == "not_ended"


def test_wait_and_refresh_return_the_job(observed: dict[str, Any]) -> None:
    assert observed["wait_is_self"]
    assert observed["is_state"]
    assert (observed["state"], observed["refreshed"]) == ("partial", "partial")


def test_batch_result_names_both_files_and_round_trips(observed: dict[str, Any], site: Machine) -> None:
    folder = site.folder / "dicts"
    files = {"output_file": str(folder / "output.jsonl"), "error_file": str(folder / "errors.jsonl")}
    assert observed["result"] == {**files, "total": 5, "ok": 3, "failed": 2, "missing": 0}
    assert observed["result_round_trips"] == [True, True]


def test_logs_are_the_events_of_the_job(observed: dict[str, Any]) -> None:
    assert {"planned", "created", "ended"} <= set(observed["logs"])
    assert observed["log_keys"]


def test_metrics_tell_rows_tokens_and_seconds(observed: dict[str, Any]) -> None:
    metrics = observed["metrics"]
    assert metrics["rows"] == {"total": 5, "ok": 3, "failed": 2, "missing": 0}
    tokens = metrics["tokens"]
    assert 0 < tokens["total_tokens"] == tokens["input_tokens"] + tokens["output_tokens"]
    assert {"prepare", "upload", "create", "wait", "download", "merge", "total"} == metrics["seconds"].keys()
    assert all(0 <= seconds <= metrics["seconds"]["total"] for seconds in metrics["seconds"].values())


def test_a_job_survives_as_dict_and_as_json(observed: dict[str, Any], site: Machine) -> None:
    """The handle can be stored and read by another process."""
    assert observed["json_is_dict"]
    assert (observed["id"], "partial") == (observed["from_dict"], observed["from_json"])
    assert observed["dict"] == site.json("status", observed["id"])


def test_tags_and_names_stay_with_us(observed: dict[str, Any], site: Machine) -> None:
    """The provider is not told the tags."""
    assert (observed["got"], observed["name"]) == ({"user": 7}, "dicts")
    [batch] = site.batches(observed["id"])
    assert batch.metadata is not None
    assert {"story", "batchpipe_job", "batchpipe_shard", "batchpipe_key"} == batch.metadata.keys()
    assert batch.output_expires_after == 3600


def test_wait_gives_up_after_its_timeout(observed: dict[str, Any]) -> None:
    assert "not ended" in observed["timeout"]


def test_cancel_may_be_called_at_any_time(observed: dict[str, Any]) -> None:
    """Twice, or when all is over."""
    assert observed["cancelling"] in ("cancelling", "cancelled")
    assert observed["cancel_again"] in ("cancelling", "cancelled")
    assert (observed["cancelled"], observed["cancel_of_ended"]) == ("cancelled", "cancelled")


def test_list_jobs_is_newest_first_and_can_be_narrowed(observed: dict[str, Any]) -> None:
    ids = [job for job, _ in observed["list"]]
    assert ids == sorted(ids, reverse=True)
    assert ([observed["id"]], 1) == (observed["partial"], observed["limit"])


def test_on_done_sends_a_task_of_the_site_with_the_job_id(observed: dict[str, Any], site: Machine) -> None:
    """A signature keeps its arguments; the job id comes first, as with any callback of Celery."""
    file = site.folder / "told.txt"
    until(lambda: file.exists() and len(file.read_text().splitlines()) >= 2, 10, "both jobs have told")
    lines = file.read_text().splitlines()
    assert observed["models_id"] in lines
    assert [f"{observed['id']} first"] == [line for line in lines if observed["id"] in line]


def test_nothing_is_paid_twice(observed: dict[str, Any], site: Machine) -> None:
    assert dict.fromkeys(["p0", "p1", "p2"], 1) == site.billed(observed["models_id"])
    assert all(times == 1 for times in site.billed(observed["id"]).values())


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [
        ("empty", "InvalidInput", "no rows"),
        ("nan", "InvalidInput", "line 2"),
        ("odd", "InvalidInput", "line 2"),
        ("number", "InvalidInput", "input"),
        ("metadata", "InvalidInput", "metadata"),
        ("too_many", "InvalidInput", "13"),
        ("extra", "InvalidInput", "input_file_id"),
        ("on_done", "InvalidInput", "on_done"),
    ],
)
def test_what_cannot_work_is_refused_at_submit(observed: dict[str, Any], what: str, kind: str, says: str) -> None:
    name, message = observed["refused"][what]
    assert kind == name
    assert says in message


def test_a_submit_that_was_refused_leaves_nothing_behind(observed: dict[str, Any], site: Machine) -> None:
    """Neither a job nor files."""
    assert len(observed["list"]) == 4
    assert [path for path in (site.folder / "refused").rglob("*") if path.is_file()] == []


def test_an_unknown_job_is_not_found(observed: dict[str, Any]) -> None:
    assert "job_nothing" in observed["unknown"]
