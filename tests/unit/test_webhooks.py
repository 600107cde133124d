"""Webhooks at each front door: what is taken, what is refused, and that what is refused writes nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI, OpenAIError

from batchpipe.client.client import Client, default_client
from batchpipe.client.waker import MOST_TO_WAKE, Waker
from batchpipe.client.webhooks import WebhookReceiver
from batchpipe.config.account import Account
from batchpipe.config.loading import load_settings
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.contrib.asgi import WebhookApp
from batchpipe.contrib.flask import BatchPipe, webhooks
from batchpipe.contrib.flask.views import registered
from batchpipe.errors import SettingsError, StoreUnavailable
from batchpipe.model.records import Stage
from batchpipe.model.webhooks import MOST_BYTES, Malformed, NotSigned, Verifier, secrets_of
from batchpipe.store import Store
from batchpipe.webhooks import asgi
from batchpipe.webhooks import server as web_server
from batchpipe.webhooks.server import WebhookServer
from tests import django_project
from tests.contract.store.protocol import claim, granted, shard, uploaded
from tests.redis_server import RedisServer


def secret(letter: str) -> str:
    return "whsec_" + base64.b64encode(letter.encode() * 32).decode()


OURS, OLD, TEAMS, FOREIGN = secret("o"), secret("l"), secret("t"), secret("f")
Answer = tuple[int, Any]
Send = Callable[..., Answer]
DOORS = ("asgi", "flask", "django", "process")


def event(batch: str = "batch_1", kind: str = "batch.completed") -> bytes:
    body = {"id": "evt_1", "object": "event", "created_at": 1, "type": kind, "data": {"id": batch}}
    return json.dumps(body).encode()


def signed(
    body: bytes, key: str = OURS, webhook_id: str = "wh_1", at: float | None = None, tampered: bytes | None = None
) -> dict[str, str]:
    """The headers of Standard Webhooks, made by hand."""
    stamp = str(int(time.time() if at is None else at))
    text = f"{webhook_id}.{stamp}.".encode() + (body if tampered is None else tampered)
    digest = hmac.new(base64.b64decode(key.removeprefix("whsec_")), text, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": webhook_id, "webhook-timestamp": stamp, "webhook-signature": signature}


# -- the doors -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that no other test writes to: these compare all that is in it."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture
def redis_url(server: RedisServer) -> str:
    """A database of this test alone."""
    return server.database()


@pytest.fixture(scope="module")
def sdk() -> OpenAI:
    return OpenAI(api_key="test", base_url="http://127.0.0.1:9")


@pytest.fixture
def client(redis_url: str, prefix: str, tmp_path: Path) -> Client:
    """Of a site with two accounts; the secret of the first is being changed."""
    return Client(
        Settings(
            _env_file=None,
            redis_url=redis_url,
            prefix=prefix,
            queue=f"{prefix}q",
            home=tmp_path / "home",
            accounts={
                "default": Account.model_validate({"webhook_secret": f"{OURS}, {OLD}"}),
                "team": Account.model_validate({"webhook_secret": [TEAMS]}),
                "silent": Account(),
            },
        )
    )


@pytest.fixture(params=DOORS)
def send(request: pytest.FixtureRequest, client: Client, redis_url: str, prefix: str, tmp_path: Path) -> Iterator[Send]:
    """Send a webhook (or what looks like one) to a door of this site."""
    yield from open_door(request.param, client, redis_url, prefix, tmp_path)


def open_door(
    door: str, client: Client, redis_url: str, prefix: str, tmp_path: Path, *, waits: bool = True
) -> Iterator[Send]:
    """``waits``: until a shard is woken, which the sender does not."""
    values: dict[str, Any] = {
        "REDIS_URL": redis_url,
        "PREFIX": prefix,
        "QUEUE": f"{prefix}q",
        "HOME": tmp_path / "home",
        "ACCOUNTS": {"default": {"webhook_secret": f"{OURS},{OLD}"}, "team": {"webhook_secret": TEAMS}},
    }
    if door == "asgi":
        yield asgi_door(lambda: client)
    elif door == "process":
        yield from process_door(client)
    elif door == "flask":
        app = Flask("shop")
        app.config.update({f"BATCHPIPE_{name}": value for name, value in values.items()})
        BatchPipe(app)
        app.register_blueprint(webhooks)
        yield flask_door(app, waits=waits)
    else:
        django_project.configure()
        with django_project.site(values.pop("REDIS_URL"), values.pop("PREFIX"), values.pop("HOME"), **values):
            yield django_door(waits=waits)


def asgi_door(client: Callable[[], Client]) -> Send:
    app = WebhookApp(client)

    def send(body: bytes, headers: dict[str, str], path: str = "", method: str = "POST") -> Answer:
        sent: list[Any] = []
        parts = [body[:10], body[10:]]

        async def receive() -> Any:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def answer(message: Any) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": f"/webhooks{path}", "headers": raw}
        asyncio.run(app(scope, receive, answer))
        if app._recorder is not None:
            app._recorder.receiver.waker.wait()
        return sent[0]["status"], json.loads(sent[1]["body"])

    return send


def process_door(client: Client) -> Iterator[Send]:
    server = WebhookServer(lambda: client, "127.0.0.1", 0)
    server.start()

    def send(body: bytes, headers: dict[str, str], path: str = "", method: str = "POST") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        try:
            connection.request(method, f"/webhooks{path}", body, headers)
            answer = connection.getresponse()
            found = answer.status, json.loads(answer.read())
            if found[1].get("effect") == "woken":
                time.sleep(0.1)  # what it wakes after its answer
                client.webhooks().waker.wait()
            return found
        finally:
            connection.close()

    yield send
    server.stop()


def flask_door(app: Flask, *, waits: bool = True) -> Send:
    browser = app.test_client()

    def send(body: bytes, headers: dict[str, str], path: str = "", method: str = "POST") -> Answer:
        answer = browser.open(f"/batchpipe/webhooks{path}", method=method, data=body, headers=headers)
        if waits:
            with app.app_context():
                registered().client.webhooks().waker.wait()
        return answer.status_code, answer.json

    return send


def django_door(*, waits: bool = True) -> Send:
    from django.test import Client as Browser

    browser = Browser(enforce_csrf_checks=True)

    def send(body: bytes, headers: dict[str, str], path: str = "", method: str = "POST") -> Answer:
        answer: Any = browser.generic(
            method, f"/batchpipe/webhooks{path}", body, content_type="application/json", headers=headers
        )
        if waits:
            default_client().webhooks().waker.wait()
        return answer.status_code, answer.json()

    return send


def created(store: Store, batch_id: str = "batch_1", **fields: Any) -> str:
    """A job whose one shard has this batch, and sleeps."""
    job_id = uploaded(store, queue=f"{store.connection.prefix}q", **fields)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.shards.settle(shard(store, job_id), batch_id, token=lease.token, after=600.0, changes={})
    return job_id


def whole(client: Client) -> dict[str, Any]:
    """All that is in Redis, but its clock, which each process reads once a second."""
    redis = cast(Any, client.store.connection.client)
    found = {}
    for key in redis.keys("*"):
        if key == client.store.connection.clock_key:
            continue
        kind = redis.type(key)
        read = {
            "hash": redis.hgetall,
            "string": redis.get,
            "set": redis.smembers,
            "list": lambda name: redis.lrange(name, 0, -1),
            "zset": lambda name: redis.zrange(name, 0, -1, withscores=True),
        }.get(kind, lambda name: redis.xlen(name))
        found[key] = (read(key), redis.ttl(key) >= 0)
    return found


# -- what is taken -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/default", "/default/", "/DEFAULT"])
def test_a_webhook_wakes_its_shard(client: Client, send: Send, path: str) -> None:
    """Under a new epoch, with a message in the queue; with and without the name of its account."""
    job_id = created(client.store)
    assert send(event(), signed(event()), path) == (200, {"received": True, "effect": "woken"})
    found = shard(client.store, job_id)
    assert (found.news_at is not None, found.epoch) == (True, 2)
    assert cast(Any, client.store.connection.client).llen(client.settings.queue) == 1


def test_a_repeat_is_taken_and_does_nothing(client: Client, send: Send) -> None:
    """The sender repeats what it thinks was lost; somebody else may replay what he has seen."""
    job_id = created(client.store)
    send(event(), signed(event()))
    before = whole(client)
    assert send(event(), signed(event())) == (200, {"received": True, "effect": "repeated"})
    assert whole(client) == before
    assert shard(client.store, job_id).epoch == 2


@pytest.mark.parametrize("kind", ["response.completed", "batch.something_new", "batch.in_progress", ""])
def test_other_events_are_taken_and_change_nothing(client: Client, send: Send, kind: str) -> None:
    """The same endpoint may be told of more than batches."""
    created(client.store)
    before = whole(client)
    assert send(event(kind=kind), signed(event(kind=kind))) == (200, {"received": True, "effect": "ignored"})
    assert whole(client) == before


def test_a_batch_that_nobody_knows_is_kept_for_a_while(client: Client, send: Send) -> None:
    """Its create call may not be answered yet."""
    assert send(event("batch_9"), signed(event("batch_9"))) == (200, {"received": True, "effect": "early"})


def test_each_secret_of_an_account_is_good_and_only_for_that_account(client: Client, send: Send) -> None:
    """While it is changed there are two. Where the URL names an account, no other one's counts."""
    ours, teams = created(client.store), created(client.store, "batch_2", account="team")
    assert send(event(), signed(event(), OLD))[1]["effect"] == "woken"
    assert send(event("batch_2"), signed(event("batch_2"), OURS, "wh_2"))[1]["effect"] == "early"
    assert send(event("batch_2"), signed(event("batch_2"), TEAMS, "wh_3"), "/default")[0] == 400
    assert shard(client.store, teams).news_at is None
    assert send(event("batch_2"), signed(event("batch_2"), TEAMS, "wh_3"), "/team")[1]["effect"] == "woken"
    assert shard(client.store, ours).news_at is not None


