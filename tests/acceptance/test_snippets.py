"""Every code block of the README, docs/ and the examples is run; one that nobody runs fails the first test.

The blocks of a page that stay up are started in windows of their own, and must come up. Placeholders are filled in: the
id of a job, a free port, the address of the tests' Redis.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from batchpipe.config.loading import load_settings
from batchpipe.config.site_values import SiteSettings
from batchpipe.model.webhooks import MOST_BYTES
from batchpipe.sandbox import Sandbox
from tests.acceptance.snippets import ROOT, Snippet, Stories, Story, Terminal, Terminals, asked_for, blocks, claims
from tests.acceptance.user_machine import need, request_lines, until
from tests.redis_server import RedisServer, free_port

#: Blocks that other tests run, with the name of the test.
ELSEWHERE: dict[str, list[Snippet]] = {
    "tests/test_readme.py::test_the_shell_of_the_readme_runs": [
        Snippet("README.md", "-o results --format csv --sandbox")
    ],
    "tests/test_readme.py::test_the_python_of_the_readme_runs": [Snippet("README.md", "cities-2026-11")],
    "tests/acceptance/test_from_wheel.py::test_a_new_django_project": [
        Snippet("README.md", "# mysite/settings.py"),
        Snippet("README.md", "# mysite/views.py"),
        Snippet("README.md", "# mysite/tasks.py"),
        Snippet("README.md", "# mysite/urls.py"),
        Snippet("README.md", "django-admin startproject"),
        Snippet("README.md", "python manage.py batchpipe worker"),
        Snippet("README.md", "python manage.py createsuperuser"),
        Snippet("README.md", "curl http://127.0.0.1:8000"),
    ],
    "tests/acceptance/test_from_wheel.py::test_a_new_flask_app": [
        Snippet("README.md", "# shop.py"),
        Snippet("README.md", "flask --app shop batchpipe worker"),
        Snippet("README.md", "flask --app shop run"),
        Snippet("README.md", "curl -X POST"),
    ],
    "tests/acceptance/test_django_site.py::test_products_get_their_descriptions": [
        Snippet("examples/django_site/README.md", "python start.py"),
    ],
    "tests/acceptance/test_flask_app.py::test_a_table_is_sent_and_its_job_watched_in_a_browser": [
        Snippet("examples/flask_app/README.md", "start.py"),
    ],
    "tests/acceptance/test_refusing_redis.py::test_the_documented_acl_is_all_that_is_needed": [
        Snippet("docs/deploy.md", "ACL SETUSER batchpipe"),
    ],
}

#: Drawings: there is nothing to run.
PICTURES = [
    Snippet("README.md", "─▶ check, split"),
    Snippet("docs/architecture.md", "submit ─▶ prepare"),
    Snippet("docs/operations.md", "batchpipe land JOB"),  # tests/acceptance/test_undone_refusals.py types these
    Snippet("docs/cli.md", "$ batchpipe list"),
    Snippet("docs/monitoring.md", "9 in 10 within 2 h"),
    Snippet("docs/operations.md", "(place 1 of 188)"),
]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
#: Sites with the receivers of docs/webhooks.md.
RECEIVERS = """
import os
from types import SimpleNamespace
import django
from django.conf import settings
apps = ["django.contrib.auth", "django.contrib.contenttypes", "batchpipe.contrib.django"]
url = os.environ["BATCHPIPE_REDIS_URL"]
settings.configure(
    ROOT_URLCONF="urls", SECRET_KEY="any", ALLOWED_HOSTS=["*"], INSTALLED_APPS=apps, BATCHPIPE={{"REDIS_URL": url}}
)
django.setup()
from django.test import Client
first = Client().post("/batchpipe/webhooks/", b"{{}}", content_type="application/json").status_code

from flask import Flask
from batchpipe.contrib.flask import BatchPipe
app = Flask("shop")
app.config["BATCHPIPE_REDIS_URL"] = url
BatchPipe(app)
csrf = SimpleNamespace(exempt=lambda blueprint: None)
{flask}
second = app.test_client().post("/batchpipe/webhooks/", data=b"{{}}").status_code

