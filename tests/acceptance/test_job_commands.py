"""submit, status, list, wait, results, logs, retry: what other programs call. A worker runs beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.acceptance.test_run import JOB_KEYS, SHARD_KEYS
from tests.acceptance.user_machine import Finished, Machine, read_rows, request, until

COMMANDS = [
    *("run", "submit", "status", "list", "wait", "results", "cancel", "retry", "validate", "logs"),
    *("resume", "sweep", "recover", "worker", "beat", "sandbox", "doctor"),
]

ASKED = [
    "status SOME --json",
    "status STUCK --json",
    "list",
    "list --json",
    "list --state partial --json",
    "list --state running --json",
    "list --limit 1 --json",
    "status SOME",
    "results SOME",
    "results SOME --errors",
    "results STUCK",
    "logs SOME --json",
    "logs SOME",
    "wait SOME GOOD",
    "wait GOOD GOOD",
    "wait STUCK SOME --timeout 0.2",
    "wait GOOD --json",
    "wait GOOD SOME --json",
    "wait STUCK --timeout 0.1 --json",
    "status job_unknown",
    "wait job_unknown",
    "cancel job_unknown",
    "retry GOOD",
    "cancel GOOD",
    "status GOOD --json",
    "sweep",
    "--help",
]
Ask = Callable[[str], Finished]


@pytest.fixture(scope="module", autouse=True)
def worker(machine: Machine) -> None:
    machine.worker()


@pytest.fixture(scope="module")
def jobs(machine: Machine, worker: None) -> dict[str, str]:
    """Ids of two ended jobs: one whose rows are all ok, one with two bad rows."""
    assert machine.sandbox is not None
    machine.sandbox.faults.add("row_fails", status=400, custom_id="^r[13]$", where={"story": "some"})
    source = machine.input(5)
    good = machine.submit(source, "--name", "good one", output="good")
    some = machine.submit(source, "--metadata", "story=some", "--max-rows", "2", output="some")
    assert machine.run("wait", good).code == 0
    assert machine.run("wait", some).code == 3
    return {"good": good, "some": some}


@pytest.fixture(scope="module")
def stuck(machine: Machine, worker: None) -> str:
    """The id of a job that runs and does not end."""
    assert machine.sandbox is not None
    machine.sandbox.faults.add("stuck", where={"story": "stuck"})
    job = machine.submit(machine.input(5), "--metadata", "story=stuck", output="stuck")
    until(lambda: machine.batches(job), what="its batch is made")
    return job


@pytest.fixture(scope="module")
def ask(machine: Machine, jobs: dict[str, str], stuck: str, at_once: ThreadPoolExecutor) -> Ask:
    """What a command answers that changes nothing. All of them are started at once; GOOD, SOME, STUCK are jobs."""
    ids = {"GOOD": jobs["good"], "SOME": jobs["some"], "STUCK": stuck}

    def start(line: str) -> Future[Finished]:
        return at_once.submit(machine.run, *(ids.get(word, word) for word in line.split()))

    answers = {line: start(line) for line in ASKED}
    return lambda line: answers[line].result()


def test_submit_prints_the_job_id_alone(machine: Machine) -> None:
    done = machine.run("submit", machine.input(1), "-o", machine.folder / "alone")
    assert (done.code, done.err) == (0, "")
    [line] = done.out.splitlines()
    assert line.startswith("job_")
    assert line.replace("_", "").isalnum()


def test_status_json_has_exactly_the_keys_of_the_contract(ask: Ask) -> None:
    view = json.loads(ask("status SOME --json").out)
    assert view.keys() == JOB_KEYS
    assert [set(shard) for shard in view["shards"]] == [SHARD_KEYS] * 3
    assert view["rows"] == {"total": 5, "ok": 3, "failed": 2, "missing": 0}
    assert [{"total", "completed", "failed"}] * 3 == [set(shard["request_counts"]) for shard in view["shards"]]


def test_counts_that_are_not_yet_known_are_null(ask: Ask) -> None:
    """While a job runs nobody knows how many rows will be ok."""
    view = json.loads(ask("status STUCK --json").out)
    assert (view["state"], view["ended_at"], view["output_file"]) == ("running", None, None)
    assert view["rows"]["ok"] is None
    assert view.keys() == JOB_KEYS


def test_list_json_is_an_array_of_the_same_without_shards(ask: Ask, jobs: dict[str, str]) -> None:
    """Newest first."""
    listed = json.loads(ask("list --json").out)
    assert all(set(job) == JOB_KEYS - {"shards"} for job in listed)
    times = [job["created_at"] for job in listed]
    assert times == sorted(times, reverse=True)
    assert set(jobs.values()) <= {job["id"] for job in listed}


def test_list_has_a_header_names_and_times(ask: Ask, jobs: dict[str, str]) -> None:
    """One line a job: what it is known by, which, how it stands, how far, since when; below it why rows are not ok."""
    header, *lines = ask("list").out.splitlines()
    assert header.split() == ["NAME", "JOB", "STATE", "ANSWERED", "%", "CREATED"]
    [good] = [line for line in lines if jobs["good"] in line]
    assert re.fullmatch(r"good one +job_\w+ +succeeded +5/5  100%  \d\d-\d\d \d\d:\d\d", good), good
    [some] = [at for at, line in enumerate(lines) if jobs["some"] in line]
    assert lines[some + 1].startswith("  ! not ok: 2 x 400")
    assert all(len(line) <= 100 for line in (header, *lines))


def test_list_can_be_narrowed_by_state_and_number(ask: Ask, jobs: dict[str, str], stuck: str) -> None:
    assert [jobs["some"]] == [job["id"] for job in json.loads(ask("list --state partial --json").out)]
    assert stuck in [job["id"] for job in json.loads(ask("list --state running --json").out)]
    assert len(json.loads(ask("list --limit 1 --json").out)) == 1


def test_status_answers_0_whatever_the_state_of_the_job(ask: Ask, jobs: dict[str, str]) -> None:
    """And tells people the same in words."""
    done = ask("status SOME")
    assert (done.code, done.err) == (0, "")
    assert jobs["some"] in done.out
    assert "partial" in done.out


def test_results_prints_the_output_rows_and_nothing_else(ask: Ask, machine: Machine, jobs: dict[str, str]) -> None:
    """In the order of the input, as the provider wrote them."""
    done = ask("results SOME")
    assert (done.code, done.err) == (0, "")
    assert done.out == (machine.folder / "some/output.jsonl").read_text()
    lines = machine.provider_lines(jobs["some"])
    assert done.out.encode() == b"".join(lines[name] for name in ("r0", "r2", "r4"))


def test_results_errors_prints_the_other_rows(ask: Ask) -> None:
    done = ask("results SOME --errors")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert (done.code, [row["custom_id"] for row in rows]) == (0, ["r1", "r3"])
    assert all(set(row) == {"custom_id", "outcome", "attempts", "response", "error"} for row in rows)


def test_results_of_a_running_job_are_an_error_of_one_line(ask: Ask) -> None:
    done = ask("results STUCK")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "not ended" in done.err


def test_logs_tell_the_story_of_a_job_oldest_first(ask: Ask) -> None:
    events = json.loads(ask("logs SOME --json").out)
    names = [event["event"] for event in events]
    assert sorted({"planned", "created", "ended"} - set(names)) == []  # a sweep may have seen the status first
    assert names.index("planned") < names.index("created") < names.index("ended")
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    text = ask("logs SOME")
    assert (0, len(events)) == (text.code, len(text.out.splitlines()))


def test_wait_on_several_jobs_exits_with_the_highest_code(ask: Ask) -> None:
    assert ask("wait SOME GOOD").code == 3
    assert ask("wait GOOD GOOD").code == 0


def test_wait_on_several_jobs_is_5_if_one_has_not_ended_in_time(ask: Ask) -> None:
    assert ask("wait STUCK SOME --timeout 0.2").code == 5


def test_wait_json_prints_one_document_also_for_several_jobs(ask: Ask, jobs: dict[str, str]) -> None:
    """`--json` prints one JSON document, so that a program can read stdout as a whole."""
    one = ask("wait GOOD --json")
    assert json.loads(one.out)["id"] == jobs["good"]
    two = ask("wait GOOD SOME --json")
    assert [jobs["good"], jobs["some"]] == [job["id"] for job in json.loads(two.out)]


def test_wait_json_prints_a_document_also_when_the_time_is_up(ask: Ask) -> None:
    """A program that asked for JSON learns where the job stands."""
    done = ask("wait STUCK --timeout 0.1 --json")
    assert done.code == 5
    assert json.loads(done.out)["state"] == "running"


@pytest.mark.parametrize("command", ["status", "wait", "cancel"])
def test_an_unknown_job_is_one_line_and_exit_1(ask: Ask, command: str) -> None:
    done = ask(f"{command} job_unknown")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1), done.err
    assert done.err.startswith("Error:")
    assert "job_unknown" in done.err


def test_an_output_of_another_unfinished_job_is_refused(machine: Machine, stuck: str) -> None:
    """Two jobs must not write to one place; the one that was there goes on."""
    other = machine.write("other.jsonl", json.dumps(request("mine")).encode())
    done = machine.run("submit", other, "-o", machine.folder / "stuck")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert stuck in done.err
    assert json.loads((machine.folder / "stuck/job.json").read_bytes())["id"] == stuck


def test_an_output_named_by_a_job_that_another_redis_knows_is_refused(
    machine: Machine, stuck: str, new_machine: Callable[..., Machine]
) -> None:
    """Its job.json is there to be read; nothing is sent."""
    stranger = new_machine("stranger")
    done = stranger.run("run", stranger.input(2), "-o", machine.folder / "stuck")
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert stuck in errors[0]
    assert stranger.batches(stranger.json("list")[0]["id"]) == []
    assert json.loads((machine.folder / "stuck/job.json").read_bytes())["id"] == stuck


def test_the_same_key_returns_the_first_job(machine: Machine) -> None:
    """Whatever else the second submit says."""
    first = machine.submit(machine.input(2), "--key", "monday", output="keyed")
    second = machine.submit(machine.input(3, name="three.jsonl"), "--key", "monday", output="elsewhere")
    assert first == second
    assert machine.run("wait", first).code == 0
    assert machine.submit(machine.input(2), "--key", "monday", output="keyed") == first
    assert machine.billed(first) == {"r0": 1, "r1": 1}


def test_several_submits_at_once_with_one_key_make_one_job(machine: Machine) -> None:
    source = machine.input(2)
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: machine.submit(source, "--key", "race", output="race"), range(4)))
    assert len(ids) == 1
    [job] = ids
    assert machine.run("wait", job).code == 0
    assert len(machine.batches(job)) == 1


def test_submit_reads_stdin(machine: Machine) -> None:
    done = machine.run("submit", "-", "-o", machine.folder / "piped", stdin=machine.input(3).read_bytes())
    assert done.code == 0, done.err
    assert machine.run("wait", done.out.strip()).code == 0
    assert [row["custom_id"] for row in read_rows(machine.folder / "piped/output.jsonl")] == ["r0", "r1", "r2"]


def test_retry_sends_the_rows_that_are_not_ok_as_a_new_job(machine: Machine, jobs: dict[str, str]) -> None:
    """When it has ended, the results of the old one show both as one; its own are kept."""
    assert machine.sandbox is not None
    for active in machine.sandbox.faults.active:
        if active.fault.where.get("story") == "some":
            machine.sandbox.faults.remove(active)
    before = (machine.folder / "some/output.jsonl").read_bytes()
    done = machine.run("retry", jobs["some"], "-o", machine.folder / "second")
    assert done.code == 0, done.err
    job = done.out.strip()
    assert machine.run("wait", job).code == 0
    assert machine.billed(job) == {"r1": 1, "r3": 1}
    assert [row["custom_id"] for row in read_rows(machine.folder / "second/output.jsonl")] == ["r1", "r3"]
    shown = machine.run("results", jobs["some"], "--no-retries")
    assert shown.out.encode() == before
    ids = [row["custom_id"] for row in read_rows(machine.folder / "some/output.jsonl")]
    assert {"r1", "r3"} < set(ids)
    assert ids == sorted(ids)


def test_retry_of_a_job_without_bad_rows_is_an_error_of_one_line(ask: Ask) -> None:
    done = ask("retry GOOD")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)


def test_cancel_prints_nothing_on_stdout_and_an_ended_job_stays_as_it_is(ask: Ask) -> None:
    done = ask("cancel GOOD")
    assert (done.code, done.out) == (0, "")
    assert json.loads(ask("status GOOD --json").out)["state"] == "succeeded"


def test_sweep_is_one_pass_that_ends(ask: Ask) -> None:
    done = ask("sweep")
    assert (done.code, done.out) == (0, ""), done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_commands_of_the_contract(command: str, help_text: Finished) -> None:
    assert command in help_text.out.split()


@pytest.fixture(scope="module")
def help_text(ask: Ask) -> Finished:
    return ask("--help")
