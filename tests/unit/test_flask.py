"""The Flask extension in one process: settings, several apps, the JSON view, uploads, signals."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from flask import Flask, current_app, g, request

import batchpipe
from batchpipe.config.site import current_settings, current_site, use_sandbox
from batchpipe.contrib.flask import BatchPipe, blueprint, job_failed, job_succeeded
from batchpipe.model.records import State
from batchpipe.worker.setup import is_set_up, site_app

NOWHERE = "redis://127.0.0.1:1/0"
ROW = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini"}}
UPLOAD = b'{"custom_id": "a"}\n{"custom_id": "b"}'


def make_app(name: str = "shop", **config: Any) -> Flask:
    app = Flask(name)
    app.config.update({"BATCHPIPE_REDIS_URL": NOWHERE, **config})
    return app


NewApp = Callable[..., tuple[Flask, BatchPipe]]


@pytest.fixture
def new_app(redis_url: str, prefix: str, tmp_path: Path) -> NewApp:
    """An app at the tests' Redis, with a prefix and a queue of its own: one that is never emptied."""

    def make(name: str = "shop", database: int = 0, **config: Any) -> tuple[Flask, BatchPipe]:
        own = {"PREFIX": f"{prefix}{name}:", "QUEUE": f"{prefix}{name}", "HOME": str(tmp_path / name)}
        url = f"{redis_url.removesuffix('/0')}/{database}"
        app = make_app(
            name, BATCHPIPE_REDIS_URL=url, **{f"BATCHPIPE_{key}": value for key, value in own.items()}, **config
        )
        app.register_blueprint(blueprint)
        return app, BatchPipe(app)

    return make


def waiting(batch: BatchPipe, app: Flask) -> int:
    """Messages in the queue of an app."""
    with app.app_context():
        settings = batch.settings
    with redis.Redis.from_url(settings.redis_address()) as broker:
        count = broker.llen(settings.queue)
    assert isinstance(count, int)
    return count


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"BATCHPIPE_REDSI_URL": "x"}, 'app.config["BATCHPIPE_REDSI_URL"]: there is no such setting; did you mean'),
        ({"BATCHPIPE_REDIS_URL": None}, 'app.config["BATCHPIPE_REDIS_URL"] is not set'),
        ({"BATCHPIPE_REDIS_URL": ""}, 'app.config["BATCHPIPE_REDIS_URL"] is not set'),
        ({"BATCHPIPE_REDIS_URL": "localhost"}, 'app.config["BATCHPIPE_REDIS_URL"]: is no Redis URL'),
        ({"BATCHPIPE_ATTEMPTS": 0}, 'app.config["BATCHPIPE_ATTEMPTS"]: '),
        ({"BATCHPIPE_ACCOUNTS": {"default": {"api_kee": "sk-secret"}}}, """CCOUNTS"]['default']['api_kee']: """),
    ],
)
def test_an_app_with_a_wrong_setting_does_not_start(config: dict[str, Any], says: str) -> None:
    """One line, with the name as it is spelled in the app; no value of it is told."""
    with pytest.raises(batchpipe.SettingsError) as error:
        BatchPipe(make_app(**config))

    assert says in str(error.value)
    assert "sk-secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_come_from_the_config_then_the_extension_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deployment has the last word over what stands in the code."""
    monkeypatch.setenv("BATCHPIPE_ATTEMPTS", "7")
    monkeypatch.setenv("BATCHPIPE_MAX_ROWS", "7")
    app = make_app(BATCHPIPE_QUEUE="config", BATCHPIPE_VIEW_PERMISSION="shop.rule")
    batch = BatchPipe(app, settings={"QUEUE": "code", "ATTEMPTS": 2})

    assert (batch.settings.queue, batch.settings.attempts, batch.settings.max_rows) == ("config", 2, 7)


