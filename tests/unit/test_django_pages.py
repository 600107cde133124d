"""Jobs as JSON and in the admin: who sees what, what is shown, and what happens when Redis is away."""

from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import batchpipe
from tests import django_project
from tests.django_project import land, requests

AWAY = "redis://127.0.0.1:1/0"
XSS = "<script>alert(1)</script>"
LIST = "/admin/batchpipe/job/"


@pytest.fixture(autouse=True)
def site(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[None]:
    django_project.configure()
    with django_project.site(redis_url, prefix, tmp_path / "home"):
        yield


@pytest.fixture
def away(tmp_path: Path, site: None) -> Iterator[None]:
    """Redis does not answer."""
    from django.test import override_settings

    with override_settings(BATCHPIPE={"REDIS_URL": AWAY, "HOME": tmp_path / "home"}):
        yield


def client(*, staff: bool = False, name: str = "ann", may: tuple[str, ...] = (), **options: Any) -> Any:
    """A browser with this user logged in; ``may`` are permissions on jobs."""
    from django.contrib.auth.models import Permission, User
    from django.test import Client

    user, _ = User.objects.get_or_create(username=name)
    user.is_staff = staff
    user.save()
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="batchpipe", codename__in=may))
    made = Client(**options)
    made.force_login(user)
    made.user = user
    return made


def boss(**options: Any) -> Any:
    return client(staff=True, name="boss", may=("view_job", "change_job"), **options)


def stranger() -> Any:
    from django.test import Client

    return Client()


def test_the_page_of_a_job_says_which_of_its_shards_wait_for_room_and_where(tmp_path: Path) -> None:
    """A shard that waits in line has no trouble: its row was empty."""
    from pydantic import SecretStr

    from batchpipe.client.client import default_client
    from batchpipe.config.account import Account
    from batchpipe.testing import FakeOpenAI, Pump

    narrow = {"default": Account(api_key=SecretStr("k"), batches_in_flight=1)}
    pump = Pump(tmp_path, api=FakeOpenAI(), store=default_client().store, accounts=narrow, max_rows=1)
    job = batchpipe.submit(requests(3), max_rows=1)
    for _ in range(60):
        pump.sweep()
        pump.step()
        pump.advance(5)
    page = boss().get(_change_url(job.id)).content.decode()
    rows = [line for line in page.splitlines() if "<td>planned</td>" in line]
    assert [place for place in ("(place 1 of 2)", "(place 2 of 2)") for row in rows if place in row] == [
        "(place 1 of 2)",
        "(place 2 of 2)",
    ]


# -- JSON ----------------------------------------------------------------------------------------------------------


def test_staff_see_where_jobs_stand() -> None:
    job = batchpipe.submit(requests(2), name="nightly")
    browser = client(staff=True, may=("view_job",))

    assert browser.get(f"/batchpipe/{job.id}/").json() == {**job.refresh().to_dict(), "shards_in_all": 0, "next": None}
    assert browser.get(f"/batchpipe/{job.id}/?from=2&limit=9").json()["shards"] == []
    assert browser.get(f"/batchpipe/{job.id}/?from=b").json()["error"]["message"] == "from: must be a number"
    answer = browser.get("/batchpipe/?state=pending&limit=5")
    assert answer.json() == {"jobs": [job.to_dict(shards=False)]}
    assert "no-store" in answer["Cache-Control"]
    assert browser.get("/batchpipe/?state=running").json() == {"jobs": []}