def test_one_of_several_signatures_suffices(client: Client, send: Send) -> None:
    """The sender signs with the old and the new secret while its own is changed."""
    headers = signed(event())
    headers["webhook-signature"] = (
        f"v2,AAAA {signed(event(), FOREIGN)['webhook-signature']} " + signed(event())["webhook-signature"]
    )
    assert send(event(), headers)[0] == 200


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_only_post_is_taken(client: Client, send: Send, method: str) -> None:
    """Though it were signed."""
    assert send(event(), signed(event()), method=method)[0] == 405


def test_what_is_too_large_is_not_read(client: Client, send: Send) -> None:
    """Though it were signed; the largest that may come is taken."""
    created(client.store)
    before = whole(client)
    body = event()[:-1] + b', "x": "' + b"x" * MOST_BYTES + b'"}'
    assert send(body, signed(body))[0] == 413
    assert whole(client) == before
    body = event() + b" " * (MOST_BYTES - len(event()))
    assert send(body, signed(body))[0] == 200


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60)
WRONG_IDS = st.one_of(
    st.just(""), TEXT.filter(lambda text: " " in text.strip()), st.text("a", min_size=201, max_size=999)
)
WRONG_DATA: list[Any] = [None, [], "", 7, {}, {"id": None}, {"id": ""}, {"id": 7}, {"id": "a b"}, {"id": "\0"}]


