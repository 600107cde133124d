"""The Python API, from a script of its own; a site's own Celery app and worker do the work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.user_machine import Place, until

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
def site(new_place: Callable[..., Place]) -> Place:
    """A user's site: its own app, its own queue, its own worker."""
    place = new_place("site")
    shutil.copy(Path(__file__).with_name("shop.py"), place.folder)
    place.environment["PYTHONPATH"] = str(place.folder)
    assert place.sandbox is not None
    place.sandbox.faults.add("row_fails", status=400, custom_id="^r[13]$", where={"story": "dicts"})
    place.sandbox.faults.add("stuck", where={"story": "stuck"})
    options = ["--pool", "threads", "--concurrency", "4", "--queues", "shop", "--loglevel", "INFO"]
    place.await_ready(place.start_python("-m", "celery", "-A", "shop", "worker", *options))
    return place


@pytest.fixture(scope="module")
def told(site: Place) -> dict[str, Any]:
    found: dict[str, Any] = site.python(SCRIPT)
    return found


def test_submit_takes_an_iterator_of_dicts(told: dict[str, Any]) -> None:
    """It is read to its end before submit returns."""
    assert told["drawn"] == [0, 1, 2, 3, 4]
    assert told["dict"]["rows"] == {"total": 5, "ok": 3, "failed": 2, "missing": 0}


def test_submit_takes_pydantic_models_and_finds_an_output_by_itself(told: dict[str, Any], site: Place) -> None:
    state, ids, output = told["models"]
    assert (state, ids) == ("succeeded", ["p0", "p1", "p2"])
    assert output.startswith(str(site.home))


def test_submit_takes_a_path(told: dict[str, Any]) -> None:
    assert told["path"] == ["succeeded", ["f0", "f1", "f2"]]


def test_submit_with_the_same_key_returns_the_first_job(told: dict[str, Any]) -> None:
    assert told["id"] == told["same_key"]


def test_results_are_all_rows_in_the_order_of_the_input(told: dict[str, Any]) -> None:
    """Ok or not."""
    states = ["ok", "failed", "ok", "failed", "ok"]
    assert [[n, f"r{n}", state] for n, state in enumerate(states)] == told["results"]
    assert told["response_of_ok"] == "chat.completion"
    assert told["lazy"] == "generator"


def test_errors_are_the_rows_that_are_not_ok(told: dict[str, Any]) -> None:
    assert told["errors"] == [["r1", "failed", 1, 400], ["r3", "failed", 1, 400]]


def test_result_is_refused_while_the_job_runs(told: dict[str, Any]) -> None:
    assert told["too_early"] == "not_ended"


def test_wait_and_refresh_return_the_job(told: dict[str, Any]) -> None:
    assert told["wait_is_self"]
    assert told["is_state"]
    assert (told["state"], told["refreshed"]) == ("partial", "partial")


def test_batch_result_names_both_files_and_round_trips(told: dict[str, Any], site: Place) -> None:
    folder = site.folder / "dicts"
    files = {"output_file": str(folder / "output.jsonl"), "error_file": str(folder / "errors.jsonl")}
    assert told["result"] == {**files, "total": 5, "ok": 3, "failed": 2, "missing": 0}
    assert told["result_round_trips"] == [True, True]


def test_logs_are_the_events_of_the_job(told: dict[str, Any]) -> None:
    assert {"planned", "created", "ended"} <= set(told["logs"])
    assert told["log_keys"]


def test_metrics_tell_rows_tokens_and_seconds(told: dict[str, Any]) -> None:
    metrics = told["metrics"]
    assert metrics["rows"] == {"total": 5, "ok": 3, "failed": 2, "missing": 0}
    tokens = metrics["tokens"]
    assert 0 < tokens["total_tokens"] == tokens["input_tokens"] + tokens["output_tokens"]
    assert {"prepare", "upload", "create", "wait", "download", "merge", "total"} == metrics["seconds"].keys()
    assert all(0 <= seconds <= metrics["seconds"]["total"] for seconds in metrics["seconds"].values())


def test_a_job_survives_as_dict_and_as_json(told: dict[str, Any], site: Place) -> None:
    """The handle can be stored and read by another process."""
    assert told["json_is_dict"]
    assert (told["id"], "partial") == (told["from_dict"], told["from_json"])
    assert told["dict"] == site.json("status", told["id"])


def test_tags_and_names_stay_with_us(told: dict[str, Any], site: Place) -> None:
    """The provider is not told the tags."""
    assert (told["got"], told["name"]) == ({"user": 7}, "dicts")
    [batch] = site.batches(told["id"])
    assert batch.metadata is not None
    assert {"story", "batchpipe_job", "batchpipe_shard", "batchpipe_key"} == batch.metadata.keys()
    assert batch.output_expires_after == 3600


def test_wait_gives_up_after_its_timeout(told: dict[str, Any]) -> None:
    assert "not ended" in told["timeout"]


def test_cancel_may_be_called_at_any_time(told: dict[str, Any]) -> None:
    """Twice, or when all is over."""
    assert told["cancelling"] in ("cancelling", "cancelled")
    assert told["cancel_again"] in ("cancelling", "cancelled")
    assert (told["cancelled"], told["cancel_of_ended"]) == ("cancelled", "cancelled")


def test_list_jobs_is_newest_first_and_can_be_narrowed(told: dict[str, Any]) -> None:
    ids = [job for job, _ in told["list"]]
    assert ids == sorted(ids, reverse=True)
    assert ([told["id"]], 1) == (told["partial"], told["limit"])


def test_on_done_sends_a_task_of_the_site_with_the_job_id(told: dict[str, Any], site: Place) -> None:
    """A signature keeps its arguments; the job id comes first, as with any callback of Celery."""
    file = site.folder / "told.txt"
    until(lambda: file.exists() and len(file.read_text().splitlines()) >= 2, 10, "both jobs have told")
    lines = file.read_text().splitlines()
    assert told["models_id"] in lines
    assert [f"{told['id']} first"] == [line for line in lines if told["id"] in line]


def test_nothing_is_paid_twice(told: dict[str, Any], site: Place) -> None:
    assert dict.fromkeys(["p0", "p1", "p2"], 1) == site.billed(told["models_id"])
    assert all(times == 1 for times in site.billed(told["id"]).values())


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
def test_what_cannot_work_is_refused_at_submit(told: dict[str, Any], what: str, kind: str, says: str) -> None:
    name, message = told["refused"][what]
    assert kind == name
    assert says in message


def test_a_submit_that_was_refused_leaves_nothing_behind(told: dict[str, Any], site: Place) -> None:
    """Neither a job nor files."""
    assert len(told["list"]) == 4
    assert [path for path in (site.folder / "refused").rglob("*") if path.is_file()] == []


def test_an_unknown_job_is_not_found(told: dict[str, Any]) -> None:
    assert "job_nothing" in told["unknown"]
