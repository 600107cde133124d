"""Who sends a notification: any process that can, in a bounded time; what one lacks is no try and delays nobody."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from celery import Celery
from pydantic import SecretStr

from batchpipe.cli import doctor
from batchpipe.config.site import current_site
from batchpipe.config.target import Target
from batchpipe.errors import Paused, TransientError
from batchpipe.model.notifications import GIVE_UP_SECONDS, Notification
from batchpipe.pipeline.messages import Message, Next
from batchpipe.pipeline.notices import Notices
from batchpipe.pipeline.visits import Visits
from batchpipe.store import outbox as outbox_module
from batchpipe.store.outbox import Undelivered
from batchpipe.tasks import delivery, senders
from batchpipe.tasks.delivery import Deliverer
from batchpipe.tasks.publishing import deliver_soon
from batchpipe.tasks.senders import Lane
from batchpipe.testing import FakeOpenAI, Pump

SECRET = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
URL = "http://127.0.0.1:1/hook"


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    return Pump(tmp_path)


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are posted to; nothing leaves this process."""
    found: list[str] = []

    def post(url: str, body: bytes, headers: Any, allowed: Any) -> int:
        found.append(url)
        return 204

    monkeypatch.setattr(delivery, "post", post)
    return found


def note(number: int, target: str = "ops") -> Notification:
    return Notification(id=f"msg_{number}", type="job.ended", target=target, account="default", job="job_1", body="{}")


def deliverer(pump: Pump, **settings: Any) -> Deliverer:
    given = {"allowed_hosts": ("127.0.0.1",), **settings}
    return Deliverer(pump.settings.model_copy(update=given), pump.store)


def webhook(path: str = "") -> Target:
    return Target(url=SecretStr(f"{URL}{path}"), secret=SECRET)


LACKING: dict[str, tuple[str, dict[str, Any]]] = {
    "the secret for URLs of jobs": (URL, {}),
    "a secret that can be used": (URL, {"notify_secret": SecretStr("whsec_%%%")}),
    "the host": (URL, {"notify_secret": SECRET, "allowed_hosts": ("*.example.com",)}),
    "the target": ("ops", {}),
    "mail": ("mail", {"targets": {"mail": Target(kind="mail", to=("ops@example.com",))}}),
}


@pytest.mark.parametrize("what", LACKING)
def test_what_a_process_lacks_is_neither_a_try_nor_final_and_delays_nobody(
    pump: Pump, posted: list[str], what: str
) -> None:
    """A laptop's `run` sweeps the same Redis as the workers, and knows less. Whoever can send it does so at once."""
    target, lacking = LACKING[what]
    pump.store.outbox.add(note(1, target))
    sent: list[str] = []
    for _ in range(20):
        assert deliverer(pump, **lacking).deliver_due() == 0
        pump.advance(5)
    [waiting] = pump.store.outbox.waiting(10)
    assert (waiting.tries, waiting.due_at <= pump.store.now()) == (0, True)

    current_site().send_mail = lambda subject, text, to: sent.append(subject)
    able = deliverer(
        pump, notify_secret=SECRET, targets={"ops": webhook(), "mail": Target(kind="mail", to=("ops@example.com",))}
    )
    if target == "mail":
        body = '{"type": "job.ended", "data": {"account": "default", "code": "", "message": ""}}'
        pump.store.connection.client.hset(
            f"{pump.store.connection.prefix}notification:msg_1", mapping={"body": body, "type": "account.paused"}
        )
    assert able.deliver_due() == 1
    assert posted or sent