mounted = []
app = SimpleNamespace(mount=lambda path, mounted_app: mounted.append(mounted_app))
{asgi}
print(first, second, type(mounted[0]).__name__)
"""


def test_each_block_is_run_by_one_test() -> None:
    """What is generated is compared with the code by tests/test_docs.py."""
    claimed = Counter(claim.block for claim in claims())
    orphans = [f"{block.page}, line {block.line}" for block in blocks() if not block.generated and not claimed[block]]

    assert orphans == [], "claim each of these by a Snippet in a test that runs it"
    assert [f"{block.page}, line {block.line}" for block, times in claimed.items() if times > 1] == []


def test_the_tests_that_run_blocks_elsewhere_are_there() -> None:
    for test in ELSEWHERE:
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
    assert all(snippet.block.language == "text" for snippet in PICTURES)


def test_what_pip_is_to_install_is_there() -> None:
    """No block installs an extra that we do not have."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    lines = [line for block in blocks() for line in block.text.splitlines() if line.startswith("pip install ")]
    pattern = r"pip install (?:-e )?['\"]?(?:batchpipe|\.)(?:\[([\w,]+)\])?['\"]?( +#.*)?"
    wanted = [re.fullmatch(pattern, line) for line in lines]

    assert [line for line, match in zip(lines, wanted, strict=True) if match is None] == []
    assert {name for match in wanted if match and match[1] for name in match[1].split(",")} <= extras.keys()


@pytest.mark.parametrize("word", ["batchpipe", "manage.py batchpipe", "flask batchpipe"])
def test_commands_in_the_text_are_commands(word: str) -> None:
    """`batchpipe such` within a sentence, too."""
    from batchpipe.cli import COMMANDS

    pattern = re.compile(rf"`{word} (?:-A \S+ )?([a-z]+)[^`]*`")
    pages = {block.page for block in blocks()}
    named = {name for page in pages for name in pattern.findall((ROOT / page).read_text(encoding="utf-8"))}

    assert named - set(COMMANDS) == set()


# -- stories: the blocks of a page, on a machine of its own; they run side by side ---------------------------------


def readme(terminals: Terminals) -> None:
    terminal = terminals.terminal("readme")
    terminal.machine.write("products.csv", b"name,price\nLamp,30\nChair,45\n")
    terminal.run(Snippet("README.md", "-o results-openai"))
    assert len((terminal.machine.folder / "results-openai" / "output.jsonl").read_bytes().splitlines()) == 2
    terminal.run(Snippet("README.md", "python3 -m venv"), {" && . .venv/bin/activate": ""})  # and no pip of its own
    terminal.run(Snippet("README.md", 'pip install ".[s3]"'))
    terminal.environment["BATCHPIPE_SANDBOX_PORT"] = str(free_port())
    terminal.up_and_down(
        Snippet("README.md", "# no key, no cost; for real"), {"--sandbox ": "--sandbox --queues unused "}
    )
    terminal.run(Snippet("README.md", "make chaos"), {"make ": f"make -C {ROOT} -n "})
    terminal.machine.write("batchpipe.toml", Snippet("README.md", "[schedules.nightly]").text.encode())
    [nightly] = terminal.machine.json("schedules", "list")
    assert (nightly["name"], nightly["timezone"]) == ("nightly", "Europe/Berlin")
    job = terminal.run(Snippet("README.md", "schedules run nightly")).out.strip()
    assert terminal.machine.run("wait", job).code == 0


def rows(terminals: Terminals) -> None:
    """A table on the sandbox, and the same from Python beside a worker."""
    terminal = terminals.terminal("rows")
    said = terminal.run(Snippet("docs/rows.md", "products.csv --prompt")).out.splitlines()
    assert said[0] == "id,name,price,answer,state,error,finish_reason,input_tokens,output_tokens,cost"
    assert [line.split(",")[:3] for line in said[1:]] == [["a1", "Lamp", "30"], ["a2", "Chair", "45"]]
    script = Snippet("docs/rows.md", "class Description").text
    done = terminal.machine.start_python("-c", script).finish()
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["paris", "rome"]


