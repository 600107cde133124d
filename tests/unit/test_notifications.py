"""News out: who is told what, signed and in order; what a receiver that fails, hangs or lies costs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from pydantic import SecretStr

from batchpipe.cli import doctor
from batchpipe.client.client import Client
from batchpipe.client.notifications import Notifications
from batchpipe.client.option_checks import check_targets
from batchpipe.config.account import Account
from batchpipe.config.loading import load_settings
from batchpipe.config.site import current_site
from batchpipe.config.target import Target
from batchpipe.errors import InvalidInput, SettingsError
from batchpipe.model.notifications import Notification, in_words
from batchpipe.model.records import JobRecord, Problem
from batchpipe.pipeline.notices import Notices
from batchpipe.storage.outgoing import post
from batchpipe.tasks.delivery import Deliverer
from batchpipe.testing import Pump

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
Rows = Callable[..., list[dict[str, object]]]


@dataclass
class Receiver:
    """A server that is told; it answers with these statuses, then with 204."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = found.statuses.pop(0) if found.statuses else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", found.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield found
    server.shutdown()
    server.server_close()


def pump_of(folder: Path, receiver: Receiver, **settings: Any) -> Pump:
    target = Target(url=SecretStr(receiver.url), secret=SecretStr(SECRET))
    account = Account(api_key=SecretStr("test"), notify=tuple(settings.get("targets", {"ops": target})))
    given = {
        "targets": {"ops": target},
        "accounts": {"default": account},
        "allowed_hosts": ("127.0.0.1",),
        **settings,
    }
    return Pump(folder, **given)


def deliver(pump: Pump) -> int:
    pump.advance(1)  # what was recorded just now is due
    return Deliverer(pump.settings, pump.store).deliver_due()


def test_the_end_of_a_job_is_told_once_and_signed_as_standard_webhooks(
    tmp_path: Path, receiver: Receiver, chat_rows: Rows
) -> None:
    """The receiver checks it by a library; the body has the job and no row of it."""
    pump = pump_of(tmp_path, receiver)
    job_id = pump.submit(chat_rows(2), name="nightly")
    pump.run_until_idle()
    assert deliver(pump) == 1
    assert deliver(pump) == 0
    [(headers, body)] = receiver.requests
    told = json.loads(body)
    assert (told["type"], told["data"]["id"], told["data"]["state"]) == ("job.ended", job_id, "succeeded")
    assert told["data"]["rows"]["ok"] == 2
    assert "messages" not in body.decode()
    checker = OpenAI(api_key="none").webhooks  # an implementation of Standard Webhooks that is not ours
    checker.verify_signature(body.decode(), headers, secret=SECRET)


def test_targets_of_the_job_its_account_and_all_are_told_each_once(
    tmp_path: Path, receiver: Receiver, chat_rows: Rows
) -> None:
    """A name that is given twice is one target; a URL is signed with NOTIFY_SECRET."""
    pump = pump_of(tmp_path, receiver, notify_secret=SecretStr(SECRET))
    pump.submit(chat_rows(1), notify=["ops", f"{receiver.url}/mine"])
    pump.run_until_idle()
    assert deliver(pump) == 2
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 2


def test_a_target_hears_only_of_what_it_asks_for(tmp_path: Path, receiver: Receiver, chat_rows: Rows) -> None:
    """``events`` of a target."""
    quiet = Target(url=SecretStr(receiver.url), secret=SecretStr(SECRET), events=("account.paused",))
    pump = pump_of(tmp_path, receiver, targets={"ops": quiet})
    pump.submit(chat_rows(1))
    pump.run_until_idle()
    assert deliver(pump) == 0


def test_a_receiver_that_fails_is_told_again_and_delays_nobody(
    tmp_path: Path, receiver: Receiver, chat_rows: Rows
) -> None:
    """With the same id, so that it can tell that it knows."""
    receiver.statuses = [500, 302]
    pump = pump_of(tmp_path, receiver)
    pump.submit(chat_rows(1))
    pump.run_until_idle()
    assert deliver(pump) == 0
    for _ in range(2):
        pump.advance(120)
        deliver(pump)
    assert len(receiver.requests) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert pump.store.outbox.counts() == (0, 0)


def test_a_receiver_that_is_gone_is_not_told_again(tmp_path: Path, receiver: Receiver, chat_rows: Rows) -> None:
    """410 says so; the notification is listed as given up."""
    receiver.statuses = [410]
    pump = pump_of(tmp_path, receiver)
    pump.submit(chat_rows(1))
    pump.run_until_idle()
    deliver(pump)
    [dead] = pump.store.outbox.dead(10)
    assert "410" in dead.error