def test_what_nobody_can_send_is_put_off_and_given_up_after_a_day_with_what_was_lacking(
    pump: Pump, posted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It stands in the way of nobody meanwhile, and the log says once what is lacking."""
    pump.store.outbox.add(note(1, URL))
    passes = 0
    while not pump.store.outbox.dead(1):
        deliverer(pump).deliver_due()
        pump.advance(60)
        passes += 1
    [dead] = pump.store.outbox.dead(1)
    assert (dead.tries, "NOTIFY_SECRET is not set" in dead.error) == (0, True)
    assert GIVE_UP_SECONDS - 7_200 <= passes * 60 <= GIVE_UP_SECONDS + 7_200
    said = [record.levelno for record in caplog.records if "NOTIFY_SECRET" in record.getMessage()]
    assert said == [logging.WARNING, logging.ERROR]


def test_a_private_address_that_other_settings_allow_is_left_to_them(pump: Pump) -> None:
    """That it is private shows only when it is looked up."""
    pump.store.outbox.add(note(1, URL))
    deliverer(pump, notify_secret=SECRET, allowed_hosts=()).deliver_due()
    [waiting] = pump.store.outbox.waiting(10)
    assert (waiting.tries, "not public" in waiting.error) == (0, True)


# -- how much is sent, and when ------------------------------------------------------------------------------------


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A receiver that answers only at the end; each of its senders waits for ten seconds at most."""
    end = threading.Event()

    def post(url: str, body: bytes, headers: Any, allowed: Any) -> int:
        end.wait(10)
        raise OSError("did not answer")

    monkeypatch.setattr(delivery, "post", post)
    yield end
    end.set()


def test_no_more_are_taken_than_can_be_sent_in_the_time_there_is(pump: Pump, hanging: threading.Event) -> None:
    """The others stay due, for whoever comes next."""
    for number in range(50):
        pump.store.outbox.add(note(number))
    pump.advance(1)
    begun = time.monotonic()
    deliverer(pump, targets={"ops": webhook()}).deliver_due(begin=0.5, wait_for=1.0)
    assert time.monotonic() - begun < 5
    assert 50 - senders.AT_ONCE <= len(pump.store.outbox.due(100)) < 50


def test_a_sweep_asks_a_worker_to_send_and_waits_for_no_receiver(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, posted: list[str]
) -> None:
    """Once in ten seconds over all sweeps, and only if anything is due; where no worker listens, a command sends it."""
    asked: list[str] = []
    monkeypatch.setattr(delivery, "deliver_soon", asked.append)
    ours = deliverer(pump, targets={"ops": webhook()})
    pump.store.queues.note_listening("worker@a", [pump.settings.queue])
    ours.see_to(here=True)
    assert asked == []

    pump.store.outbox.add(note(1))
    for _ in range(3):
        ours.see_to(here=True)
        ours.see_to(here=False)
    assert (asked, posted) == ([pump.settings.queue], [])

    pump.store.queues.forget_listening("worker@a", [pump.settings.queue])
    ours.see_to(here=False)
    assert posted == []
    ours.see_to(here=True)
    assert (len(asked), posted) == (1, [URL])


def test_a_sweep_that_sends_by_itself_waits_for_receivers_a_little_only(
    pump: Pump, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has begun goes on beside it."""
    monkeypatch.setattr(delivery, "INLINE_SECONDS", 0.5)
    pump.store.outbox.add(note(1))
    begun = time.monotonic()
    deliverer(pump, targets={"ops": webhook()}).see_to(here=True)
    assert time.monotonic() - begun < 5
    hanging.set()
    until = time.monotonic() + 5
    while time.monotonic() < until and not pump.store.outbox.waiting(1)[0].error:
        time.sleep(0.02)
    assert pump.store.outbox.waiting(1)[0].error == "did not answer"


ABOUT_A_PAUSE = '{"type": "account.paused", "data": {"account": "default", "code": "", "message": ""}}'
TWO_WAYS = {
    "ops": webhook(),
    "mail": Target(kind="mail", to=("ops@example.com",)),
    "boss": Target(kind="mail", to=("boss@example.com",)),
}


def test_a_mail_backend_that_never_returns_costs_one_thread_and_delays_no_other_target(
    pump: Pump, posted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call began ten threads more, which also held up the exit of the process. Meanwhile its mails are left to
    others, and once it returns it sends those that wait.
    """
    monkeypatch.setattr(delivery, "HANGS_SECONDS", 0.05)
    returns, sent = threading.Event(), list[str]()

    def send_mail(subject: str, text: str, to: list[str]) -> None:
        returns.wait(60)
        sent.extend(to)

    current_site().send_mail = send_mail
    for number, target in enumerate(["mail", "boss"] * 20):
        paused = msgspec.structs.replace(note(number, target), type="account.paused", body=ABOUT_A_PAUSE)
        pump.store.outbox.add(paused)
    pump.advance(1)
    ours = deliverer(pump, targets=TWO_WAYS)
    for number in range(100, 105):
        pump.store.outbox.add(note(number))
        ours.deliver_due(begin=0.2, wait_for=0.2)
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("deliver")]
    waiting = pump.store.outbox.waiting(100)
    assert (threads, posted, sent) == (["deliver-mail"], [URL] * 5, [])
    assert [one.tries for one in waiting] == [0] * 40
    assert sum("the mail backend here has not come to an end" in one.error for one in waiting) == 39

    returns.set()
    until = time.monotonic() + 10
    while len(sent) < 40 and time.monotonic() < until:
        ours.deliver_due()
        pump.advance(1)
    assert sorted(sent) == ["boss@example.com"] * 20 + ["ops@example.com"] * 20


def test_a_delivery_that_hangs_does_not_hold_up_the_exit_of_the_process() -> None:
    """One that has just begun gets the rest of its time."""
    code = (
        "import time, threading; from batchpipe.tasks import senders; senders.LAST_SECONDS = 0.5\n"
        "senders.Lane('a', 1).submit(lambda: threading.Event().wait())\n"
        "lane = senders.Lane('b', 1); lane.submit(lambda: not time.sleep(0.2) and print('delivered', flush=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "delivered\n", "")


def test_a_lane_begins_no_more_at_once_than_it_has_threads_and_none_that_was_cancelled() -> None:
    lane, go_on, ran = Lane("test", 2), threading.Event(), list[int]()

    def work(number: int) -> bool:
        ran.append(number)
        return go_on.wait(30)

    futures = [lane.submit(partial(work, number)) for number in range(10)]
    until = time.monotonic() + 10
    while len(ran) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert (sorted(ran), lane.busy_for() > 0) == ([0, 1], True)
    lane.cancel(futures[5:])
    go_on.set()
    assert [future.result(10) for future in futures[:5]] == [True] * 5
    assert sorted(ran) == [0, 1, 2, 3, 4]


# -- asking for it must fail nothing -------------------------------------------------------------------------------


def app_with(redis_url: str, **configuration: Any) -> Celery:
    app = Celery("site", broker=redis_url, set_as_current=False)
    app.conf.update(configuration)
    current_site().app = app
    return app


def test_asking_a_worker_to_send_makes_the_queue_where_a_site_creates_none_by_itself(
    redis_url: str, prefix: str
) -> None:
    """``task_create_missing_queues = False``: Celery raises QueueNotFound, a KeyError."""
    app = app_with(redis_url, task_create_missing_queues=False)
    deliver_soon(prefix)
    with app.connection_for_write() as connection:
        assert connection.default_channel.client.llen(prefix) == 1


@pytest.mark.parametrize("wrong", [{"task_always_eager": True}, {"broker_url": "nonsense://x"}])
def test_asking_a_worker_to_send_raises_nothing(redis_url: str, wrong: dict[str, Any]) -> None:
    """It is asked for in the midst of turns."""
    app_with(redis_url, **wrong)
    deliver_soon("batchpipe")


def test_a_full_outbox_is_said_once_and_asks_nobody(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, chat_rows: Callable[..., Any]
) -> None:
    """News that is dropped in silence looks like a quiet day."""
    monkeypatch.setattr(outbox_module, "MOST_WAITING", 0)
    asked: list[str] = []
    settings = pump.settings.model_copy(update={"notify": ("ops",)})
    notices = Notices(settings, pump.store, asked.append)
    job_id = pump.submit(chat_rows(1))
    for event in ("overdue", "not_notified"):
        notices.job_trouble(job_id, event, "it is late")
    said = [record for record in caplog.records if "too many notifications wait" in record.getMessage()]
    assert (len(said), asked) == (1, [])


def test_a_site_whose_app_raises_when_it_is_asked_to_send_fails_no_turn(
    pump: Pump, chat_rows: Callable[..., Any]
) -> None:
    """The news is recorded, and due: a sweep asks again."""

    def fail(queue: str) -> None:
        raise RuntimeError("of a site")

    settings = pump.settings.model_copy(update={"notify": ("ops",)})
    Notices(settings, pump.store, fail).job_trouble(pump.submit(chat_rows(1)), "overdue", "it is late")
    pump.advance(1)
    assert pump.store.outbox.is_due()


def test_an_account_is_paused_whatever_asking_for_its_notice_raises(
    tmp_path: Path, redis_url: str, chat_rows: Callable[..., Any]
) -> None:
    """Each further call would be refused, too: the pause must stand when the turn ends."""
    app_with(redis_url, broker_url="nonsense://x")
    pump = Pump(tmp_path, api=FakeOpenAI())
    settings = pump.settings.model_copy(update={"notify": ("ops",)})
    pump.shard_runner.notices = Notices(settings, pump.store, deliver_soon)
    pump.submit(chat_rows(1))
    pump.api.fail_next("upload", Paused("no money", code="insufficient_quota"))
    for _ in range(10):
        pump.step()
        pump.advance(1)
    assert pump.store.accounts.pause_of("default") is not None
    assert [one.type for one in pump.store.outbox.waiting(10)] == ["account.paused"]


@pytest.mark.parametrize("waiting", [10_000, 9_999])
def test_doctor_says_that_news_is_dropped(waiting: int) -> None:
    """What is not recorded is listed nowhere."""
    told = SimpleNamespace(counts=lambda: Undelivered(waiting, 0), unknown_targets=list, stuck=lambda seconds: [])
    client: Any = SimpleNamespace(notifications=lambda: told)
    assert [found.verdict for found in doctor._notifications(client)] == (["fail"] if waiting == 10_000 else [])


def test_an_error_of_a_turn_is_not_hidden_by_a_broker_that_takes_no_message() -> None:
    """What the turn has led to is left to the sweep."""

    def publish(message: Message) -> None:
        raise TransientError("no broker", code="broker_unavailable")

    visits = Visits(publish)
    message = Message("job_1", 0, 1, "planned", [], "", small=True)

    def first() -> Next:
        visits.publish(message)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        visits.go_on(message, first, lambda *_: pytest.fail("no further turn"))