def quickstart(terminals: Terminals) -> None:
    """With the private Redis that the page speaks of, and a worker with its sandbox."""
    terminal = terminals.terminal("quickstart", private=True)
    terminal.run(Snippet("docs/quickstart.md", "pip install"))
    checked = terminal.run(Snippet("docs/quickstart.md", "cat > requests.jsonl"))
    assert checked.err == Snippet("docs/quickstart.md", "ok: 2 rows").text
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        terminal.machine.environment.pop(name)
    answers = terminal.run(Snippet("docs/quickstart.md", "results --sandbox")).out
    assert [json.loads(line)["custom_id"] for line in answers.splitlines()] == ["paris", "rome"]
    terminal.environment["BATCHPIPE_SANDBOX_PORT"] = str(free_port())
    terminal.up(Snippet("docs/quickstart.md", "batchpipe worker --sandbox"))
    terminal.machine.write("cities.py", Snippet("docs/quickstart.md", "# cities.py").text.encode())
    said = terminal.run(Snippet("docs/quickstart.md", "python cities.py")).out.splitlines()
    job, state = said[0].split()
    assert state in {"pending", "preparing", "running"}  # the worker is quick
    assert said[1:4] == ["Paris ok", "Rome ok", "Oslo ok"]
    story = terminal.run(Snippet("docs/quickstart.md", "batchpipe status JOB"), {"JOB": job}).out
    assert "submitted" in story
    assert '"custom_id":"Oslo"' in story


def python(terminals: Terminals) -> None:
    terminal = terminals.terminal("python")
    terminal.machine.write("requests.jsonl", request_lines(3))
    script = Snippet("docs/python.md", "import batchpipe").text
    done = terminal.machine.start_python("-c", script).finish()
    assert (done.code, "ok=3" in done.out) == (0, True), done.err


def cron(terminals: Terminals) -> None:
    terminal = terminals.terminal("cron")
    machine = terminal.machine
    (machine.folder / "exports").mkdir()
    for day in ("2026-03-01", f"{datetime.now(ZoneInfo('Europe/Berlin')):%F}"):
        machine.input(2, name=f"exports/{day}.jsonl")
    machine.write("batchpipe.toml", Snippet("docs/cron.md", "# batchpipe.toml").text.encode())
    terminal.up_and_down(Snippet("docs/cron.md", "batchpipe beat"))
    jobs = terminal.run(Snippet("docs/cron.md", "batchpipe schedules run nightly")).out.split()
    assert len(set(jobs)) == 2
    wrong = '[schedules.nightly]\ncrontab = "0 25 * * *"\ninput = "x"\n'
    machine.write("wrong.toml", wrong.encode())
    refused = machine.run("list", env={"BATCHPIPE_CONFIG": "wrong.toml"})
    assert refused.err == Snippet("docs/cron.md", "is no crontab: bad hour").text


def settings_of_a_site(terminals: Terminals) -> None:
    for snippet in (Snippet("docs/cron.md", "BATCHPIPE = {"), Snippet("docs/django.md", '"WORKSPACE": "s3')):
        names: dict[str, Any] = {"os": SimpleNamespace(environ={"REDIS_URL": "redis://localhost:6379/0"})}
        exec(snippet.text, names)
        settings = load_settings(given=SiteSettings(names["BATCHPIPE"], str))
        assert settings.schedules["nightly"].crontab == "0 2 * * *"


def crontab(terminals: Terminals) -> None:
    """Each line is a crontab and a command, which is run as cron does: by sh, with `%` for `\\%`."""
    terminal = terminals.terminal("crontab", BATCHPIPE_PREFIX="{crontab}:")  # another story has the same key
    machine = terminal.machine
    machine.environment |= terminal.environment
    machine.input(2, name="today.jsonl")
    for snippet in (Snippet("docs/cron.md", "today.jsonl"), Snippet("docs/cron.md", "batchpipe sweep")):
        assert set(re.findall(r"^(\w+)=", snippet.text, flags=re.MULTILINE)) <= {"SHELL", "PATH"}
        for line in snippet.text.splitlines():
            if not line or re.match(r"\w+=", line):
                continue
            *when, command = line.split(maxsplit=5)
            list(zip(range(3), CronSim(" ".join(when), datetime(2026, 1, 1)), strict=False))
            assert "%" not in command.replace(r"\%", "")
            started = terminal.start(command.replace(r"\%", "%").replace("/srv/app", str(machine.folder)))
            assert (done := started.finish()).code == 0, done.err
    folder = str(machine.folder / f"results/{datetime.now():%F}")
    assert folder in [job["output"] for job in machine.json("list")]