@pytest.mark.parametrize(
    ("who", "path", "status", "code"),
    [
        (stranger, "/batchpipe/", 401, "not_logged_in"),
        (stranger, "/batchpipe/{job}/", 401, "not_logged_in"),
        (stranger, "/batchpipe/job_unknown/", 401, "not_logged_in"),
        (client, "/batchpipe/{job}/", 403, "forbidden"),
        (client, "/batchpipe/job_unknown/", 404, "job_not_found"),
        (lambda: client(staff=True), "/batchpipe/{job}/", 403, "forbidden"),
        (lambda: client(staff=True), "/batchpipe/", 403, "forbidden"),
        (lambda: client(may=("view_job",)), "/batchpipe/{job}/", 403, "forbidden"),
        (client, "/batchpipe/", 403, "forbidden"),
        (lambda: client(staff=True, may=("view_job",)), "/batchpipe/job_unknown/", 404, "job_not_found"),
        (lambda: client(staff=True, may=("view_job",)), "/batchpipe/?state=happy", 400, "invalid_input"),
        (lambda: client(staff=True, may=("view_job",)), "/batchpipe/?limit=all", 400, "invalid_input"),
    ],
)
def test_what_is_refused_is_json_too(who: Callable[[], Any], path: str, status: int, code: str) -> None:
    job = batchpipe.submit(requests(2))
    answer = who().get(path.format(job=job.id))

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_site_may_let_users_see_their_own_jobs() -> None:
    from django.test import override_settings

    ann, bob = client(name="ann"), client(name="bob")
    job = batchpipe.submit(requests(2), tags={"user": ann.user.pk})
    with override_settings(BATCHPIPE_VIEW_PERMISSION="batchpipe.contrib.django.access.owner_or_staff"):
        assert ann.get(f"/batchpipe/{job.id}/").status_code == 200
        assert [one["id"] for one in ann.get("/batchpipe/").json()["jobs"]] == [job.id]
        assert bob.get(f"/batchpipe/{job.id}/").status_code == 403
        assert bob.get("/batchpipe/").json() == {"jobs": []}
        assert stranger().get("/batchpipe/").status_code == 401


def test_who_is_not_logged_in_sees_what_the_sites_own_rule_lets_him() -> None:
    """An empty list is an answer like another; under our rules it is always the same refusal."""
    from django.test import override_settings

    def all_(request: Any, job: batchpipe.Job) -> bool:
        return "secret" not in job.tags

    for listed in (0, 1):
        assert stranger().get("/batchpipe/").status_code == 401
        with override_settings(BATCHPIPE_VIEW_PERMISSION=all_):
            answer = stranger().get("/batchpipe/")
        assert (answer.status_code, len(answer.json()["jobs"])) == (200, listed)
        batchpipe.submit(requests(1), tags={"secret": 1})
        batchpipe.submit(requests(1))


@pytest.mark.usefixtures("away")
def test_without_redis_the_answer_is_a_503_that_tells_nothing() -> None:
    answer = boss().get("/batchpipe/job_x/")

    assert answer.status_code == 503
    assert answer.json() == {"error": {"code": "redis_unavailable", "message": "the jobs cannot be read just now"}}


def test_nothing_can_be_changed_there() -> None:
    answer = client(staff=True, enforce_csrf_checks=True).post("/batchpipe/")

    assert (answer.status_code, answer["Allow"]) == (405, "GET, HEAD")
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_an_empty_filter_is_none() -> None:
    """As a form sends it whose fields were left alone."""
    job = batchpipe.submit(requests(1))
    answer = boss().get("/batchpipe/?state=&limit=")

    assert [one["id"] for one in answer.json()["jobs"]] == [job.id]


# -- the admin -----------------------------------------------------------------------------------------------------


def test_the_admin_lists_jobs_and_shows_one(tmp_path: Path) -> None:
    job = batchpipe.submit(requests(3), name="nightly")
    land(tmp_path, "r1")
    browser = boss()
    page = browser.get(LIST).content.decode()

    assert "nightly" in page
    assert '<span class="state state-partial">partial</span>' in page
    assert "2 of 3 ok" in page
    assert "nightly" in browser.get(f"{LIST}?state=partial").content.decode()
    assert "nightly" not in browser.get(f"{LIST}?state=running").content.decode()
    detail = browser.get(_change_url(job.id)).content.decode()
    for text in (job.id, "3: 2 ok, 1 failed, 0 missing", "batch_", "submitted", "output.jsonl"):
        assert text in detail
    assert "http-equiv" not in detail  # it has ended: nothing more will come
    assert "batchpipe/job/" in browser.get("/admin/").content.decode()
    assert browser.get(f"{LIST}{job.id}/").headers["Location"] == _change_url(job.id)  # an address that was cut short


def test_the_admin_says_that_receivers_have_not_heard(tmp_path: Path) -> None:
    """The job has ended all the same, and its page goes on looking."""
    from batchpipe.client.client import default_client

    job, store = batchpipe.submit(requests(1)), default_client().store
    fields: Any = {
        "stage": "succeeded",
        "notify_attempts": 2,
        "trouble": '{"code": "not_delivered", "message": "KeyError: 7"}',
    }
    store.connection.client.hset(f"{store.connection.prefix}job:{job.id}", mapping=fields)

    for url in (LIST, _change_url(job.id)):
        page = boss().get(url).content.decode()
        assert '<span class="state state-succeeded">succeeded</span>' in page
        assert "receivers not notified yet: 2 tries, last: KeyError: 7" in page
    assert "http-equiv" in page


