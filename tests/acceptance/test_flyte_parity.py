"""What users of the Flyte plugin for OpenAI batches know, by the names they know, and how it works here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, Process, batches_of, read_rows, request, until

NewMachine = Callable[..., Machine]

#: All jobs at once, in one process; prints what the tests look at.
SCRIPT = """
import json, resource, sys
from pathlib import Path

import batchpipe

def request(custom_id, size=0):
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"About {custom_id}" + "x" * size}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}

def rows(count=3, size=0):
    for number in range(count):
        yield request(f"r{number}", size)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def story(name, input=None, **options):
    source = rows() if input is None else input
    return batchpipe.submit(source, output=name, name=name, metadata={"story": name}, **options)

told = {}
one = story("warm")
before = peak()
big = batchpipe.submit(rows(20_000, 3_000), output="big", name="big", queue="nobody")
told["grown"], told["spooled"] = peak() - before, sum(f.stat().st_size for f in Path("big").rglob("*.jsonl"))
try:
    batchpipe.submit(iter([]), output="nothing")
except batchpipe.InvalidInput as error:
    told["empty"] = str(error)

path = Path("rows.jsonl").absolute()
path.write_text("".join(json.dumps(row) + "\\n" for row in rows()))
options = {"extra": {"output_expires_after": {"anchor": "created_at", "seconds": 4000}}}
jobs = {
    "iterator": story("iterator"),
    "path": story("path", path),
    "file": story("file", path.as_uri()),
    "web": story("web", sys.argv[1] + "/rows.jsonl"),
    "config": story("config", **options),
    "window": story("window", completion_window="1h"),
    "refused": story("refused"),
    "expired": story("expired"),
    "all failed": story("all failed"),
}
for name, job in jobs.items():
    job.wait(40)
    told[name] = {
        **job.to_dict(),
        "logs": job.logs(),
        "metrics": job.metrics(),
        "result": job.result().to_dict(),
        "rows_of": [[row.custom_id, row.state, row.error] for row in job.results()],
    }
