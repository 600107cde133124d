"""The server around it: keys, errors, ids, ledger, calls, clock, admin routes, restart, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields

import httpx2
import openai
import psutil
import pytest

from batchpipe.sandbox import Sandbox, serve
from batchpipe.sandbox.options import OptionArgs, Options

KEY = {"authorization": "Bearer k"}


def test_the_sandbox_imports_nothing_of_the_pipeline():
    """Whoever starts it gets no Celery, no Redis, no OpenAI."""
    code = (
        "import sys, batchpipe; before = set(sys.modules); import batchpipe.sandbox\n"
        "new = {m for m in set(sys.modules) - before}\n"
        "print([m for m in new if m.split('.')[0] in ('celery', 'redis', 'openai', 'httpx2', 'kombu')"
        " or (m.startswith('batchpipe.') and not m.startswith('batchpipe.sandbox'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_keyword_arguments_are_the_options():
    """OptionArgs only repeats Options for the type checker."""
    assert list(OptionArgs.__annotations__) == [field.name for field in fields(Options)]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer"}, {"authorization": ""}, {"api-key": ""}])
def test_a_call_without_a_key_is_a_401(sandbox, headers):
    """In OpenAI's shape, and with a request id."""
    response = httpx2.get(f"{sandbox.base_url}/batches", headers=headers)

    assert response.status_code == 401
    assert "You didn't provide an API key" in response.json()["error"]["message"]
    assert response.headers["x-request-id"].startswith("req_")