def _change_url(job_id: str) -> str:
    from django.contrib.admin.utils import quote

    return f"{LIST}{quote(job_id)}/change/"


def test_names_and_errors_are_shown_as_text(tmp_path: Path) -> None:
    """A name is what a user has typed."""
    job = batchpipe.submit([{"custom_id": XSS}], name=XSS, tags={XSS: XSS})
    land(tmp_path)
    browser = boss()

    for url in (LIST, _change_url(job.id)):
        page = browser.get(url).content.decode()
        assert "&lt;script&gt;alert(1)" in page
        assert "<script>alert" not in page


def test_results_are_downloaded_through_the_admin(tmp_path: Path) -> None:
    job = batchpipe.submit(requests(3))
    land(tmp_path, "r1")
    browser = boss()
    for kind, rows in (("output", ["r0", "r2"]), ("errors", ["r1"])):
        answer = browser.get(f"{LIST}{job.id}/{kind}.jsonl")
        body = b"".join(answer.streaming_content)
        assert [json.loads(line)["custom_id"] for line in body.splitlines()] == rows
        assert answer["Content-Disposition"] == f'attachment; filename="{job.id}-{kind}.jsonl"'
        assert int(answer["Content-Length"]) == len(body)
    assert browser.get(f"{LIST}{job.id}/job.jsonl").status_code == 404
    assert browser.get(f"{LIST}job_x/output.jsonl").status_code == 404


def test_a_download_under_asgi_takes_no_memory_of_its_own_either(tmp_path: Path) -> None:
    """Django gathers a plain iterator there: a file of 500 MB took the server to 570."""
    from django.core.asgi import get_asgi_application

    job = batchpipe.submit(requests(1), output=tmp_path / "out")
    land(tmp_path)
    size = 64_000_000
    os.truncate(tmp_path / "out" / "output.jsonl", size)
    cookie = boss().cookies.output(attrs=[], header="", sep=";").strip()
    path = f"{LIST}{job.id}/output.jsonl"
    got: list[int] = []

    async def receive() -> Any:
        if not got:
            got.append(0)
            return {"type": "http.request", "body": b"", "more_body": False}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        got.append(len(message.get("body", b"")) if message["type"] == "http.response.body" else -message["status"])

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"testserver"), (b"cookie", cookie.encode())],
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
    }
    tracemalloc.start()
    try:
        asyncio.run(get_asgi_application()(scope, receive, send))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (got[1], sum(got[2:])) == (-200, size)
    assert peak < size / 4


@pytest.mark.parametrize(
    "chosen",
    [[""], ["", " "], ["a/b"], [".."], ["x" * 5_000], ["job_x\n"], ["\ud800".encode("utf-8", "surrogatepass")]],
)
@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_a_post_that_names_no_job_is_answered_like_any_other(action: str, chosen: list[Any]) -> None:
    """An empty name has no address to go back to: it was a 500."""
    browser = boss()
    for more in ({}, {"here": "1"}):
        answer = browser.post(LIST, {"action": action, "job": chosen, "sure": "1", **more}, follow=True)
        assert answer.status_code in (200, 404)


def test_results_that_are_gone_are_a_message(tmp_path: Path) -> None:
    job = batchpipe.submit(requests(1), output=tmp_path / "out")
    land(tmp_path)
    (tmp_path / "out" / "output.jsonl").unlink()

    answer = boss().get(f"{LIST}{job.id}/output.jsonl", follow=True)
    assert answer.status_code == 200
    assert 'class="error"' in answer.content.decode()


def test_cancel_asks_first_and_is_noted(tmp_path: Path) -> None:
    from django.contrib.admin.models import LogEntry

    job = batchpipe.submit(requests(2))
    browser = boss()
    asked = browser.post(LIST, {"action": "cancel", "job": [job.id]})
    assert "Yes, cancel" in asked.content.decode()
    assert job.refresh().state == "pending"

    done = browser.post(LIST, {"action": "cancel", "job": [job.id], "sure": "1", "here": "1"}, follow=True)

    assert done.redirect_chain[-1][0] == _change_url(job.id)
    assert "is being cancelled" in done.content.decode()
    assert job.refresh().state == "cancelling"
    assert LogEntry.objects.get(object_id=job.id).get_change_message() == "Cancelled."
    assert _change_url(job.id) in browser.get("/admin/").content.decode()