@st.composite
def refused(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """Forged, tampered with, too late, too early, malformed, or nonsense: never what a sender of ours sends."""
    how = draw(st.sampled_from(["key", "body", "late", "early", "gone", "changed", "id", "noise", "malformed"]))
    body, now = event(), time.time()
    if how == "key":
        return body, signed(body, draw(st.sampled_from([FOREIGN, "whsec_", secret("x")])))
    if how == "body":
        other = draw(st.binary(max_size=300).filter(lambda data: data != body))
        return body, signed(body, tampered=other)
    if how == "late":
        return body, signed(body, at=now - 302 - draw(st.integers(0, 10**9)))
    if how == "early":
        return body, signed(body, at=now + 305 + draw(st.integers(0, 10**12)))
    if how == "gone":
        name = draw(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]))
        return body, {key: value for key, value in signed(body).items() if key != name}
    if how == "changed":
        name = draw(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]))
        value = draw(TEXT.filter(lambda text: text.strip() not in signed(body).values()))
        return body, {**signed(body), name: value}
    if how == "id":
        return body, signed(body, webhook_id=draw(WRONG_IDS))
    if how == "noise":
        return draw(st.binary(max_size=2_000)), {name: draw(TEXT) for name in signed(body)}
    wrong = draw(
        st.one_of(
            st.binary(max_size=200).filter(lambda data: not data.strip().startswith(b"{")),
            st.sampled_from([b"[" * 30_000, b'{"type": ' + b"[" * 30_000, b'{"type": 1}', b"null", b'{"data": {}}']),
            st.sampled_from(
                [None, [], "", 7, {}, {"id": None}, {"id": ""}, {"id": 7}, {"id": "a b"}, {"id": "\0"}]
            ).map(lambda data: json.dumps({"type": "batch.failed", "data": data}).encode()),
            st.integers(201, 3_000).map(lambda size: event("b" * size)),
        )
    )
    return wrong, signed(wrong)