def flower(terminals: Terminals) -> None:
    """Its second command is that of a proxy with TLS in front."""
    terminal = terminals.terminal("flower", FLOWER_UNAUTHENTICATED_API="false")
    first = {"batchpipe flower  ": f"batchpipe flower --port {free_port()} "}
    terminal.up_and_down(Snippet("docs/flower.md", "# http://127.0.0.1:5555"), first)
    terminal.up_and_down(Snippet("docs/flower.md", "--url-prefix"), {"5555": str(free_port())})


def monitoring(terminals: Terminals) -> None:
    terminal = terminals.terminal("monitoring")
    machine = terminal.machine
    job = machine.submit(machine.input(2))
    swap = {"batchpipe metrics ": f"batchpipe metrics --port {free_port()} ", "JOB": job}
    terminal.up_and_down(Snippet("docs/monitoring.md", "batchpipe logs JOB --follow"), swap)
    mounted = Snippet("docs/monitoring.md", "metrics.wsgi_app()").text
    events = Snippet("docs/monitoring.md", "job.iter_logs").text
    sizes(terminal, job)
    logging = Snippet("docs/monitoring.md", "LOGGING = {").text
    script = (
        f"{mounted}\nassert b'batchpipe_up 1' in body\nimport batchpipe\njob = batchpipe.get_job({job!r})\n{events}"
    )
    script += f"\n{logging}\nimport logging.config\nlogging.config.dictConfig(LOGGING)\nlogging.warning('as JSON')\n"
    done = machine.start_python("-c", script).finish()
    assert (done.code, " ended\n" in done.out) == (0, True), done.err
    assert json.loads(done.err.splitlines()[-1])["message"] == "as JSON"


def sizes(terminal: Terminal, job: str) -> None:
    """What docs/operations.md has one ask a Redis."""
    need("redis-cli")
    ask = {"redis-cli": f"redis-cli -u {terminal.machine.redis_url}", "JOB": job}
    shard, log, info = terminal.run(Snippet("docs/operations.md", "memory usage"), ask).out.split("\n", 2)
    assert int(shard) < 10_000, "the page says: some kilobytes"
    assert int(log) > 0
    assert "used_memory:" in info


def sandbox_page(terminals: Terminals) -> None:
    terminal = terminals.terminal("sandbox")
    machine, port = terminal.machine, str(free_port())
    machine.write("requests.jsonl", request_lines(2))
    terminal.up(Snippet("docs/sandbox.md", "batchpipe sandbox --port 8089"), {"8089": port})
    swap = {"8089": port, "-o results": "-o others"}
    terminal.run(Snippet("docs/sandbox.md", "export OPENAI_BASE_URL"), swap)
    done = machine.start_python("-c", Snippet("docs/sandbox.md", "with Sandbox(").text).finish()
    assert done.code == 0, done.err
    terminal.up_and_down(
        Snippet("docs/sandbox.md", "--upstream-concurrency"), {"batchpipe sandbox": "batchpipe sandbox --port 0"}
    )
    hooks = {"8090": str(free_port()), "batchpipe sandbox": "batchpipe sandbox --port 0"}
    terminal.up_and_down(Snippet("docs/sandbox.md", "--webhook-url"), hooks)


def settings_page(terminals: Terminals) -> None:
    terminal = terminals.terminal("settings")
    terminal.machine.write("requests.jsonl", request_lines(2))
    terminal.environment["BATCHPIPE_ACCOUNTS__MARKETING__BASE_URL"] = terminals.sandbox.base_url
    terminal.run(Snippet("docs/settings.md", "--account marketing"))