def test_keys_can_be_restricted(api_for):
    """With api_keys a wrong key is a 401 with OpenAI's code."""
    with Sandbox(api_keys=("right",)) as sandbox:
        with openai.OpenAI(base_url=sandbox.base_url, api_key="right") as client:
            assert client.batches.list().data == []
        with (
            openai.OpenAI(base_url=sandbox.base_url, api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.batches.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/files", 405)])
def test_unknown_routes_are_refused_in_openais_shape(sandbox, method, path, status):
    """404 and 405 are JSON too."""
    response = httpx2.request(method, f"{sandbox.base_url}{path}", headers=KEY)

    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_not_json_is_a_400(sandbox):
    """Not a crash."""
    response = httpx2.post(f"{sandbox.base_url}/batches", headers=KEY, content=b"{broken")

    assert (response.status_code, response.json()["error"]["param"]) == (400, None)


def test_the_ledger_tells_who_paid_for_what(api, sandbox, row):
    """Answered rows are billed, refused ones are not; tokens are noted."""
    bad = row("bad")
    bad["body"]["messages"] = []
    batch = api.run([row("good"), bad])

    assert sandbox.ledger.billed == {"good": 1}
    assert (sandbox.ledger.total, sandbox.ledger.billed_twice()) == (1, [])
    entries = {entry.custom_id: entry for entry in sandbox.ledger.rows(batch.id)}
    assert (entries["good"].billed, entries["good"].status_code) == (1, 200)
    assert (entries["bad"].billed, entries["bad"].status_code) == (0, 400)
    assert entries["good"].output_tokens == batch.usage.output_tokens > 0


def test_the_ledger_finds_rows_that_were_paid_twice(api, sandbox, row):
    """The same row of the same job, in whichever batch."""
    batches = [api.run([row("a"), row(name)], metadata={"batchpipe_job": "job_1"}).id for name in ("b", "c")]

    [twice] = sandbox.ledger.billed_twice()

    assert (twice.job, twice.custom_id, twice.times, set(twice.batch_ids)) == ("job_1", "a", 2, set(batches))
    assert sandbox.ledger.billed_by_job == {("job_1", "a"): 2, ("job_1", "b"): 1, ("job_1", "c"): 1}


def test_jobs_may_share_custom_ids(api, sandbox, row):
    """Another job's row is another row; without jobs, another content is."""
    for job in ("job_1", "job_2"):
        api.run([row("a")], metadata={"batchpipe_job": job})
    api.run([row("a", n=1)])
    api.run([row("a", n=2)])
    assert sandbox.ledger.billed_twice() == []

    api.run([row("a", n=1)])
    assert [entry.custom_id for entry in sandbox.ledger.billed_twice()] == ["a"]


def test_calls_are_logged(api, client, sandbox):
    """Method, path, route and status of each call, and counts per route; a test can see that nothing was sent."""
    assert (len(sandbox.calls), sandbox.calls.counts) == (0, {})
    file_id = api.upload(b"x")
    client.files.retrieve(file_id)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_x")

    assert [(call.method, call.path, call.status) for call in sandbox.calls] == [
        ("POST", "/v1/files", 200),
        ("GET", f"/v1/files/{file_id}", 200),
        ("GET", "/v1/batches/batch_x", 404),
    ]
    assert sandbox.calls.count("GET /v1/files/{id}") == 1
    assert sandbox.calls.count("POST /v1/batches") == 0


def test_the_clock_moves_forward_only(sandbox):
    """Advance adds up; backwards is refused."""
    before = sandbox.clock.now()
    assert sandbox.clock.advance(1000) - before == pytest.approx(1000, abs=5)
    with pytest.raises(ValueError, match="forward"):
        sandbox.clock.advance(-1)


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled", "failed"])
def test_a_batch_can_be_brought_to_any_end(api, client, sandbox, rows, status):
    """From Python: `completed` runs what is left, `expired` and `cancelled` account for it, `failed` has errors."""
    sandbox.faults.add("stuck")
    batch = api.create(rows(10))
    sandbox.batches.wait(batch.id, "in_progress")

    ended = sandbox.batches.end(batch.id, status)

    assert ended["status"] == status
    assert ended[f"{status}_at"] is not None
    assert len(api.lines(ended["output_file_id"])) == (10 if status == "completed" else 0)
    assert len(api.lines(ended["error_file_id"])) == (10 if status in ("expired", "cancelled") else 0)
    assert bool(ended["errors"]) is (status == "failed")


def admin(sandbox, method, path, **options):
    response = httpx2.request(method, f"{sandbox.url}/sandbox{path}", **options)
    return response.status_code, response.json()


def test_the_admin_routes_do_what_the_python_api_does(api, sandbox, rows):
    """Faults, clock, ends, ledger, calls, state and reset, without a key."""
    status, fault = admin(sandbox, "POST", "/faults", json={"kind": "stuck"})
    assert (status, fault["kind"], len(sandbox.faults.active)) == (200, "stuck", 1)
    batch = api.create(rows(4), metadata={"batchpipe_job": "j"})
    errors = [{"code": "c", "message": "m", "line": 1, "param": None}]
    status, ended = admin(sandbox, "POST", f"/batches/{batch.id}", json={"status": "failed", "errors": errors})
    assert (status, ended["status"], ended["errors"]["data"]) == (200, "failed", errors)
    assert admin(sandbox, "GET", "/faults")[1]["faults"][0]["hits"] in (0, 1)
    assert admin(sandbox, "DELETE", f"/faults/{fault['id']}")[1] == {"faults": []}
    api.run(rows(4))
    assert admin(sandbox, "GET", "/ledger")[1]["total"] == 4
    assert admin(sandbox, "GET", "/calls")[1]["counts"]["POST /v1/batches"] == 2
    assert admin(sandbox, "POST", "/clock", json={"advance": 500})[1]["offset"] == 500
    state = admin(sandbox, "GET", "/state")[1]
    assert (len(state["batches"]), state["billed"], state["clock"]["offset"]) == (2, 4, 500)
    assert admin(sandbox, "POST", "/reset")[0] == 200
    assert admin(sandbox, "GET", "/state")[1]["batches"] == []


@pytest.mark.parametrize(
    ("method", "path", "document", "status"),
    [
        ("POST", "/faults", {"kind": "nonsense"}, 400),
        ("POST", "/faults", {"kind": "stuck", "nonsense": 1}, 400),
        ("POST", "/faults", {"kind": "status", "times": "x"}, 400),
        ("POST", "/faults", {"kind": "row_fails", "custom_id": "("}, 400),
        ("POST", "/faults", [], 400),
        ("DELETE", "/faults/fault_x", {}, 404),
        ("POST", "/clock", {"advance": -1}, 400),
        ("POST", "/clock", {}, 400),
        ("POST", "/batches/batch_x", {"status": "failed"}, 404),
        ("POST", "/batches/batch_x", {"status": "done"}, 400),
    ],
)
def test_admin_routes_refuse_nonsense(sandbox, method, path, document, status):
    """With a message, not a crash."""
    assert admin(sandbox, method, path, json=document)[0] == status


def test_a_sandbox_with_a_data_dir_goes_on_after_a_restart(api_for, rows, tmp_path, until):
    """Files and batches are still there, an unfinished batch ends, and no row is billed twice."""
    with Sandbox(data_dir=tmp_path, validating_seconds=0, rows_per_second=200) as sandbox:
        api = api_for(sandbox)
        first = api.run(rows(3))
        second = api.create(rows(200), metadata={"batchpipe_job": "j"})
        until(lambda: api.client.batches.retrieve(second.id).request_counts.completed >= 10)
    with Sandbox(data_dir=tmp_path) as sandbox:
        api = api_for(sandbox)
        ended = api.wait(second)
        assert api.ids(ended.output_file_id) == {f"r{n}" for n in range(200)}
        assert api.client.batches.retrieve(first.id) == first
        assert [batch.id for batch in api.client.batches.list()] == [second.id, first.id]
        assert sandbox.ledger.total == 203
        assert [row for row in sandbox.ledger.billed_twice() if row.job] == []


def test_a_temporary_sandbox_leaves_nothing_behind(api_for, rows):
    """Its folder is removed when it stops, and the port is free again."""
    with Sandbox() as sandbox:
        folder, port = admin(sandbox, "GET", "/state")[1]["data_dir"], sandbox.port
        api_for(sandbox).run(rows(2))
    assert not os.path.exists(folder)
    with Sandbox(port=port):
        pass


def test_a_port_in_use_is_an_error(sandbox):
    """OSError, at once."""
    with pytest.raises(OSError, match="in use"):
        Sandbox(port=sandbox.port).start()


@pytest.mark.parametrize("options", [{"rows_per_second": 0}, {"upstream": "nonsense"}, {"upstream_concurrency": 0}])
def test_nonsensical_options_are_refused(options):
    """Before anything is started."""
    with pytest.raises(ValueError):
        Sandbox(**options)


def test_a_sandbox_that_is_not_running_says_so():
    """Rather than an AttributeError."""
    with pytest.raises(RuntimeError, match="not running"):
        _ = Sandbox().ledger


def start_command(tmp_path, until, *args, **environment):
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "batchpipe.sandbox", "--port", "0", "--ready-file", ready, *args],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    until(lambda: ready.exists() or process.poll() is not None)
    return process, ready.read_text().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_command_starts_it_and_a_signal_ends_it(tmp_path, until, rows, number):
    """It says where it listens, takes faults, serves, and exits with 0."""
    fault = json.dumps({"kind": "status", "route": "GET /v1/batches", "status": 503})
    process, base_url = start_command(tmp_path, until, "--fault", fault)
    with process:
        assert process.stderr.readline() == f"sandbox listening on {base_url}\n"
        assert httpx2.get(f"{base_url}/files", headers=KEY).json()["data"] == []
        assert httpx2.get(f"{base_url}/batches", headers=KEY).status_code == 503
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("args", "code"), [(["--fault", "{}"], 2), (["--upstream", "x"], 2), (["--host", "256.0.0.1"], 1)]
)
def test_the_command_refuses_nonsense_in_one_line(args, code):
    """No traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "batchpipe.sandbox", "--port", "0", *args], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert "rror: " in done.stderr


def test_memory_does_not_grow_with_an_upload(tmp_path, until):
    """50 MB go through with less than 30 MB more at the peak, and come back whole."""
    process, base_url = start_command(tmp_path, until)
    source = tmp_path / "large.jsonl"
    line = b'{"custom_id":"%07d"}' + b" " * 1000 + b"\n"
    with source.open("wb") as file:
        file.writelines(line % number for number in range(50_000))
    server = psutil.Process(process.pid)
    with process, openai.OpenAI(base_url=base_url, api_key="k", max_retries=0) as client:
        before = server.memory_info().rss
        with source.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        with client.files.with_streaming_response.content(uploaded.id) as response:
            size = sum(len(chunk) for chunk in response.iter_bytes(65536))
        peak = peak_memory(process.pid)
        process.terminate()
    assert size == uploaded.bytes == source.stat().st_size > 50_000_000
    assert peak - before < 30_000_000


def peak_memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def test_serve_runs_until_it_is_told_to_stop(tmp_path):
    """The function behind the command, also outside the main thread."""
    import threading

    stop, seen = threading.Event(), []

    def ready(sandbox):
        seen.append(httpx2.get(f"{sandbox.url}/sandbox/state").status_code)
        stop.set()

    thread = threading.Thread(target=lambda: serve(0, on_ready=ready, stop=stop))
    thread.start()
    thread.join(10)
    assert (seen, thread.is_alive()) == ([200], False)
