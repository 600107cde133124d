"""A site's own Celery app, its own workers and beat: batchpipe lives in them and changes nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.rabbit import running_rabbitmq
from tests.acceptance.site import Shop
from tests.acceptance.user_machine import Machine, Process, until


@pytest.fixture(scope="module")
def shop(new_machine: Callable[..., Machine]) -> Shop:
    """A site on the same Redis as its jobs, with a worker started as its team starts it."""
    machine = new_machine("shop")
    assert machine.redis_url is not None
    made = Shop(machine, machine.redis_url, broker_transport_options={"socket_timeout": 30})
    made.worker_process = made.worker()  # type: ignore[attr-defined]
    return made


def worker_log(shop: Shop) -> str:
    process: Process = shop.worker_process  # type: ignore[attr-defined]
    return process.err + process.out


def test_a_sites_own_worker_runs_a_job_that_the_command_line_submits(shop: Shop) -> None:
    """No option names our queue: `celery -A shop worker` takes it beside its own."""
    job = shop.submit()

    assert shop.machine.run("wait", job, "--timeout", "40").code == 0
    assert set(shop.machine.billed(job).values()) == {1}
    assert "batchpipe.merge" in worker_log(shop)


def test_the_sites_own_tasks_run_beside_it_and_are_told(shop: Shop) -> None:
    """``on_done`` is a task of the site, in the site's own queue."""
    script = """
import json, sys, batchpipe
from shop.celery import told
job = batchpipe.submit(sys.argv[1], output=sys.argv[2], on_done=told.s())
print(json.dumps(job.id))
"""
    job = shop.machine.python(script, shop.machine.input(rows=3), shop.machine.folder / "told-out")
    observed = shop.machine.folder / "told"

    until(lambda: observed.exists() and f"{job} succeeded" in observed.read_text(), what="the site is told")


def test_a_command_publishes_through_the_app_that_is_named(shop: Shop) -> None:
    """-A does what BATCHPIPE_APP does, and wins over it."""
    done = shop.machine.run("-A", "shop.celery", "doctor", env={"BATCHPIPE_APP": "nonsense.app"})

    assert "celery     app shop: its settings suit batchpipe" in done.out
    assert "on queue batchpipe" in done.out


@pytest.mark.parametrize(
    ("name", "says"),
    [("no.such", "No module named 'no'"), ("json", "cannot be loaded"), ("json:loads", "is a function, not a Celery")],
)
def test_an_app_that_cannot_be_loaded_is_one_line(shop: Shop, name: str, says: str) -> None:
    """It names the option, and there is no traceback."""
    done = shop.machine.run("list", env={"BATCHPIPE_APP": name})

    assert done.code == 1
    assert done.err.startswith(f"Error: -A {name}")
    assert says in done.err
    assert len(done.err.splitlines()) == 1


def test_a_run_in_a_site_brings_a_worker_of_the_sites_app(shop: Shop) -> None:
    """Its own queue, the site's app: nothing of the run waits for the site's workers."""
    done = shop.machine.run("run", shop.machine.input(rows=5), "-o", shop.machine.folder / "run-out")

    assert done.code == 0, done.err
    log = next((shop.machine.home / "logs").glob("*.log")).read_text()
    assert "shop" in log


def test_our_worker_of_a_sites_app_logs_as_we_do(new_machine: Callable[..., Machine]) -> None:
    """LOG_FORMAT is a setting of ours; Celery would put its own handler in place of ours."""
    machine = new_machine("logging", BATCHPIPE_LOG_FORMAT="json")
    assert machine.redis_url is not None
    Shop(machine, machine.redis_url)
    worker = machine.worker()
    worker.popen.terminate()

    assert worker.finish().code == 0
    lines = [json.loads(line) for line in worker.err.splitlines() if not line.startswith("worker:")]
    assert any(line["message"].endswith(" ready.") for line in lines)


def test_a_worker_of_other_queues_takes_none_of_our_tasks(new_machine: Callable[..., Machine]) -> None:
    """-Q is the site's word: the job waits for a worker that takes the queue, and loses nothing meanwhile."""
    machine = new_machine("queues")
    assert machine.redis_url is not None
    shop = Shop(machine, machine.redis_url)
    other = shop.worker("-Q", "celery")
    job = shop.submit()
    machine.await_ready(shop.worker("-Q", "celery,batchpipe", "-n", "second@%h"))

    assert machine.run("wait", job, "--timeout", "40").code == 0
    assert "batchpipe.prepare[" not in other.err + other.out