def providers(terminals: Terminals) -> None:
    terminal = terminals.terminal("providers")
    terminal.machine.write("requests.jsonl", request_lines(2))
    account = "BATCHPIPE_ACCOUNTS__FAST"
    terminal.environment |= {f"{account}__BASE_URL": terminals.sandbox.base_url, f"{account}__SHORTEST_WINDOW": "24h"}
    terminal.run(Snippet("docs/providers.md", "PROFILE=groq"), {"API_KEY=...": "API_KEY=any", "7d": "24h"})
    probes = Snippet("docs/providers.md", "--write .env")
    terminal.environment[f"{account}__API_KEY"] = "any"
    quick = {"batchpipe probe  ": "batchpipe probe --yes --timeout 20", "probe fast": "probe fast --timeout 20"}
    terminal.run(probes, quick)
    assert "BATCHPIPE_ACCOUNTS__FAST__LISTS_BATCHES=true" in (terminal.machine.folder / ".env").read_text()


def notifications(terminals: Terminals) -> None:
    terminal = terminals.terminal("notifications")
    secret = {"whsec_...": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    terminal.run(Snippet("docs/notifications.md", "BATCHPIPE_TARGETS__OPS__URL"), secret)
    terminal.run(Snippet("docs/notifications.md", "--resend all"))


def webhooks(terminals: Terminals) -> None:
    """Each receiver refuses what nobody has signed; the command says whose secrets it has."""
    terminal, port = terminals.terminal("webhooks"), str(free_port())
    secrets = Snippet("docs/webhooks.md", "MARKETING__WEBHOOK_SECRET").with_({"whsec_...": SECRET})
    command = Snippet("docs/webhooks.md", "batchpipe webhooks").with_({"8090": port})
    both = terminal.start(f"{secrets}\nexec {command}")
    until(lambda: "default (1 secret), marketing (1 secret)" in both.err + both.out, 60, "the receiver is up")
    rotated = Snippet("docs/webhooks.md", "whsec_NEW").with_({"whsec_OLD...": SECRET, "whsec_NEW...": SECRET[:-8]})
    one = terminal.start(f"{rotated}\nexec batchpipe webhooks --port 0")
    until(lambda: "default (2 secrets)" in one.err + one.out, 60, "the receiver with two secrets is up")
    proxy = Snippet("docs/webhooks.md", "location = /webhooks").text
    assert f"client_max_body_size {MOST_BYTES // 1024}k;" in proxy
    assert "proxy_pass http://127.0.0.1:8090;" in proxy
    django = Snippet("docs/webhooks.md", "batchpipe.contrib.django.urls").text
    terminal.machine.write("urls.py", f"from django.urls import include, path\nurlpatterns = []\n{django}".encode())
    flask, asgi = Snippet("docs/webhooks.md", "register_blueprint").text, Snippet("docs/webhooks.md", "app.mount").text
    script = RECEIVERS.format(flask=flask, asgi=asgi)
    env = {"PYTHONPATH": str(terminal.machine.folder), "OPENAI_WEBHOOK_SECRET": SECRET}
    done = terminal.machine.start_python("-c", script, env=env).finish(60)
    assert (done.code, done.out) == (0, "400 400 WebhookApp\n"), done.err


def scaling(terminals: Terminals) -> None:
    terminal = terminals.terminal("scaling")
    terminal.machine.write("urgent.jsonl", request_lines(2))
    terminal.up_and_down(Snippet("docs/scaling.md", "--concurrency 16"))
    terminal.up(Snippet("docs/scaling.md", "--queues urgent"))
    [job] = [job for job in terminal.machine.json("list") if job["output"] == str(terminal.machine.folder / "urgent")]
    assert terminal.machine.run("wait", job["id"]).code == 0


STORIES = [readme, rows, quickstart, python, cron, settings_of_a_site, crontab, flower, monitoring, sandbox_page]
STORIES += [settings_page, providers, notifications, webhooks, scaling]


@pytest.fixture(scope="module")
def observed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sandbox: Sandbox,
    redis_server: RedisServer,
) -> Iterator[Stories]:
    terminals = Terminals(tmp_path_factory.mktemp("snippets"), sandbox, redis_server, shared=True)
    terminals.terminal("worker").machine.worker("--concurrency", "4", wait=False)
    telling = Stories(terminals, asked_for(request))
    yield telling
    telling.close()


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_blocks_of_a_page_run(observed: Stories, story: Story) -> None:
    observed.result(story)
