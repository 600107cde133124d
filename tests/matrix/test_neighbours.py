"""What lives in the same Celery app: schedulers, result backends, what watches errors and times."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.acceptance.site import Shop
from tests.acceptance.user_machine import API_KEY, Machine, until
from tests.matrix.cache import environment
from tests.matrix.django_site import Site

pytestmark = pytest.mark.matrix
NewMachine = Callable[..., Machine]
POOLS = ["threads", pytest.param("prefork", marks=pytest.mark.ci)]
#: A task of the site's own that fails, and one that answers.
OWN_TASKS = """
@app.task(name="shop.fails")
def fails():
    raise RuntimeError("this is the site's own")

@app.task(name="shop.answers")
def answers():
    return 42
"""


def new_shop(new_machine: NewMachine, name: str, python: Path, code: str) -> Shop:
    machine = new_machine(name)
    assert machine.redis_url is not None
    return Shop(machine, machine.redis_url, python, code, broker_transport_options={"socket_timeout": 30})


def check_job(machine: Machine, job: str) -> None:
    done = machine.run("wait", job, "--timeout", "60")
    assert done.code == 0, done.err
    assert set(machine.billed(job).values()) == {1}


# -- schedulers ------------------------------------------------------------------------------------------------------


@pytest.mark.ci
def test_redbeat_sends_the_sweep(new_machine: NewMachine) -> None:
    """It keeps its entries in Redis, ours among them; and a job beside it ends."""
    python = environment("redbeat", "celery-redbeat")
    code = 'app.conf.redbeat_redis_url = os.environ["SHOP_BROKER"]\n'
    shop = new_shop(new_machine, "redbeat", python, code)
    worker = shop.worker()
    beat = shop.celery("beat", "-S", "redbeat.RedBeatScheduler", "--max-interval", "1", "--loglevel", "DEBUG")

    until(lambda: "batchpipe.sweep sent" in beat.err + beat.out, what="beat sends the sweep")
    check_job(shop.machine, shop.submit("--max-rows", "4"))
    assert "Traceback" not in worker.err + beat.err, beat.err


@pytest.fixture(scope="module")
def django_python() -> Path:
    return environment("celery-results", "django-celery-beat", "django-celery-results")


def new_site(new_machine: NewMachine, python: Path, name: str, more: str) -> Site:
    site = Site(new_machine(name), python, more)
    site.with_celery_app()
    site.machine.environment["BATCHPIPE_APP"] = "proj.celery"
    site.machine.environment["DJANGO_SETTINGS_MODULE"] = "proj.settings"
    return site


def submit(site: Site) -> str:
    """By the site's own command, which sends the signals of its end, too."""
    output = str(site.machine.folder / "out")
    done = site.start("manage.py", "batchpipe", "submit", str(site.machine.input(6)), "-o", output).finish()
    assert done.code == 0, done.err
    return done.out.strip()


def wait(site: Site, job: str) -> None:
    done = site.start("manage.py", "batchpipe", "wait", job, "--timeout", "60").finish(70)
    assert done.code == 0, done.err
    assert set(site.machine.billed(job).values()) == {1}


@pytest.mark.ci
def test_django_celery_beat_sends_the_sweep(new_machine: NewMachine, django_python: Path) -> None:
    """Its scheduler writes our entry into its table; and a job beside it ends."""
    site = new_site(new_machine, django_python, "dcb", 'INSTALLED_APPS += ["django_celery_beat"]\n')
    site.worker("-m", "celery", "-A", "proj", "worker", "--pool", "threads", "--loglevel", "INFO")
    scheduler = ("-S", "django_celery_beat.schedulers:DatabaseScheduler", "--max-interval", "1")
    beat = site.start("-m", "celery", "-A", "proj", "beat", "--loglevel", "DEBUG", *scheduler)
    until(lambda: "batchpipe.sweep sent" in beat.err + beat.out, what="beat sends the sweep")
    wait(site, submit(site))
    names = "from django_celery_beat.models import PeriodicTask as P; print(*P.objects.values_list('name', flat=True))"
    listed = site.start("manage.py", "shell", "-c", names).finish()

    assert "batchpipe-sweep" in listed.out, listed.err
    assert "Traceback" not in beat.err + beat.out, beat.err


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.ci
def test_django_celery_results_keeps_those_of_the_site_and_none_of_ours(
    new_machine: NewMachine, django_python: Path
) -> None:
    """Thousands of polls would fill its table; the site's own tasks answer as ever."""
    more = 'INSTALLED_APPS += ["django_celery_results"]\nCELERY_RESULT_BACKEND = "django-db"\n'
    site = new_site(new_machine, django_python, "dcr", more)
    own = 'from celery import shared_task\n\n\n@shared_task(name="shop.answers")\ndef answers():\n    return 42\n'
    (site.machine.folder / "shop/tasks.py").write_text((site.machine.folder / "shop/tasks.py").read_text() + own)
    site.worker("-m", "celery", "-A", "proj", "worker", "--pool", "threads", "--loglevel", "INFO")
    wait(site, submit(site))
    script = """
import json
from django_celery_results.models import TaskResult
from shop.tasks import answers
asked = answers.delay()
print(json.dumps([asked.get(timeout=30), sorted(TaskResult.objects.values_list("task_id", flat=True)) == [asked.id]]))
"""
    done = site.start("manage.py", "shell", "-c", script).finish()

    assert done.out.strip().endswith("[42, true]"), (done.out, done.err)