@pytest.fixture
def before(client: Client) -> dict[str, Any]:
    created(client.store)
    return whole(client)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=refused(), path=st.sampled_from(["", "/", "/default", "/team", "/silent", "/nobody", "/%00", "/ä"]))
def test_what_is_refused_writes_nothing_and_is_no_error_of_ours(
    send: Send, client: Client, before: dict[str, Any], what: tuple[bytes, dict[str, str]], path: str
) -> None:
    """Whatever comes in: 400; the whole Redis is as it was."""
    body, headers = what
    status, answer = send(body, headers, path.replace("ä", "%C3%A4"))
    assert (status, set(answer)) == (400, {"error"})
    assert whole(client) == before


@settings(max_examples=300, deadline=None)
@given(what=refused())
def test_the_sdk_refuses_what_we_refuse(sdk: OpenAI, what: tuple[bytes, dict[str, str]]) -> None:
    """Its check and that of ours agree, but for bodies that say nothing, which only we look into."""
    body, headers = what
    with pytest.raises((NotSigned, Malformed)) as ours:
        Verifier({"default": [OURS]}).check(body, {name: value.strip() for name, value in headers.items()})
    if ours.type is NotSigned and headers["webhook-timestamp"].isascii():
        with pytest.raises((OpenAIError, ValueError, TypeError)):
            sdk.webhooks.verify_signature(body, headers, secret=OURS)


@settings(max_examples=100, deadline=None)
@given(body=st.dictionaries(st.text(max_size=9), st.integers()), at=st.integers(-298, 298))
def test_we_take_what_the_sdk_takes(sdk: OpenAI, body: dict[str, int], at: int) -> None:
    """Signed by hand, within five minutes."""
    raw = json.dumps({**body, "type": "batch.failed", "data": {"id": "batch_1"}}).encode()
    headers = signed(raw, at=time.time() + at)
    sdk.webhooks.verify_signature(raw, headers, secret=OURS)
    found = Verifier({"default": [OLD, OURS], "team": [OURS], "x": [TEAMS]}).check(raw, headers)
    assert (found.accounts, found.batch_id) == (("default", "team"), "batch_1")


# -- trouble -------------------------------------------------------------------------------------------------------


