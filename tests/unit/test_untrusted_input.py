"""What a stranger can do through an input, a name, a folder, a request or a page: as little as possible.

One section for each way in; docs/security.md names the tests.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from celery import Celery
from kombu.connection import Connection
from pydantic import SecretStr

from batchpipe.cli.common import emit_json
from batchpipe.client.client import Client
from batchpipe.client.option_checks import check_output
from batchpipe.config.account import Account
from batchpipe.config.loading import load_settings
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import BatchpipeError, InvalidInput, Paused, PermanentError, Refused, SettingsError, Unavailable
from batchpipe.local_redis import acquire
from batchpipe.masking import one_line
from batchpipe.model.answers import read_answer
from batchpipe.model.outcomes import names_quota
from batchpipe.model.records import JOB, BatchError, JobRecord, Move, ShardRecord, Stage, State
from batchpipe.model.refusals import is_about_input_file
from batchpipe.model.views import job_view
from batchpipe.pipeline.messages import Message
from batchpipe.pipeline.steps.poll import Pace, Slot, poll
from batchpipe.pipeline.steps.upload import upload
from batchpipe.provider import Api
from batchpipe.sandbox import Sandbox
from batchpipe.storage import Folder
from batchpipe.storage.local import keep_private
from batchpipe.store import Store
from batchpipe.tasks.publishing import publish
from batchpipe.telemetry.logs import JsonFormatter, TextFormatter
from batchpipe.testing import FakeOpenAI, Pump

CREATE = "POST /v1/batches"

# -- 7: words that an error quotes ---------------------------------------------------------------------------------

#: What a tenant may write into its metadata, its model's name or a row, and a provider may repeat.
QUOTED = [
    "Invalid value 'insufficient_quota' for metadata.team",
    "model 'billing_hard_limit_reached' does not exist",
    "billing_not_active: no such model",
    "Invalid metadata: 'Enqueued token limit reached for gpt-4o'",
    "Invalid metadata: 'token_limit_exceeded'",
    "Invalid metadata: 'Cannot find file file-1, or project'",
]


def refusal(api: Api) -> BatchpipeError:
    with pytest.raises(BatchpipeError) as caught:
        api.create_batch(
            endpoint="/v1/embeddings", completion_window="24h", input_file_id="file-1", metadata={}, extra={}
        )
    return caught.value


@pytest.fixture
def api(sandbox: Sandbox) -> Any:
    made = Api(Account(api_key=SecretStr("sk-x"), base_url=sandbox.base_url), control_seconds=5.0)
    yield made
    made._client.close()


@pytest.mark.parametrize("words", QUOTED)
def test_a_400_that_quotes_a_tenants_words_concerns_that_request_alone(api: Api, sandbox: Sandbox, words: str) -> None:
    """The account goes on for everybody else, and the one job ends at once."""
    sandbox.faults.add("status", route=CREATE, status=400, code="invalid_value", message=words)
    error = refusal(api)
    assert (type(error), error.code, str(error)) == (Refused, "invalid_value", words)


@pytest.mark.parametrize("field", ["code", "type"])
@pytest.mark.parametrize("status", [400, 429])
def test_the_providers_own_field_still_pauses_the_account(api: Api, sandbox: Sandbox, status: int, field: str) -> None:
    """Whatever its message says."""
    body = orjson.dumps({"error": {field: "insufficient_quota", "message": "no"}}).decode()
    sandbox.faults.add("status", route=CREATE, status=status, body=body)
    error = refusal(api)
    assert (type(error), error.code) == (Paused, "insufficient_quota")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Enqueued token limit reached for gpt-4o in organization org-1. Limit: 2,000,000", "token_limit_exceeded"),
        ("Cannot find file file-1, or project p does not have access to it.", "file_not_found"),
    ],
)
def test_what_a_provider_says_in_words_alone_is_known_by_how_it_begins(
    api: Api, sandbox: Sandbox, words: str, code: str
) -> None:
    """It only lets the job wait."""
    sandbox.faults.add("status", route=CREATE, status=400, message=words)
    error = refusal(api)
    assert (type(error), error.code) == (Unavailable, code)


@pytest.mark.parametrize("words", QUOTED)
def test_a_batch_that_failed_with_quoted_words_is_not_created_again(words: str) -> None:
    """It would fail for ever, and each time for a new batch."""
    now = 1_000_000.0
    provider = FakeOpenAI(lambda: now)
    file_id = provider.upload(io.BytesIO(b'{"custom_id":"r0"}\n'), "f", lambda: None)
    batch_id = provider.create_batch(
        endpoint="/v1/x", completion_window="24h", input_file_id=file_id, metadata={}, extra={}
    ).id
    provider.fail(batch_id, [BatchError(code="invalid_request", message=words)])
    shard = ShardRecord(job="job_x", index=0, stage=Stage.CREATED.value, batch_id=batch_id, created_at=now)
    move = poll(
        JobRecord(id="job_x"), shard, provider, now=now, pace=Pace(5, 600), take_slot=lambda what, may_park: Slot()
    )
    assert isinstance(move, Move)
    assert (move.stage, move.pause) == (Stage.ENDED, None)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"error": {"code": "insufficient_quota", "message": "x"}}, True),
        ({"error": {"type": "insufficient_quota", "code": None}}, True),
        ({"error": {"code": "invalid_prompt", "message": "you wrote: insufficient_quota"}}, False),
        ({"error": {"code": "invalid_prompt", "param": "insufficient_quota"}}, False),
        ({"echo": {"error": {"code": "insufficient_quota"}}}, False),
        ({"error": "insufficient_quota"}, False),
        ("insufficient_quota", False),
    ],
)
def test_a_row_that_failed_tells_of_no_money_by_its_code_alone(body: Any, named: bool) -> None:
    """Else one row pauses the account of all."""
    line = {"custom_id": "r0", "response": {"status_code": 429, "body": body}, "error": None}
    assert names_quota(read_answer(orjson.dumps(line))) is named
    line = {"custom_id": "r0", "response": None, "error": {"code": "batch_expired", "message": str(body)}}
    assert names_quota(read_answer(orjson.dumps(line))) is False


def test_a_refusal_that_quotes_cannot_find_file_is_no_refusal_of_the_file() -> None:
    """A job whose metadata says so ends at once, instead of after hours."""
    quoted = Refused("Invalid metadata 'cannot find file'", code="invalid_value", status=400)
    assert not is_about_input_file(quoted, "file-1")
    assert is_about_input_file(Refused("Cannot find file file-2", status=400), "file-1")


def test_a_refused_row_that_quotes_expires_after_does_not_end_the_expiry_of_files(sandbox: Sandbox) -> None:
    """What is uploaded later by this process would stay at the provider for ever."""
    made = Api(Account(api_key=SecretStr("sk-x"), base_url=sandbox.base_url), control_seconds=5.0)
    assert made._expires
    sandbox.faults.add("status", route="POST /v1/files", status=400, message="bad row: 'expires_after'", times=2)
    with pytest.raises(Refused):
        made.upload(io.BytesIO(b"{}\n"), "batchpipe-job_x-0-1.jsonl", lambda: None)
    assert made._expires
    made._client.close()


# -- 20: what a provider says, whatever its shape ------------------------------------------------------------------

PAGE = (
    "<!DOCTYPE html><html><head><title>413 Request Entity Too Large</title><style>h1 {color: red}</style></head>"
    "<body><h1>Too large</h1><script>alert(1)</script><p>nginx &amp; co</p></body></html>"
)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ('{"detail": "Purpose is wrong"}', "Purpose is wrong"),
        ('{"detail": [{"loc": ["body", "purpose"], "msg": "field required"}]}', "body.purpose: field required"),
        ('{"error": "no such endpoint"}', "no such endpoint"),
        ('{"message": "not here"}', "not here"),
        ('{"error": {"message": {"detail": "deep"}}}', "deep"),
        ('{"errors": [{"message": "one"}, {"message": "two"}]}', "one; two"),
        ('["one", "two"]', "one; two"),
        ('"a text"', "a text"),
        ("a plain text", "a plain text"),
        ('{"answer": 42}', '{"answer": 42}'),
        (PAGE, "413 Request Entity Too Large Too large nginx & co"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("x" * 5_000, "x" * 300),
        ("{}", "HTTP 422 without a word"),
        ("", "HTTP 422 without a word"),
        ('{"a":' * 900 + "1" + "}" * 900, ('{"a":' * 60)[:300]),
    ],
)
def test_what_a_provider_says_is_shown_whatever_its_shape(api: Api, sandbox: Sandbox, body: str, shown: str) -> None:
    """Not "Error code: 422"."""
    sandbox.faults.add("status", route=CREATE, status=422, body=body)
    assert str(refusal(api)) == shown


def test_a_file_that_is_too_large_is_told_its_size_and_what_to_type(tmp_path: Path) -> None:
    """A retry of that job with smaller shards."""
    folder = Folder(str(tmp_path / "work"), private=True)
    with folder.writer("shards/0.jsonl") as file:
        file.write(b"x" * 1_000)
    provider = FakeOpenAI()
    provider.fail_next("upload", Refused("Request Entity Too Large", status=413))
    shard = ShardRecord(job="job_x", index=0, file="shards/0.jsonl", bytes=1_000)
    with pytest.raises(Refused, match=r"a file of 1000 bytes .* batchpipe retry job_x --max-bytes 500") as caught:
        upload(shard, folder, provider, now=0.0, longest=60.0, check=lambda: None)
    assert caught.value.status == 413


def test_a_retry_takes_smaller_shards_and_is_still_one_retry(
    redis_url: str, prefix: str, tmp_path: Path, chat_rows: Callable[..., list[dict[str, object]]]
) -> None:
    """Another size for the same rows would pay for them twice."""
    client = Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path / "home"))
    old = client.submit(chat_rows(4), output=tmp_path / "out", max_bytes=10_000)
    pump = Pump(tmp_path / "pump", store=client.store)
    pump.api.fail_next("upload", Refused("Request Entity Too Large", status=413))
    pump.run_until_idle()
    [shard] = client.store.shards.of_job(old.refresh().record)
    assert shard.error is not None
    assert "--max-bytes" in shard.error.message
    with pytest.raises(InvalidInput, match="max_rows"):
        client.retry(old.id, max_rows=0)
    new = client.retry(old.id, max_bytes=300, max_rows=2)
    assert (new.record.max_bytes, new.record.max_rows) == (300, 2)
    assert client.retry(old.id).id == client.retry(old.id, max_bytes=300).id == new.id
    with pytest.raises(PermanentError, match=rf"was retried as {new.id}, with max_bytes 300"):
        client.retry(old.id, max_bytes=200)


# -- 33: what a site's Celery settings do to our tasks -------------------------------------------------------------


def test_where_tasks_are_eager_a_submit_is_refused_before_anything_is_recorded(
    redis_url: str, prefix: str, tmp_path: Path, chat_rows: Callable[..., list[dict[str, object]]]
) -> None:
    """Else the provider is called within the request, and a poll calls the next poll until the stack ends."""
    site = Celery("site", broker=redis_url, set_as_current=False)
    site.conf.task_always_eager = True
    current_site().app = site
    client = Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path / "home"))
    with pytest.raises(SettingsError, match=r"^app\.conf\.task_always_eager is on.*start a worker"):
        client.submit(chat_rows(2))
    assert client.list_jobs() == []
    with pytest.raises(SettingsError, match="task_always_eager"):
        publish(Message("job_x", JOB, 1, State.PENDING, ["a", "b"], "batchpipe"))


# -- 34: the sandbox's switches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Host": "0.0.0.0:{port}"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://evil.example:{port}"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-For": "10.1.2.3"},
        {"X-Forwarded-Host": "localhost"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Via": "1.1 proxy"},
    ],
)
def test_the_switches_of_the_sandbox_answer_to_programs_of_this_machine_only(
    sandbox: Sandbox, headers: dict[str, str]
) -> None:
    """Not to a page in a browser, by our address or by a name that leads here, and not to whom a proxy lets in."""
    given = {name: value.format(port=sandbox.port) for name, value in headers.items()}
    for method, route in (("GET", "/state"), ("POST", "/reset"), ("DELETE", "/faults")):
        answer = httpx2.request(method, f"{sandbox.url}/sandbox{route}", headers=given)
        assert answer.status_code == 403
    own = {"Origin": f"http://127.0.0.1:{sandbox.port}"}
    assert httpx2.get(f"{sandbox.url}/sandbox/state", headers=own).status_code == 200
    assert httpx2.get(f"http://localhost:{sandbox.port}/sandbox/state").status_code == 200


# -- 26: where data lie --------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
IMAGE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
UNITS = sorted((ROOT / "examples" / "deploy").glob("*.service"))


def image_environment() -> dict[str, str]:
    lines = re.findall(r"^ENV (.+)$", IMAGE.replace("\\\n", " "), re.M)
    pairs = (word.partition("=") for line in lines for word in shlex.split(line))
    return {name: value for name, _, value in pairs if name not in ("PATH", "BATCHPIPE_HOME")}


def unit_environment(path: Path) -> dict[str, str]:
    lines = re.findall(r"^Environment=(.+)$", path.read_text(encoding="utf-8"), re.M)
    pairs = (word.partition("=") for line in lines for word in line.split())
    return {name: value for name, _, value in pairs if name not in ("BATCHPIPE_HOME", "REMAP_SIGTERM")}


@pytest.fixture
def dropped(tmp_path: Path) -> Path:
    """A folder of inputs with what a stranger has put there; whatever of it is run leaves a mark."""
    folder, mark = tmp_path / "data", tmp_path / "mark"
    folder.mkdir()
    for name in ("shop", "celery", "orjson", "tasks", "celeryconfig", "flowerconfig", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\napp = None\n")
    url = "https://evil.example/v1"
    (folder / ".env").write_text(f"OPENAI_BASE_URL={url}\nBATCHPIPE_APP=shop\nBATCHPIPE_REDIS_URL=redis://evil:1/0\n")
    return folder


@pytest.mark.parametrize("of", ["image", *(path.name for path in UNITS)])
def test_a_service_takes_no_settings_and_no_code_from_the_folder_of_inputs(
    dropped: Path, tmp_path: Path, of: str
) -> None:
    """Not even if it is started there; and it is not."""
    ours = image_environment() if of == "image" else unit_environment(ROOT / "examples" / "deploy" / of)
    code = (
        "from batchpipe.config.loading import load_settings as s; x = s(); print(x.openai_base_url, x.app, x.redis_url)"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OPENAI_API_KEY": "sk-x", **ours}
    asked = [
        [sys.executable, "-c", code],
        [str(Path(sys.executable).with_name("batchpipe")), "-A", "shop", "validate", "none.jsonl"],
    ]
    settings, command = (
        subprocess.run(one, cwd=dropped, env=env, capture_output=True, text=True, check=False) for one in asked
    )
    assert settings.stdout.split() == ["None"] * 3, settings.stderr
    assert "No module named 'shop'" in command.stderr
    assert not (tmp_path / "mark").exists()


def test_flower_runs_no_file_of_the_current_folder(dropped: Path, tmp_path: Path) -> None:
    """By itself it takes its flowerconfig.py from there, and that is a program."""
    code = (
        "import sys; from batchpipe.monitoring.flower import ListenOptions, _read_options; "
        "from batchpipe.config.settings import Settings; "
        "_read_options(Settings(_env_file=None), ListenOptions(auth=True), (), persistent=False)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=dropped, capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "mark").exists()) == (0, False), done.stderr


def test_no_service_works_where_inputs_lie() -> None:
    assert re.findall(r"^WORKDIR (.+)$", IMAGE, re.M)[-1] == "/app"
    assert not re.search(r"-o batchpipe[^\n]* /app", IMAGE)
    for path in UNITS:
        assert re.findall(r"^WorkingDirectory=(.+)$", path.read_text(encoding="utf-8"), re.M) == ["/"]
    for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines():
        assert "BATCHPIPE_ENV_FILE= PYTHONSAFEPATH=1" in line


def test_a_file_of_variables_is_named_or_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("BATCHPIPE_QUEUE=dropped\n")
    (tmp_path / "mine.env").write_text("BATCHPIPE_QUEUE=mine\n")
    found = []
    for named in (None, "", "mine.env"):
        if named is not None:
            monkeypatch.setenv("BATCHPIPE_ENV_FILE", named)
        found.append(load_settings().queue)
    assert found == ["dropped", "batchpipe", "mine"]
    assert load_settings().unknown == ()
    monkeypatch.setenv("BATCHPIPE_ENV_FILE", "gone.env")
    with pytest.raises(SettingsError, match="BATCHPIPE_ENV_FILE: there is no file"):
        load_settings()


# -- 35: names that talk to a terminal, secrets that are shown, files that others read -----------------------------

FORGED = "a\x1b]0;title\x07\nb\u202ec\x9bd\u2028e"


def test_no_control_character_of_a_message_reaches_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """It could forge a line, or what stands before it."""
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "said %s", (FORGED,), None)
    text = TextFormatter().format(record)
    assert text.endswith(r"said a\x1b]0;title\x07\nb\u202ec\x9bd\u2028e")
    line = JsonFormatter().format(record)
    assert json.loads(line)["message"] == f"said {FORGED}"
    assert line.isascii()
    emit_json({"name": FORGED, "half": "\ud800"})
    shown = capsys.readouterr().out
    assert json.loads(shown)["name"] == FORGED
    assert shown.isascii()


def test_no_control_character_of_a_reason_reaches_celery_and_flower() -> None:
    assert one_line(FORGED) == r"a\x1b]0;title\x07 b\u202ec\x9bd e"


def test_an_output_with_a_secret_in_it_is_refused_and_never_shown() -> None:
    """It stands in records, in job.json and on pages; inputs may be signed, and are masked."""
    with pytest.raises(InvalidInput, match=r"output: s3://b/out\?token=\*\*\* has a secret in it"):
        check_output("s3://b/out?token=abc")
    check_output("memory://b/out?page=7")
    view = job_view(JobRecord(id="job_x", input="https://h/in?sig=abc", output="s3://b/out?token=abc"))
    assert "abc" not in json.dumps([view["input"], view["output"]])


def test_what_flower_and_beat_keep_is_for_their_owner(tmp_path: Path) -> None:
    """Their libraries make files that all may read; the history of tasks is among them."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "flower").write_text("old")
    (home / "flower").chmod(0o644)
    before = os.umask(0o022)
    try:
        keep_private(home, "flower*")
        (home / "flower.new").write_text("new")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o600}