# -- what watches ------------------------------------------------------------------------------------------------------


class Recorder:
    """An HTTP server that takes whatever is posted, as Sentry would."""

    def __init__(self) -> None:
        bodies = self.bodies = list[bytes]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def events(self) -> list[dict[str, object]]:
        """The JSON objects of all envelopes, a line each."""
        lines = (line for body in list(self.bodies) for line in body.splitlines() if line.startswith(b"{"))
        return [json.loads(line) for line in lines]

    def errors(self) -> list[str]:
        return [json.dumps(one["exception"]) for one in self.events() if "exception" in one]

    def transactions(self) -> set[str]:
        return {str(one["transaction"]) for one in self.events() if "transaction" in one and "spans" in one}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize("pool", POOLS)
def test_sentry_hears_of_the_sites_errors_and_of_none_of_ours(
    new_machine: NewMachine, recorder: Recorder, pool: str
) -> None:
    """A poll that comes back is no error. What it is told of our tasks holds no key and no prompt."""
    python = environment("sentry", "sentry-sdk[celery]")
    code = f"""
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
sentry_sdk.init(
    dsn="http://public@127.0.0.1:{recorder.server.server_port}/1",
    integrations=[CeleryIntegration(monitor_beat_tasks=True)],
    traces_sample_rate=1.0,
    send_default_pii=True,
)
"""
    shop = new_shop(new_machine, f"sentry-{pool}", python, code + OWN_TASKS)
    worker = shop.celery("worker", "--pool", pool, "--concurrency", "2", "--loglevel", "INFO")
    shop.machine.await_ready(worker)
    job = shop.submit("--max-rows", "4")
    check_job(shop.machine, job)
    done = shop.machine.start_python("-c", "from shop.celery import app; app.send_task('shop.fails')").finish()
    assert done.code == 0, done.err
    until(lambda: any("this is the site's own" in error for error in recorder.errors()), what="Sentry hears of it")
    until(lambda: {"batchpipe.poll", "batchpipe.merge"} <= recorder.transactions(), what="and of our tasks")

    assert [error for error in recorder.errors() if "this is the site's own" not in error] == []
    observed = b"".join(recorder.bodies).decode()
    assert API_KEY not in observed
    assert "Tell me about r1" not in observed


@pytest.mark.parametrize("pool", POOLS)
def test_opentelemetry_has_a_span_for_each_of_our_tasks(new_machine: NewMachine, pool: str) -> None:
    """None of them is an error. What is done in the visit of the step before has no message, and no span of its own."""
    python = environment("otel", "opentelemetry-sdk", "opentelemetry-instrumentation-celery")
    code = """
from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
import json

class Written(SpanExporter):
    def export(self, spans):
        with open("spans", "a") as file:
            for span in spans:
                file.write(json.dumps([span.name, span.status.status_code.name, span.context.trace_id]) + "\\n")
        return SpanExportResult.SUCCESS

def instrument(**_):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Written()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()

if "prefork" in os.sys.argv:
    worker_process_init.connect(instrument, weak=False)
else:
    instrument()
"""
    shop = new_shop(new_machine, f"otel-{pool}", python, code)
    worker = shop.celery("worker", "--pool", pool, "--concurrency", "2", "--loglevel", "INFO")
    shop.machine.await_ready(worker)
    job = shop.submit("--max-rows", "4")
    check_job(shop.machine, job)
    file = shop.machine.folder / "spans"
    wanted = {f"run/batchpipe.{name}" for name in ("prepare", "upload", "poll")}

    def spans() -> list[list[str]]:
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    until(lambda: wanted <= {name for name, *_ in spans()}, what="each task has a span")
    assert [span for span in spans() if span[1] == "ERROR"] == []
    assert "Traceback" not in worker.err