def test_while_redis_is_away_the_sender_is_asked_to_come_again(client: Client) -> None:
    """What cannot be recorded is not taken."""

    def away() -> Store:
        raise StoreUnavailable("Redis does not answer")

    receiver = WebhookReceiver(client.settings, away, lambda job, index: None)
    assert receiver.receive(event(), signed(event())).status == 503


def test_where_no_account_has_a_secret_nothing_is_received(client: Client) -> None:
    """And the log says why."""
    bare = client.settings.model_copy(update={"accounts": {}})
    receiver = WebhookReceiver(bare, lambda: client.store, lambda job, index: None)
    assert receiver.receive(event(), signed(event())).status == 404


@pytest.mark.parametrize("is_signed", [True, False], ids=["signed by another account", "malformed"])
def test_the_answer_does_not_tell_which_accounts_have_a_secret(
    send: Send, is_signed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody may ask. The log tells the two apart: else a wrong URL looked like a wrong secret."""
    headers = signed(event(), TEAMS) if is_signed else {}
    answers = [send(event(), headers, path) for path in ("/default", "/silent", "/nobody")]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] == 400
    named = [record for record in caplog.records if "its URL names an account that has no" in record.getMessage()]
    assert len(named) == (1 if is_signed else 0)


@pytest.mark.parametrize("path", ["/webhooks/team/x", "/hooks/team"])
def test_a_path_that_is_none_of_ours_is_not_found(client: Client, path: str) -> None:
    """It was checked as one to `/webhooks`, also where its signature is right: a wrong URL was never noticed."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": event()}

    async def answer(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in signed(event()).items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
    asyncio.run(WebhookApp(lambda: client)(scope, receive, answer))
    assert sent[0]["status"] == 404


def test_a_broker_in_trouble_is_left_to_the_sweep(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One webhook finds out, but not the very first, which may only be slow; those after it do not wait."""
    asked: list[str] = []

    def slow(job: str, index: int) -> None:
        asked.append(job)
        now[0] += 3.0
        raise StoreUnavailable

    now = [1_000.0]
    monkeypatch.setattr("batchpipe.client.webhooks.time.monotonic", lambda: now[0])
    receiver = WebhookReceiver(client.settings, lambda: client.store, slow)
    for name in ("first", "a", "b", "c"):
        receiver.wake((name, 0))
    assert asked == ["first", "a"]
    now[0] += 10.1
    receiver.wake(("d", 0))
    assert asked == ["first", "a", "d"]


@pytest.mark.parametrize("door", ["flask", "django"])
def test_no_answer_waits_for_the_broker(
    client: Client, redis_url: str, prefix: str, tmp_path: Path, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that hangs costs seconds; OpenAI counts a late answer as a failure. Each app publishes to its own."""
    published, hangs = list[object](), threading.Event()

    def publish(self: WebhookReceiver, place: tuple[str, int]) -> None:
        hangs.wait(10)
        published.append((place[1], current_site().settings.prefix))

    monkeypatch.setattr(WebhookReceiver, "wake", publish)
    created(client.store)
    doors = open_door(door, client, redis_url, prefix, tmp_path, waits=False)
    begun = time.monotonic()
    assert next(doors)(event(), signed(event()))[1]["effect"] == "woken"
    assert time.monotonic() - begun < 5
    assert published == []
    hangs.set()
    until = time.monotonic() + 10
    while not published and time.monotonic() < until:
        time.sleep(0.02)
    assert published == [(0, prefix)]


def test_whoever_wakes_shards_keeps_room_whatever_happens() -> None:
    """A count that two threads change may lose a change, and then stays wrong for good."""
    woken = list[int]()

    def wake(place: tuple[str, int]) -> None:
        woken.append(place[1])
        if place[1] % 2:
            raise ZeroDivisionError

    waker = Waker(wake)
    for number in range(5 * MOST_TO_WAKE):
        waker.soon(("job", number))
        if number % 50 == 49:
            waker.wait()
    assert woken == list(range(5 * MOST_TO_WAKE))


def test_a_flood_of_ends_is_left_to_the_sweep_for_a_while() -> None:
    """It is another process, and reads many records at once."""
    hangs, woken = threading.Event(), list[int]()

    def wake(place: tuple[str, int]) -> None:
        hangs.wait(10)
        woken.append(place[1])

    waker = Waker(wake)
    for number in range(3 * MOST_TO_WAKE):
        waker.soon(("job", number))
    hangs.set()
    waker.wait()
    assert woken == list(range(MOST_TO_WAKE))
    waker.soon(("job", -1))
    waker.wait()
    assert -1 not in woken


@pytest.mark.parametrize("gone", [False, True])
def test_a_body_that_does_not_come_is_answered_unless_the_sender_has_hung_up(
    client: Client, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """A server sends 500 for an app that returns without an answer."""
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.1)
    sent: list[Any] = []

    async def receive() -> Any:
        if not gone:
            await asyncio.sleep(10)
        return {"type": "http.disconnect"}

    async def answer(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/webhooks", "headers": []}
    asyncio.run(WebhookApp(lambda: client)(scope, receive, answer))
    assert [message["status"] for message in sent[:1]] == ([] if gone else [408])


def test_refusals_are_logged_once_a_minute(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Anybody may send them. No secret is named."""
    receiver = client.webhooks()
    with caplog.at_level("WARNING"):
        for _ in range(50):
            receiver.receive(event(), signed(event(), FOREIGN))
    assert len(caplog.records) == 1
    assert "WEBHOOK_SECRET" in caplog.text
    assert OURS not in caplog.text


def test_wrong_settings_of_a_site_are_no_error_page() -> None:
    """The sender comes again; the log says what is wrong."""

    def wrong() -> Client:
        raise SettingsError("BATCHPIPE_POLL_MIN_SECONDS: must be a number")

    assert asgi_door(cast(Any, wrong))(event(), signed(event()))[0] == 503


def test_the_process_closes_connections_that_send_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that send half a request, a byte at a time; one that works is kept."""
    monkeypatch.setattr(web_server, "IDLE_SECONDS", 0.3)
    server = WebhookServer(lambda: client, "127.0.0.1", 0)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle:
            idle.sendall(b"POST /webhooks HTT")
            begun = time.monotonic()
            assert idle.recv(100) == b""
            assert time.monotonic() - begun < 5
    finally:
        server.stop()


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["sk-x", "whsec_", "whsec_AAAA", "whsec_%%%", f"{OURS} {OLD}", f"{OURS},x"])
def test_a_secret_that_is_none_is_refused_at_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one could be guessed. The message names the variable and has no part of the secret."""
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__TEAM__WEBHOOK_SECRET", wrong)
    with pytest.raises(SettingsError) as error:
        load_settings()
    said = "it begins with whsec_ and goes on in base64; separate several by commas"
    assert str(error.value) == f"BATCHPIPE_ACCOUNTS__TEAM__WEBHOOK_SECRET: no secret of a webhook: {said}"


def test_secrets_of_an_account_are_separated_by_commas() -> None:
    """Padding may lack."""
    assert secrets_of(f" {OURS} ,, {OLD.rstrip('=')},") == (OURS, OLD.rstrip("="))


def test_the_account_default_falls_back_to_the_variable_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the key; a wrong one is named when webhooks are received, for other programs may use it otherwise."""
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", OURS)
    assert Settings(_env_file=None).webhook_secrets() == {"default": (OURS,)}
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", "something else")
    wrong = Settings(_env_file=None)
    with pytest.raises(SettingsError, match=r"^OPENAI_WEBHOOK_SECRET: no secret of a webhook"):
        wrong.webhook_secrets()


def test_a_receiver_is_made_once(client: Client) -> None:
    """For each client of a site."""
    assert client.webhooks() is client.webhooks()
    assert current_site() is not None