def test_a_job_that_has_ended_is_not_said_to_be_cancelled(tmp_path: Path) -> None:
    from django.contrib.admin.models import LogEntry

    ended = batchpipe.submit(requests(1))
    land(tmp_path)
    open_ = batchpipe.submit(requests(1))
    act = {"action": "cancel", "job": [ended.id, open_.id], "sure": "1"}
    page = boss().post(LIST, act, follow=True).content.decode()

    assert f"Job {ended.id} has ended already: succeeded." in page
    assert f"{open_.id}</a> is being cancelled" in page
    assert not LogEntry.objects.filter(object_id=ended.id).exists()


def test_retry_sends_what_was_not_ok_once(tmp_path: Path) -> None:
    good, bad = batchpipe.submit(requests(1)), batchpipe.submit(requests(3))
    land(tmp_path, "r1")
    browser = boss()
    page = browser.post(LIST, {"action": "retry", "job": [bad.id, good.id, "job_x"]}, follow=True).content.decode()
    browser.post(LIST, {"action": "retry", "job": [bad.id]})

    assert f">Job {good.id} has no rows to retry: all of them are ok<" in page
    assert "no job job_x is known here" in page
    [again] = batchpipe.list_jobs(state="pending")
    assert f"{again.id}</a> retries the failed rows of {bad.id}" in page
    assert again.tags == {"retry_of": bad.id}
    land(tmp_path)
    page = browser.post(LIST, {"action": "retry", "job": [bad.id]}, follow=True).content.decode()
    assert f"Job {bad.id} was retried before, by {again.id}, which has ended." in page


def test_who_may_only_look_may_not_act() -> None:
    job = batchpipe.submit(requests(2))
    viewer, other = client(staff=True, may=("view_job",)), client(staff=True, name="other")
    act = {"action": "cancel", "job": [job.id], "sure": "1"}

    assert viewer.get(LIST).status_code == 200
    assert b"Cancel" not in viewer.get(LIST).content
    assert b"Cancel" not in viewer.get(_change_url(job.id)).content
    assert viewer.post(LIST, act).status_code == 403
    for path in (LIST, _change_url(job.id), f"{LIST}{job.id}/output.jsonl"):
        assert other.get(path).status_code == 403
        assert stranger().get(path).status_code == 302  # to the log-in
    assert boss(enforce_csrf_checks=True).post(LIST, act).status_code == 403
    assert job.refresh().state == "pending"
    assert boss().get(_change_url("job_x")).status_code == 404


@pytest.mark.usefixtures("away")
def test_without_redis_the_admin_says_so() -> None:
    browser = boss()
    for path, words in ((LIST, "The jobs cannot be shown"), (_change_url("job_x"), "The job cannot be shown")):
        answer = browser.get(path)
        assert answer.status_code == 503
        assert words in answer.content.decode()
    answer = browser.post(LIST, {"action": "retry", "job": ["job_x", "job_y"]}, follow=True)
    assert answer.status_code == 503
    assert answer.content.decode().count('class="error"') == 1  # one is as good as fifty, and sooner there


def test_a_long_list_has_pages() -> None:
    jobs = [batchpipe.submit(requests(1), name=f"job number {number:02}") for number in range(51)]
    first, second = (boss().get(f"{LIST}?p={page}").content.decode() for page in (1, 2))

    assert jobs[-1].id in first
    assert jobs[0].id not in first
    assert jobs[0].id in second
    assert ("older &rsaquo;" in first, "older &rsaquo;" in second) == (True, False)


def test_there_is_no_table_of_ours() -> None:
    """Jobs are in Redis alone: no migration, nothing in a dump, and no question to the database."""
    import io

    from django.core.management import call_command
    from django.db import connection

    from batchpipe.contrib.django.models import Job

    call_command("makemigrations", check=True, dry_run=True, verbosity=0)
    for everything in (False, True):
        call_command("dumpdata", use_base_manager=everything, stdout=(dump := io.StringIO()))
        assert 'batchpipe.job"' not in dump.getvalue()
    assert list(Job.objects.all()) == []
    assert Job._meta.db_table not in connection.introspection.table_names()