@pytest.mark.parametrize("entry", ["the folder", "server.json", "supervisor.log", "users.lock"])
def test_a_redis_folder_with_links_in_it_is_refused(tmp_path: Path, entry: str) -> None:
    """Server and supervisor would read, follow and overwrite what a stranger has put there."""
    home, theirs = tmp_path / "home", tmp_path / "theirs"
    home.mkdir()
    theirs.mkdir()
    if entry == "the folder":
        (home / "redis").symlink_to(theirs)
    else:
        (home / "redis").mkdir(mode=0o777)
        (home / "redis" / entry).symlink_to(theirs / "file")
    with pytest.raises(SettingsError, match=r"is a link.*BATCHPIPE_HOME"):
        acquire(home, servers=[], timeout=5)
    assert list(theirs.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("whose", ["folder", "file"])
def test_a_redis_folder_of_another_user_is_refused(tmp_path: Path, whose: str) -> None:
    folder = tmp_path / "home" / "redis"
    folder.mkdir(parents=True)
    (folder / "server.json").write_text('{"port": 1, "password": "x", "kind": "redis-server"}')
    os.chown(folder if whose == "folder" else folder / "server.json", 12_345, 12_345)
    with pytest.raises(SettingsError, match=r"belongs to another user.*BATCHPIPE_HOME"):
        acquire(tmp_path / "home", servers=[], timeout=5)


# -- 22, 23: how a Redis may be named ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=required", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=CERT_REQUIRED", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=Required", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=optional", ssl.CERT_OPTIONAL),
        ("?ssl_cert_reqs=CERT_OPTIONAL", ssl.CERT_OPTIONAL),
        ("?ssl_cert_reqs=none", ssl.CERT_NONE),
        ("?ssl_cert_reqs=CERT_NONE&ssl_ca_certs=/etc/ca.pem", ssl.CERT_NONE),
    ],
)
def test_tls_is_spelled_as_celery_and_redis_py_do_and_means_the_same_to_both(query: str, wanted: Any) -> None:
    """One of them asks for nothing where nothing is said: messages went to whoever stood between."""
    url = f"rediss://u:p%40ss@redis.example:6380/2{query}"
    for settings in (Settings(_env_file=None, redis_url=url), Settings(_env_file=None, redis_url=url, broker_url=url)):
        records: Any = Store.connect(settings.redis_address()).connection.client.connection_pool.make_connection()
        assert (records.cert_reqs, records.password, records.db) == (wanted, "p@ss", 2)
        messages: Any = Connection(settings.broker_address())
        assert (messages.ssl["ssl_cert_reqs"], messages.password, messages.virtual_host) == (wanted, "p@ss", "2")
        assert messages.ssl.get("ssl_ca_certs") == records.ca_certs == ("/etc/ca.pem" if "ca_certs" in query else None)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sentinel://h:26379", "Sentinel is not supported"),
        ("redis+sentinel://h:26379/mymaster", "Sentinel is not supported"),
        ("sentinel://a:26379;sentinel://b:26379", "Sentinel is not supported"),
        ("redis+cluster://h:6379", "Redis Cluster is not supported"),
        ("rediss://h/0?ssl_cert_reqs=maybe", "ssl_cert_reqs is none of required, optional and none"),
    ],
)
@pytest.mark.parametrize("name", ["REDIS_URL", "BROKER_URL"])
def test_a_redis_that_cannot_be_used_is_refused_with_its_word(
    name: str, url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"BATCHPIPE_{name}", url)
    with pytest.raises(SettingsError, match=f"^BATCHPIPE_{name}: {said}"):
        load_settings()