print(json.dumps(told))
"""

READER = """
import json, sys
import batchpipe
job = batchpipe.Job.from_json(sys.stdin.read() or sys.argv[1])
print(json.dumps({"id": job.id, "state": job.refresh().state}))
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A web server and its folder."""
    folder = tmp_path_factory.mktemp("web")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def worker(machine: Machine) -> Process:
    return machine.worker()


@pytest.fixture(scope="module")
def observed(machine: Machine, worker: Process, web: tuple[str, Path]) -> dict[str, Any]:
    assert machine.sandbox is not None
    url, folder = web
    (folder / "rows.jsonl").write_bytes(machine.input(3).read_bytes())
    faults = machine.sandbox.faults
    errors = [
        {"code": "bad_model", "message": "this model is unknown", "line": 2, "param": "body.model"},
        {"code": "bad_text", "message": "this text is bad", "line": 3, "param": None},
    ]
    faults.add("fail_batch", errors=errors, where={"story": "refused"}, times=1)
    faults.add("expire", fraction=0.67, where={"story": "expired"}, times=1)
    faults.add("row_fails", status=400, where={"story": "all failed"})
    found: dict[str, Any] = machine.python(SCRIPT, url)
    return found


def read_by_another_account(new_machine: NewMachine, new_sandbox: Callable[..., Sandbox]) -> dict[str, Any]:
    """Two accounts: one in .env, the key of the default one in a secret file."""
    sandbox = new_sandbox(api_keys=("sk-team", "sk-from-a-file"))
    machine = new_machine("accounts", provider=sandbox)
    del machine.environment["OPENAI_API_KEY"]
    machine.write(
        ".env",
        f"BATCHPIPE_ACCOUNTS__TEAM__API_KEY=sk-team\nBATCHPIPE_ACCOUNTS__TEAM__BASE_URL={sandbox.base_url}\n".encode(),
    )
    secrets = machine.folder / "secrets"
    secrets.mkdir()
    (secrets / "openai_api_key").write_text("sk-from-a-file\n")
    machine.environment["BATCHPIPE_SECRETS_DIR"] = str(secrets)
    source = machine.input(2)
    machine.worker()
    jobs = [machine.submit(source, "--account", "team", output="team"), machine.submit(source, output="default")]
    codes = [machine.run("wait", job, "--timeout", "30").code for job in jobs]
    return {"codes": codes, "accounts": [machine.json("status", job)["account"] for job in jobs]}


def answered_without_a_key(new_machine: NewMachine, new_sandbox: Callable[..., Sandbox]) -> dict[str, Any]:
    """A server that leaves `error_file_id` out of its answers."""
    sandbox = new_sandbox()
    machine = new_machine("lean", provider=sandbox)
    unreadable = sandbox.faults.add("status", route="GET /v1/batches*", status=503, retry_after=0.2)
    machine.worker()
    job = machine.submit(machine.input(3))
    batch = until(lambda: next((b for b in batches_of(sandbox) if b.status == "completed"), None))
    lean = {name: value for name, value in batch.public().items() if name != "error_file_id"}
    sandbox.faults.add("replace", route="GET /v1/batches/{id}", json=lean)
    sandbox.faults.remove(unreadable)
    return {"wait": machine.run("wait", job, "--timeout", "30"), "status": machine.json("status", job)}


def on_a_terminal(new_machine: NewMachine) -> tuple[int, str]:
    """`batchpipe run` with stderr on a terminal."""
    machine = new_machine("terminal")
    source = machine.input(4)
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "batchpipe", "run", str(source), "-o", "out", "--sandbox"]
    environment = {**machine.environment, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs, cwd=machine.folder, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal ends with the process
            while more := os.read(ours, 1 << 16):
                shown += more
        os.close(ours)
        return process.wait(30), shown.decode(errors="replace")


@pytest.fixture(scope="module", autouse=True)
def stories(
    at_once: ThreadPoolExecutor, new_machine: NewMachine, new_sandbox: Callable[..., Sandbox]
) -> dict[str, Future[Any]]:
    return {
        "accounts": at_once.submit(read_by_another_account, new_machine, new_sandbox),
        "lean": at_once.submit(answered_without_a_key, new_machine, new_sandbox),
        "terminal": at_once.submit(on_a_terminal, new_machine),
    }


# -- create_batch and its inputs ---------------------------------------------------------------------------------------


def test_create_batch_is_submit_and_a_chain_of_celery_tasks(observed: dict[str, Any], worker: Process) -> None:
    """prepare, then upload -> create -> poll -> download for each shard, then merge. A task stands for all steps of its
    visit: a small job's are done in two.
    """
    assert observed["iterator"]["state"] == "succeeded"
    for name, said in (
        ("prepare", r"planned round 1, shards: 1, rows: 3 - uploaded - created"),
        ("poll", r"completed 3 of 3 rows \(batch_\w+\) - collected: 3 ok - succeeded: 3 ok"),
    ):
        assert re.search(rf"Task batchpipe\.{name}\[\S+\] succeeded in .*{said}", worker.err)


def test_iterator_of_json_is_streamed_and_never_held_in_memory(observed: dict[str, Any]) -> None:
    """60 MB of rows go to disk; the process hardly grows."""
    assert observed["spooled"] > 60_000_000
    assert observed["grown"] < 24


def test_iterator_of_json_that_is_empty_is_a_clear_error(observed: dict[str, Any]) -> None:
    assert "no rows" in observed["empty"]


@pytest.mark.parametrize("kind", ["path", "file", "web"])
def test_jsonl_file_may_be_a_path_or_a_url(observed: dict[str, Any], kind: str) -> None:
    """The worker reads it."""
    assert (observed[kind]["state"], observed[kind]["rows"]["ok"]) == ("succeeded", 3)


# -- config ------------------------------------------------------------------------------------------------------------


def test_config_has_the_defaults_of_the_original(observed: dict[str, Any], machine: Machine) -> None:
    """endpoint and completion_window."""
    [batch] = machine.batches(observed["iterator"]["id"])
    assert (batch.endpoint, batch.public()["completion_window"]) == ("/v1/chat/completions", "24h")


def test_config_passes_metadata_and_any_other_argument_on(observed: dict[str, Any], machine: Machine) -> None:
    [batch] = machine.batches(observed["config"]["id"])
    assert batch.metadata is not None
    assert (batch.metadata["story"], batch.output_expires_after) == ("config", 4000)


def test_config_passes_completion_window_on_and_tells_what_the_provider_says(observed: dict[str, Any]) -> None:
    """This provider takes 24h only; its words reach the user, and every row is accounted for."""
    job = observed["window"]
    assert "completion_window" in job["error"]["message"] or "1h" in job["error"]["message"]
    assert job["state"] == "failed"
    assert [row[0] for row in job["rows_of"]] == ["r0", "r1", "r2"]


# -- the tasks and the connector ---------------------------------------------------------------------------------------


def test_upload_jsonl_file_task_uploads_for_batches(observed: dict[str, Any], machine: Machine) -> None:
    """Purpose, a name that tells job, shard and try; and it expires."""
    assert machine.sandbox is not None
    [batch] = machine.batches(observed["iterator"]["id"])
    file = machine.sandbox.files.find(batch.input_file_id)
    if file is None:
        return  # it is gone already: tidied up at the end of the job
    assert ("batch", f"batchpipe-{observed['iterator']['id']}-0-1.jsonl") == (file.purpose, file.filename)
    assert file.expires_at is not None


def test_upload_jsonl_file_task_leaves_no_orphan_files(observed: dict[str, Any], machine: Machine) -> None:
    """Every input of an ended job is deleted at the provider, or will be: it expires."""
    assert machine.sandbox is not None
    inputs = [file for file in machine.sandbox.files.all() if file.filename.startswith("batchpipe-")]
    assert all(file.expires_at is not None for file in inputs)


def test_batch_endpoint_connector_create_returns_what_get_needs(observed: dict[str, Any], machine: Machine) -> None:
    """The batch id, in the record of the shard."""
    job = observed["iterator"]
    assert [batch.id for batch in machine.batches(job["id"])] == [shard["batch_id"] for shard in job["shards"]]


def test_batch_endpoint_connector_get_tells_status_and_counts(observed: dict[str, Any]) -> None:
    [shard] = observed["iterator"]["shards"]
    assert (shard["status"], shard["request_counts"]) == ("completed", {"total": 3, "completed": 3, "failed": 0})


def test_batch_endpoint_connector_get_keeps_every_validation_error(observed: dict[str, Any]) -> None:
    """Each with its code and message, at the row that its line names."""
    errors = {row[0]: row[2] for row in observed["refused"]["rows_of"]}
    assert (errors["r1"]["code"], errors["r1"]["message"]) == ("bad_model", "this model is unknown")
    assert (errors["r2"]["code"], errors["r2"]["message"]) == ("bad_text", "this text is bad")


def test_batch_endpoint_connector_get_blames_no_row_that_no_error_names(observed: dict[str, Any]) -> None:
    """Such a row was refused with the others only: it is sent again."""
    assert [row[1:] for row in observed["refused"]["rows_of"] if row[0] == "r0"] == [["ok", None]]
    assert [shard["rows"] for shard in observed["refused"]["shards"]] == [3, 1]


def test_batch_endpoint_connector_delete_is_idempotent(machine: Machine) -> None:
    """Twice, and once more when all is over."""
    assert machine.sandbox is not None
    machine.sandbox.faults.add("stuck", where={"story": "delete"})
    job = machine.submit(machine.input(2), "--metadata", "story=delete", output="delete")
    until(lambda: machine.batches(job), what="its batch is made")
    assert [machine.run("cancel", job).code for _ in range(2)] == [0, 0]
    assert machine.run("wait", job, "--timeout", "20").code == 4
    assert machine.run("cancel", job).code == 0
    assert [batch.status for batch in machine.batches(job)] == ["cancelled"]


def test_batch_endpoint_metadata_is_json_that_another_process_reads(observed: dict[str, Any], machine: Machine) -> None:
    job = {name: observed["path"][name] for name in ("id", "state")}
    assert machine.python(READER, json.dumps(observed["path"])) == job


# -- State -------------------------------------------------------------------------------------------------------------


def test_state_unknown_to_us_means_running(machine: Machine, worker: Process) -> None:
    assert machine.sandbox is not None
    strange = machine.sandbox.faults.add(
        "unknown_status", message="pondering", seconds=3_600.0, where={"story": "unknown"}
    )
    job = machine.submit(machine.input(2), "--metadata", "story=unknown", output="unknown")
    until(lambda: machine.json("status", job)["shards"][0]["status"] == "pondering", what="the status is seen")
    assert machine.json("status", job)["state"] == "running"
    machine.sandbox.faults.remove(strange)
    assert machine.run("wait", job, "--timeout", "30").code == 0


def test_state_completed_with_no_row_ok_is_no_success(observed: dict[str, Any]) -> None:
    job = observed["all failed"]
    assert (job["state"], job["shards"][0]["status"]) == ("failed", "completed")
    assert [row[1] for row in job["rows_of"]] == ["failed"] * 3


def test_state_expired_keeps_its_finished_rows(observed: dict[str, Any], machine: Machine) -> None:
    """They are paid; the others are told apart."""
    job = observed["expired"]
    assert job["shards"][0]["status"] == "expired"
    assert job["rows"]["ok"] >= 2
    assert all(times == 1 for times in machine.billed(job["id"]).values())


def test_state_expired_sends_again_which_rows_were_not_run(observed: dict[str, Any]) -> None:
    """In a batch of their own; those that had finished are not sent again."""
    job = observed["expired"]
    assert (job["state"], job["rows"]["ok"]) == ("succeeded", 3)
    first, second = job["shards"]
    assert (second["round"], second["rows"]) == (2, 3 - first["request_counts"]["completed"])


# -- logs, metrics, results --------------------------------------------------------------------------------------------


def test_get_logs_is_the_event_log_of_the_job(observed: dict[str, Any]) -> None:
    names = [event["event"] for event in observed["iterator"]["logs"]]
    assert sorted({"planned", "created", "status", "ended"} - set(names)) == []


def test_get_metrics_tells_rows_tokens_and_seconds_of_each_stage(observed: dict[str, Any]) -> None:
    metrics = observed["iterator"]["metrics"]
    assert metrics["rows"]["ok"] == 3
    assert metrics["tokens"]["total_tokens"] > 0
    assert {"prepare", "upload", "create", "wait", "download", "merge", "total"} == metrics["seconds"].keys()


def test_get_metrics_tells_the_cost(observed: dict[str, Any]) -> None:
    assert any(name.startswith("cost") for name in observed["iterator"]["metrics"])


def test_download_jsonl_files_task_takes_either_file_alone(observed: dict[str, Any], machine: Machine) -> None:
    """No error file when all went well, no output file when nothing did."""
    [well] = machine.batches(observed["iterator"]["id"])
    [badly] = machine.batches(observed["all failed"]["id"])
    assert (well.error_file_id, badly.output_file_id) == (None, None)
    assert read_rows(machine.folder / "iterator/errors.jsonl") == []
    assert read_rows(machine.folder / "all failed/output.jsonl") == []
    assert len(read_rows(machine.folder / "all failed/errors.jsonl")) == 3


def test_download_jsonl_files_task_needs_no_error_file_id_at_all(stories: dict[str, Future[Any]]) -> None:
    """Some servers leave the key out."""
    found = stories["lean"].result()
    assert found["wait"].code == 0, found["wait"].err
    assert found["status"]["rows"]["ok"] == 3


def test_batch_result_names_both_files_and_counts_rows(observed: dict[str, Any], machine: Machine) -> None:
    folder = machine.folder / "iterator"
    files = {"output_file": str(folder / "output.jsonl"), "error_file": str(folder / "errors.jsonl")}
    assert observed["iterator"]["result"] == {**files, "total": 3, "ok": 3, "failed": 0, "missing": 0}
    assert all(Path(file).exists() for file in files.values())


# -- secrets, local execution ------------------------------------------------------------------------------------------


def test_openai_file_config_and_secret_are_accounts_in_env_and_secret_files(stories: dict[str, Future[Any]]) -> None:
    """A job names its account; the worker knows the key."""
    found = stories["accounts"].result()
    assert found == {"codes": [0, 0], "accounts": ["team", "default"]}


def test_local_execution_shows_progress_on_a_terminal(stories: dict[str, Future[Any]]) -> None:
    """A table and a bar while it runs, and a plain line at the end."""
    code, shown = stories["terminal"].result()
    assert code == 0, shown
    assert "provider says" in shown
    assert "4 of 4 rows ok" in shown


def test_a_row_that_is_asked_for_twice_is_refused_and_not_paid_twice(machine: Machine) -> None:
    """The original sends what it is given; here a repeated id is an error that names both lines."""
    row = json.dumps(request("same")).encode() + b"\n"
    done = machine.run("validate", machine.write("same.jsonl", row + row))
    assert done.code == 1
    assert "line 2" in done.err
    assert "line 1" in done.err