def test_what_is_wrong_with_the_app_is_said_when_a_worker_starts(new_machine: Callable[..., Machine]) -> None:
    """By name, with the reason and the line to write; nothing of it is changed."""
    machine = new_machine("wrong")
    assert machine.redis_url is not None
    wrong = {"broker_transport_options": {"visibility_timeout": 60}, "worker_prefetch_multiplier": 4}
    shop = Shop(machine, machine.redis_url, **wrong)
    process = shop.worker()
    log = process.err + process.out

    assert "app.conf.broker_transport_options: visibility_timeout is 60 s" in log
    line = '{"visibility_timeout": 1800, "socket_timeout": 30, "socket_connect_timeout": 5}'
    assert f"write app.conf.broker_transport_options = {line}" in log
    assert "write app.conf.worker_prefetch_multiplier = 1" in log
    script = "import json; from shop.celery import app; print(json.dumps(app.conf.broker_transport_options))"
    assert machine.python(script) == {"visibility_timeout": 60}


def test_the_sites_beat_sweeps(new_machine: Callable[..., Machine]) -> None:
    """`celery -A shop beat` has the entry; a job whose message was lost comes back."""
    machine = new_machine("beat", BATCHPIPE_LEASE_SECONDS="1")
    assert machine.redis_url is not None
    shop = Shop(machine, machine.redis_url)
    job = shop.submit()
    purged = shop.celery("purge", "-f", "-Q", "batchpipe").finish()
    assert "Purged 1 message" in purged.out, purged.err
    worker, beat = shop.worker(), shop.celery("beat", "--schedule", str(machine.folder / "beat"))

    assert machine.run("wait", job, "--timeout", "40").code == 0
    until(lambda: "batchpipe.sweep" in beat.err + beat.out + worker.err + worker.out, what="beat sends the sweep")


# -- a broker that is no Redis -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A RabbitMQ of our own. None on this machine: skipped; it is not among what CI must have."""
    with running_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.mark.slow
def test_messages_may_go_through_rabbitmq_while_redis_holds_the_records(
    new_machine: Callable[..., Machine], rabbitmq: str
) -> None:
    """A worker killed with a poll in hand, and one more that goes on: the job ends, and nothing is paid twice."""
    machine = new_machine("rabbit", BATCHPIPE_QUEUE="first")  # each test its own: they share a broker
    shop = Shop(machine, rabbitmq)
    first = shop.worker()
    job = shop.submit("--max-rows", "4", rows=12)
    until(lambda: any(batch for batch in machine.batches(job)), what="a batch is created")
    first.kill()
    second = shop.worker("-n", "second@%h")

    assert machine.run("wait", job, "--timeout", "60").code == 0, second.err
    assert set(machine.billed(job).values()) == {1}
    assert json.loads((machine.folder / "out" / "job.json").read_text())["rows"]["ok"] == 12


@pytest.mark.slow
def test_a_broker_that_refuses_does_not_fail_a_submit(new_machine: Callable[..., Machine], rabbitmq: str) -> None:
    """The job is recorded: who is told of a failure would submit, and pay, once more. The sweep publishes it later."""
    machine = new_machine("rabbit-refuses")
    Shop(machine, rabbitmq.replace("guest:guest", "guest:wrong"))
    job = machine.submit(machine.input())

    assert machine.run("sweep").code == 0
    assert machine.json("status", job)["state"] == "pending"


@pytest.mark.slow
def test_a_cancel_reaches_a_job_over_rabbitmq(
    new_machine: Callable[..., Machine], new_sandbox: Callable[..., Sandbox], rabbitmq: str
) -> None:
    """Revoking works through the broker's control queues, or the flag does it alone."""
    machine = new_machine("rabbit-cancel", provider=new_sandbox(rows_per_second=4), BATCHPIPE_QUEUE="cancelled")
    shop = Shop(machine, rabbitmq)
    shop.worker()
    job = shop.submit(rows=400)
    until(lambda: machine.batches(job), what="a batch is created")
    assert machine.run("cancel", job).code == 0

    assert machine.run("wait", job, "--timeout", "40").code == 4
    assert [batch.status for batch in machine.batches(job)] == ["cancelled"]


@pytest.mark.slow
def test_the_standalone_worker_takes_rabbitmq_as_its_broker(new_machine: Callable[..., Machine], rabbitmq: str) -> None:
    """BROKER_URL is all that differs."""
    machine = new_machine("rabbit-alone", BATCHPIPE_BROKER_URL=rabbitmq, BATCHPIPE_QUEUE="alone")
    machine.worker()
    job = machine.submit(machine.input())

    assert machine.run("wait", job, "--timeout", "40").code == 0
    assert set(machine.billed(job).values()) == {1}