def test_a_sandbox_asked_for_on_the_command_line_is_met_by_an_app_that_has_read_its_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`flask --app shop batchpipe worker --sandbox` loads the app, which reads them, before it reads its options."""
    monkeypatch.setenv("BATCHPIPE_SANDBOX", "false")
    app, other = make_app("shop"), make_app("other")
    batch, elsewhere = BatchPipe(app), BatchPipe(other)
    assert not current_settings().is_sandbox("default")
    with app.app_context():
        use_sandbox()
        assert batch.settings.is_sandbox("default")
        assert current_settings().is_sandbox("default")
    assert not elsewhere.settings.is_sandbox("default")

    use_sandbox()  # outside of any context: of the last one
    assert elsewhere.settings.is_sandbox("default")
    assert current_settings() is elsewhere.settings


def test_a_wrong_name_given_to_the_extension_is_named_as_it_stands_there() -> None:
    with pytest.raises(batchpipe.SettingsError, match=r"^BatchPipe\(settings=\{'REDSI_URL': ...\}\): there is no"):
        BatchPipe(make_app(), settings={"REDSI_URL": "x"})


def test_prefixed_variables_of_flask_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """``from_prefixed_env`` nests what has two underscores."""
    monkeypatch.setenv("FLASK_BATCHPIPE_REDIS_URL", NOWHERE)
    monkeypatch.setenv("FLASK_BATCHPIPE_ACCOUNTS__default__api_key", "sk-a")
    app = Flask("shop")
    app.config.from_prefixed_env()
    key = BatchPipe(app).settings.account("default").api_key

    assert key is not None
    assert key.get_secret_value() == "sk-a"


# -- apps ----------------------------------------------------------------------------------------------------------


def test_an_app_takes_the_extension_once() -> None:
    app = make_app()
    batch = BatchPipe(app)

    assert app.extensions["batchpipe"] is batch
    with pytest.raises(RuntimeError, match="only once"):
        batch.init_app(app)


def test_an_app_that_is_gone_leaves_nothing_behind() -> None:
    """Tests of a site make an app each; only the last one stays, as the one of code outside of any context."""
    sites = []
    for number in range(5):
        app = make_app(f"shop{number}")
        BatchPipe(app)
        with app.app_context():
            sites.append(weakref.ref(current_site()))
    del app
    gc.collect()

    assert [site() is not None for site in sites] == [False] * 4 + [True]
    assert sites[-1]() is current_site()


def test_importing_it_loads_no_heavy_library() -> None:
    """A web server that starts does not wait for what it may never need."""
    heavy = ("openai", "celery", "kombu", "redis", "fsspec", "pydantic", "starlette", "uvicorn")
    code = f"import sys, batchpipe.contrib.flask; print([name for name in {heavy} if name in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_each_of_several_apps_has_its_own_redis_and_broker(new_app: NewApp) -> None:
    """In the context of an app, its jobs; outside of any, those of the app that was registered last."""
    (north, batch_north), (south, batch_south) = new_app("north", 1), new_app("south", 2)
    with north.app_context():
        here, plain = batch_north.submit([ROW]), batchpipe.submit([ROW])
    with south.app_context():
        there = batch_south.submit([ROW])
        with pytest.raises(batchpipe.JobNotFound):
            batch_south.get_job(here.id)

    with north.app_context():
        assert [job.id for job in batch_north.list_jobs()] == [plain.id, here.id]
        assert batch_north.cancel(here.id).state is State.CANCELLING
    assert [job.id for job in batchpipe.list_jobs()] == [there.id]
    assert here.refresh().id == here.id, "a job that was found stays with its Redis"
    assert waiting(batch_north, north) >= 2
    assert waiting(batch_south, south) == 1


def test_outside_of_a_context_an_extension_means_its_own_app(new_app: NewApp) -> None:
    """Record and message go to the same site, though another extension came later."""
    (north, batch_north), (south, batch_south) = new_app("north", 1), new_app("south", 2)
    job = batch_north.submit([ROW])

    assert [found.id for found in batch_north.list_jobs()] == [job.id]
    assert batch_south.list_jobs() == []
    assert (waiting(batch_north, north), waiting(batch_south, south)) == (1, 0)


def test_a_generator_of_requests_runs_in_the_context_of_the_caller(new_app: NewApp) -> None:
    """What it reads from the database comes through the session of the request."""
    app, batch = new_app()

    def requests() -> Iterator[dict[str, Any]]:
        yield {**ROW, "custom_id": g.user}

    with app.app_context():
        g.user = "ann"
        job = batch.submit(requests())

    assert b'"ann"' in Path(job.record.input).read_bytes()


def test_an_extension_of_another_app_says_what_to_do(new_app: NewApp) -> None:
    _, batch = new_app()
    with make_app("other").app_context(), pytest.raises(RuntimeError, match=r"not registered on the Flask app 'other'"):
        batch.list_jobs()


@pytest.mark.parametrize("celery_first", [True, False])
def test_the_celery_app_is_found_whenever_it_is_made(celery_first: bool) -> None:
    """A worker of it takes our tasks, queue and beat entries, in either order of the two lines in a factory."""
    app = make_app(BATCHPIPE_QUEUE="batches")
    celery: Any = Celery("shop", broker=NOWHERE, set_as_current=False)
    if celery_first:
        app.extensions["celery"] = celery
    BatchPipe(app)
    app.extensions["celery"] = celery
    celery.loader.import_default_modules()  # what a worker and beat begin with

    assert id(site_app()) == id(celery)
    assert is_set_up(celery)
    assert {"batchpipe.prepare", "batchpipe.merge"} <= celery.tasks.keys()
    assert celery.conf.beat_schedule["batchpipe-sweep"]["options"]["queue"] == "batches"
    assert celery.conf.task_routes == [{"batchpipe.*": {"queue": "batches"}}]


# -- uploads -------------------------------------------------------------------------------------------------------


def test_an_uploaded_file_is_an_input(new_app: NewApp) -> None:
    """It is read before ``submit`` returns: the file is gone when the request ends."""
    app, batch = new_app()

    @app.post("/upload")
    def upload() -> str:
        return batch.submit(request.files["rows"], tags={"user": 1}).id

    job_id = app.test_client().post("/upload", data={"rows": (io.BytesIO(UPLOAD), "rows.jsonl")}).text

    assert Path(batch.get_job(job_id).record.input).read_bytes() == UPLOAD


# -- the JSON view -------------------------------------------------------------------------------------------------


def mine(request: Any, job: Any) -> bool:
    return bool(job.tags.get("user") == request.headers.get("X-User"))


def test_nobody_sees_a_job_without_a_rule(new_app: NewApp) -> None:
    """Forgetting the rule opens nothing, and tells nobody which jobs there are."""
    app, batch = new_app()
    job = batch.submit([ROW])
    client = app.test_client()

    for path in ("/batchpipe/", f"/batchpipe/{job.id}/", "/batchpipe/job_unknown/"):
        answer = client.get(path)
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize("rule", [mine, f"{__name__}.mine"], ids=["function", "name"])
def test_each_sees_what_the_rule_lets_him_see(new_app: NewApp, rule: Any) -> None:
    """The list has no others; another's job is forbidden, an unknown one not found."""
    app, batch = new_app(BATCHPIPE_VIEW_PERMISSION=rule)
    ours, other = batch.submit([ROW], tags={"user": "ann"}), batch.submit([ROW], tags={"user": "bob"})
    client, ann = app.test_client(), {"X-User": "ann"}
    listed = client.get("/batchpipe/?state=pending", headers=ann)
    seen = client.get(f"/batchpipe/{ours.id}/", headers=ann)

    assert [job["id"] for job in listed.get_json()["jobs"]] == [ours.id]
    assert seen.get_json() == {**ours.to_dict(), "shards_in_all": 0, "next": None}
    assert client.get(f"/batchpipe/{ours.id}/?from=2&limit=9", headers=ann).get_json()["shards"] == []
    wrong = client.get(f"/batchpipe/{ours.id}/?from=b", headers=ann).get_json()
    assert wrong["error"]["message"] == "from: must be a number"
    assert seen.headers["Cache-Control"] == "no-store"
    assert client.get(f"/batchpipe/{other.id}/", headers=ann).status_code == 403
    assert client.get("/batchpipe/job_unknown/", headers=ann).get_json()["error"]["code"] == "job_not_found"
    assert client.get("/batchpipe/job_unknown/", headers=ann).status_code == 404


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("no_such.rule", 'app.config["BATCHPIPE_VIEW_PERMISSION"] cannot be imported: '),
        ("os.sep", 'app.config["BATCHPIPE_VIEW_PERMISSION"] is no function (request, job) -> bool'),
        (5, 'app.config["BATCHPIPE_VIEW_PERMISSION"] is no function (request, job) -> bool'),
        (mine, "the blueprint is registered, but batchpipe is not: call BatchPipe(app)"),
    ],
    ids=["not there", "no function", "a number", "no extension"],
)
def test_a_view_that_is_not_set_up_says_in_the_log_what_to_do(
    rule: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, in one line; who asks gets JSON that tells nothing of the site."""
    app = make_app(BATCHPIPE_VIEW_PERMISSION=rule)
    app.register_blueprint(blueprint)
    for path in ("/batchpipe/", "/batchpipe/job_x/"):
        answer = app.test_client().get(path)
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (500, "settings")
        assert "the log of this site says why" in answer.get_json()["error"]["message"]
    (line,) = caplog.messages
    assert says in line
    assert "\n" not in line


@pytest.mark.parametrize("query", ["limit=many", "state=asleep"])
def test_a_wrong_question_is_answered_in_json(new_app: NewApp, query: str) -> None:
    app, _ = new_app(BATCHPIPE_VIEW_PERMISSION=mine)
    answer = app.test_client().get(f"/batchpipe/?{query}")

    assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "invalid_input")


def test_nothing_can_be_changed_there(new_app: NewApp) -> None:
    """That is said in JSON, too; what asks before it reads (CORS) is answered."""
    app, _ = new_app(BATCHPIPE_VIEW_PERMISSION=mine)
    client = app.test_client()

    for path in ("/batchpipe/", "/batchpipe/job_x/"):
        answer = client.delete(path)
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (405, "method_not_allowed")
        assert client.options(path).status_code == 200
        assert set(answer.allow) == set(client.options(path).allow) == {"GET", "HEAD", "OPTIONS"}
    assert client.get("/batchpipe/?state=&limit=").get_json() == {"jobs": []}


def test_without_redis_the_view_says_so() -> None:
    """503 as JSON: a monitor and a page's script can read it."""
    app = make_app(BATCHPIPE_VIEW_PERMISSION=mine)
    app.register_blueprint(blueprint)
    BatchPipe(app)
    answer = app.test_client().get("/batchpipe/")

    assert answer.status_code == 503
    assert answer.get_json() == {"error": {"code": "redis_unavailable", "message": "the jobs cannot be read just now"}}


# -- signals -------------------------------------------------------------------------------------------------------


def end(batch: BatchPipe, monkeypatch: pytest.MonkeyPatch, state: State) -> batchpipe.Job:
    """A job that has ended, as far as who is told can see."""
    job = batch.submit([ROW])
    job.record = job.record.evolve(stage=state)
    monkeypatch.setattr(BatchPipe, "get_job", lambda self, job_id: job)
    return job


def test_the_end_of_a_job_becomes_a_signal_in_the_context_of_the_app(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, batch = new_app()
    heard = []

    def hear(sender: Flask, job: batchpipe.Job) -> None:
        heard.append((sender, job.id, current_app.name))

    with job_succeeded.connected_to(hear, app):
        job = end(batch, monkeypatch, State.SUCCEEDED)
        for listener in current_site().receivers.values():
            listener(job.id)

    assert heard == [(app, job.id, "shop")]


def test_a_receiver_that_raises_keeps_no_other_from_hearing(new_app: NewApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raised goes on: the job is told again later."""
    app, batch = new_app()
    heard = []

    def fail(sender: Flask, job: batchpipe.Job) -> None:
        heard.append("fail")
        raise OSError("database away")

    def fail_too(sender: Flask, job: batchpipe.Job) -> None:
        heard.append("fail too")
        raise OSError("database away")

    with job_failed.connected_to(fail, app), job_failed.connected_to(fail_too, app):
        job = end(batch, monkeypatch, State.FAILED)
        [listener] = current_site().receivers.values()
        with pytest.raises(OSError, match="database away"):
            listener(job.id)

    assert sorted(heard) == ["fail", "fail too"]
