"""RabbitMQ in each version, with classic and with quorum queues. Records stay in Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.rabbit import DEBIANS, running_rabbitmq
from tests.acceptance.site import Shop
from tests.acceptance.user_machine import Machine, read_rows, until
from tests.matrix.cache import here_or
from tests.matrix.debian import unpacked

pytestmark = pytest.mark.matrix
NewMachine = Callable[..., Machine]
#: version -> the release of Debian that has it
RELEASES = {"3.10": "bookworm", "4.0": "trixie", "4.3": "forky"}
#: A site whose queues are all quorum queues, with the line that a worker proposes.
QUORUM = """
from kombu import Exchange, Queue
app.conf.task_default_queue_type = "quorum"
app.conf.task_default_queue = "shop"
app.conf.task_queues = [
    Queue("shop", queue_arguments={"x-queue-type": "quorum"}),
    Queue("batchpipe", Exchange("batchpipe-topic", "topic"), "batchpipe", queue_arguments={"x-queue-type": "quorum"}),
]
"""


@pytest.fixture(
    scope="module", params=[pytest.param(one, marks=[pytest.mark.ci] * (one == "3.10")) for one in RELEASES]
)
def rabbitmq(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    version = request.param
    folder = tmp_path_factory.mktemp("rabbitmq")
    server, path = here_or(f"rabbitmq-{version}", f"rabbitmq-server-{version}") or installed(version), ""
    if server is None:
        root = unpacked(RELEASES[version], "rabbitmq-server")
        server, path = root / "usr/lib/rabbitmq/bin/rabbitmq-server", str(root / "usr/bin")
    with running_rabbitmq(folder, server, path) as url:
        logs = sorted((folder / "log").glob("*.log"))
        until(lambda: any(f"Starting RabbitMQ {version}." in log.read_text() for log in logs), what=f"it is {version}")
        yield url


def installed(version: str) -> Path | None:
    """Debian's own, if it is this one."""
    return DEBIANS if list(DEBIANS.parents[1].glob(f"lib/rabbitmq_server-{version}.*")) else None


def check_story(machine: Machine, shop: Shop) -> str:
    """Twelve rows in three shards, a worker killed with polls in hand; each row is paid once. What the workers said."""
    name = machine.folder.name  # the tests share a broker, in which each worker has a queue of its own
    first = shop.worker("-n", f"{name}1@%h")
    job = shop.submit("--max-rows", "4", rows=12)
    until(lambda: machine.batches(job), what="a batch is created")
    first.kill()
    second = shop.worker("-n", f"{name}2@%h")
    assert machine.run("wait", job, "--timeout", "80").code == 0, second.err
    assert [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")] == [f"r{n}" for n in range(12)]
    assert set(machine.billed(job).values()) == {1}
    second.popen.terminate()
    second.finish()
    return first.err + first.out + second.err + second.out


def test_a_job_ends_through_classic_queues(new_machine: NewMachine, rabbitmq: str) -> None:
    machine = new_machine("classic", BATCHPIPE_QUEUE="classic")
    said = check_story(machine, Shop(machine, rabbitmq))

    assert "Traceback" not in said


def test_a_job_ends_through_quorum_queues(new_machine: NewMachine, rabbitmq: str) -> None:
    """With the queues that a worker proposes; it has nothing to say of them."""
    machine = new_machine("quorum")
    said = check_story(machine, Shop(machine, rabbitmq, None, QUORUM))

    assert "Traceback" not in said
    assert "is a quorum queue" not in said


def test_a_site_that_has_only_said_quorum_is_told_the_line_and_its_job_ends(
    new_machine: NewMachine, rabbitmq: str
) -> None:
    """Polls that wait keep a worker from other tasks there: slow, and nothing lost."""
    machine = new_machine("said-quorum", BATCHPIPE_QUEUE="plain-quorum")
    said = check_story(
        machine, Shop(machine, rabbitmq, task_default_queue_type="quorum", task_default_queue="shop-quorum")
    )

    assert "is a quorum queue" in said