def test_a_private_address_is_told_only_if_it_is_named_in_full(receiver: Receiver) -> None:
    """A pattern does not allow it, nor does the lack of a list: a job's URL must not reach into the network."""
    assert post(receiver.url, b"{}", {}, ["127.0.0.1"]) == 204
    for allowed in ([], ["*"], ["127.0.0.*"]):
        with pytest.raises(
            InvalidInput, match=r"notify: 127\.0\.0\.1 .*not public: name it in full in BATCHPIPE_ALLOW"
        ):
            post(receiver.url, b"{}", {}, allowed)
    with pytest.raises(InvalidInput, match=r"notify: localhost .*not public: name it in full in BATCHPIPE_ALLOWED_H"):
        post(receiver.url.replace("127.0.0.1", "localhost"), b"{}", {}, [])
    assert len(receiver.requests) == 1


def test_a_host_that_is_not_allowed_is_refused_at_submit_and_when_it_is_sent(receiver: Receiver) -> None:
    """The settings may have changed in between."""
    with pytest.raises(InvalidInput, match=r"127\.0\.0\.1 is not among ALLOWED_HOSTS"):
        post(receiver.url, b"{}", {}, ["hooks.example.com"])
    settings = load_settings(env_file=None).model_copy(update={"allowed_hosts": ("*.example.com",)})
    check_targets(JobRecord(id="job_x", notify=["https://a.example.com/x"]), settings)
    with pytest.raises(InvalidInput, match=r"notify: b\.example\.org is not among ALLOWED_HOSTS"):
        check_targets(JobRecord(id="job_x", notify=["https://b.example.org/x"]), settings)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.0.0.7", "localhost", "LOCALHOST.", "a.localhost", "[::1]", "169.254.169.254", "2130706433"],
)
def test_an_address_that_is_plainly_private_is_refused_at_submit(host: str) -> None:
    """It would be told to nobody, which a person heard of a day later. One that a look-up finds out waits for that."""
    settings = load_settings(env_file=None)
    job = JobRecord(id="job_x", notify=[f"http://{host}:8080/hook"])
    for allowed in ((), ("*",)):
        with pytest.raises(
            InvalidInput, match=r"leads to an address that is not public: name it in full in BATCHPIPE_A"
        ):
            check_targets(job, settings.model_copy(update={"allowed_hosts": allowed}))
    check_targets(job, settings.model_copy(update={"allowed_hosts": (host.strip("[]"),)}))
    check_targets(JobRecord(id="job_x", notify=["https://hooks.example.com/x"]), settings)


def test_a_secret_in_a_url_of_a_job_is_refused() -> None:
    """It would stand in Redis, in job.json and in logs."""
    with pytest.raises(InvalidInput, match="secret in it"):
        check_targets(JobRecord(id="job_x", notify=["https://u:p@example.com/x"]), load_settings(env_file=None))


def test_a_name_that_no_setting_has_is_refused_with_the_names_there_are(receiver: Receiver) -> None:
    """Only where this process has targets: else those of the workers count."""
    settings = load_settings(env_file=None)
    check_targets(JobRecord(id="job_x", notify=["ops"]), settings)
    target = Target(url=SecretStr(receiver.url), secret=SecretStr(SECRET))
    known = settings.model_copy(update={"targets": {"ops": target}})
    with pytest.raises(InvalidInput, match="no target 'oops' in the settings; known are: ops"):
        check_targets(JobRecord(id="job_x", notify=["oops"]), known)


def test_an_account_that_is_paused_is_told_once_for_many_shards(tmp_path: Path, receiver: Receiver) -> None:
    """A thousand shards meet the same pause."""
    pump = pump_of(tmp_path, receiver)
    notices = Notices(pump.settings, pump.store)
    for _ in range(5):
        notices.account_paused("default", Problem(code="insufficient_quota", message="no money"), 300)
    assert deliver(pump) == 1
    assert receiver.documents()[0]["data"]["code"] == "insufficient_quota"
    pump.advance(7 * 3_600)
    notices.account_paused("default", Problem(code="insufficient_quota", message="no money"), 300)
    assert deliver(pump) == 1


def test_trouble_of_a_job_is_told(tmp_path: Path, receiver: Receiver, chat_rows: Rows) -> None:
    """A batch that somebody else has cancelled holds the job."""
    pump = pump_of(tmp_path, receiver)
    job_id = pump.submit(chat_rows(1))
    pump.job_runner.log(job_id, [("cancelled_elsewhere", {"message": "batch_1 was cancelled at the provider"})])
    assert deliver(pump) == 1
    told = receiver.documents()[0]
    assert (told["type"], told["data"]["id"]) == ("job.trouble", job_id)


def test_slack_gets_a_text_and_mail_goes_through_the_site(tmp_path: Path, receiver: Receiver, chat_rows: Rows) -> None:
    """Without a site that has mail it is left to another worker, which may have one."""
    slack = Target(kind="slack", url=SecretStr(receiver.url))
    mail = Target(kind="mail", to=("ops@example.com",))
    pump = pump_of(tmp_path, receiver, targets={"slack": slack, "mail": mail})
    pump.submit(chat_rows(1), name="<nightly>")
    pump.run_until_idle()
    assert deliver(pump) == 1
    assert "&lt;nightly&gt; succeeded" in receiver.documents()[0]["text"]
    [waiting] = pump.store.outbox.waiting(10)
    assert (waiting.target, waiting.tries) == ("mail", 0)
    sent: list[tuple[str, str, list[str]]] = []
    current_site().send_mail = lambda *mail: sent.append(mail)
    assert deliver(pump) == 1
    assert sent[0][0] == "batchpipe: job <nightly> succeeded"
    assert "1 ok of 1" in sent[0][1]


def test_a_notification_that_nobody_can_send_says_why_at_once(
    tmp_path: Path, receiver: Receiver, chat_rows: Rows
) -> None:
    """It stays due for those who can; `notifications` said for ever that it was not tried yet."""
    account = Account(api_key=SecretStr("test"), notify=("nobody",))
    pump = pump_of(tmp_path, receiver, accounts={"default": account})
    job_id = pump.submit(chat_rows(1))
    pump.run_until_idle()
    told = Notifications(pump.store, pump.settings)
    [note] = told.of_job(job_id)
    assert told.why(note) == "not tried yet; this process cannot: there is no target 'nobody' in the settings here"
    assert deliver(pump) == 0
    [note] = told.of_job(job_id)
    assert (told.why(note), note.tries) == ("there is no target 'nobody' in the settings here", 0)
    assert pump.store.outbox.is_due()
    assert told.stuck(300) == []
    pump.advance(301)
    assert [one.id for one in told.stuck(300)] == [note.id]


def test_names_of_targets_that_no_setting_has_are_found(tmp_path: Path, receiver: Receiver) -> None:
    """Those of all jobs and of each account; a URL needs no setting."""
    account = Account(api_key=SecretStr("test"), notify=("opps",))
    target = Target(url=SecretStr(receiver.url), secret=SecretStr(SECRET))
    pump = pump_of(tmp_path, receiver, targets={"ops": target}, accounts={"team": account})
    settings = pump.settings.model_copy(update={"notify": ("OPS", "typo", "https://example.com/x")})
    told = Notifications(pump.store, settings)
    assert told.unknown_targets() == [
        ("BATCHPIPE_NOTIFY", "typo"),
        ("BATCHPIPE_ACCOUNTS__TEAM__NOTIFY", "opps"),
    ]


def test_doctor_warns_of_what_is_stuck_and_of_names_that_are_no_target(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHPIPE_REDIS_URL", redis_url)
    monkeypatch.setenv("BATCHPIPE_PREFIX", prefix)
    monkeypatch.setenv("BATCHPIPE_NOTIFY", "nobody")
    client = Client()
    Notices(client.settings, client.store).account_paused("default", Problem(code="no_money", message="none"), 300)
    monkeypatch.setattr(doctor, "STUCK_SECONDS", -1.0)
    [unknown, stuck] = doctor._notifications(client)
    assert unknown.detail == "BATCHPIPE_NOTIFY names 'nobody', and there is no such target in the settings here"
    assert "to nobody: not tried yet; this process cannot: there is no target 'nobody'" in stuck.detail


def test_the_words_for_people_name_what_to_do() -> None:
    """A pause names the command that ends it."""
    body = json.dumps({"data": {"account": "default", "code": "insufficient_quota", "message": "no money"}})
    subject, text = in_words(Notification(id="m", type="account.paused", target="t", account="default", body=body))
    assert subject == "batchpipe: account default is paused (insufficient_quota)"
    assert "batchpipe resume default" in text


def test_a_target_that_lacks_something_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret is in it."""
    monkeypatch.setenv("BATCHPIPE_TARGETS__OPS__URL", "https://hooks.example.com/T0KEN")
    with pytest.raises(SettingsError, match="needs SECRET") as raised:
        load_settings(env_file=None)
    assert "T0KEN" not in str(raised.value)
