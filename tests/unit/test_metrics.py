"""What Prometheus reads: parsed by its own parser, checked by promtool, compared with the dashboard and the alerts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from batchpipe.client.client import Client
from batchpipe.client.measures import COUNT_SECONDS, MOST_MODELS, Meter
from batchpipe.client.waiting import follow_log
from batchpipe.config.settings import Settings
from batchpipe.errors import Paused, StoreUnavailable, Unavailable
from batchpipe.model.records import Stage
from batchpipe.model.views import metrics_view
from batchpipe.monitoring import prometheus as metrics
from batchpipe.monitoring.prometheus import GAUGES, PREFIX, ROOMS, JobCollector
from batchpipe.store import Connection, Store
from batchpipe.store.counters import Counters
from batchpipe.store.events import Events
from batchpipe.telemetry.counters import METRICS, REASONS
from batchpipe.testing import FakeOpenAI, Pump
from tests.redis_server import new_redis

MONITORING = Path(__file__).parents[2] / "examples" / "monitoring"
Rows = Callable[..., list[dict[str, object]]]
Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """Two rows a shard."""
    return Pump(tmp_path, max_rows=2)


def exposed(store: Store, **options: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(JobCollector(Meter(lambda: store, **options).read))
    return registry


def numbers(registry: CollectorRegistry) -> Numbers:
    """Every sample of the output, as the client's own parser reads it."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Numbers, name: str, **labels: str) -> float:
    return found[PREFIX + name, tuple(sorted(labels.items()))]


# -- numbers -------------------------------------------------------------------------------------------------------


def test_a_job_is_counted_from_end_to_end(pump: Pump, chat_rows: Rows) -> None:
    """Jobs, rows, tokens, turns and the seconds of each stage agree with what was done."""
    pump.run_until_idle()
    pump.submit(chat_rows(5))
    pump.run_until_idle()
    pump.sweep()
    found = numbers(exposed(pump.store))
    assert value(found, "up") == 1
    assert value(found, "jobs", state="succeeded") == 1
    assert value(found, "jobs_ended_total", account="default", state="succeeded") == 1
    assert value(found, "rows_total", account="default", outcome="ok") == 5
    assert value(found, "rows_collected_total", account="default", outcome="ok") == 5
    assert value(found, "tokens_total", account="default", kind="total_tokens") == 15
    assert value(found, "turns_total", link="create", ending="continue") == 3
    assert value(found, "retries_total", link="poll") == value(found, "waits_total", reason="poll") > 0
    assert value(found, "wait_seconds_total", reason="poll") > 0
    for stage in ("planned", "uploaded", "created", "ended"):
        assert value(found, "stage_seconds_count", stage=stage) == 3, stage
    for stage in ("pending", "preparing", "finalizing"):
        assert value(found, "stage_seconds_count", stage=stage) == 1, stage
    assert value(found, "stage_seconds_sum", stage="created") > 10
    assert value(found, "sweeps_total") == 1
    assert value(found, "sweep_age_seconds") < 60
    assert value(found, "unfinished_records") == 0


def test_shards_in_flight_are_seen_with_their_age(tmp_path: Path, chat_rows: Rows) -> None:
    pump = Pump(tmp_path, api=FakeOpenAI(), max_rows=2)
    pump.submit(chat_rows(6))
    while pump.step() is not None:
        pass
    pump.advance(90_000)
    found = numbers(exposed(pump.store))
    assert value(found, "shards", stage="created") == value(found, "unfinished_records") == 3
    assert value(found, "oldest_shard_seconds") == pytest.approx(90_000, abs=60)
    assert value(found, "overdue_records") == 3
    assert 80_000 < value(found, "sweep_lag_seconds") < 90_000
    assert value(found, "sweep_age_seconds") == float("inf")
    assert value(found, "jobs", state="running") == 1


def test_the_count_of_shards_is_kept_for_some_seconds(pump: Pump, chat_rows: Rows) -> None:
    """However many scrape, the shards in flight are counted once in ten seconds."""
    at = [0.0]
    registry = exposed(pump.store, clock=lambda: at[0])
    assert value(numbers(registry), "shards", stage="planned") == 0
    pump.submit(chat_rows(4))
    pump.step()
    assert value(numbers(registry), "shards", stage="planned") == 0
    at[0] = COUNT_SECONDS
    assert value(numbers(registry), "shards", stage="planned") == 2


def test_many_shards_are_counted_a_chunk_at_a_time(pump: Pump, chat_rows: Rows) -> None:
    """Across the borders of chunks, and not beyond the bound."""
    pump.submit(chat_rows(14))
    pump.step()
    assert pump.store.counters.count_open_shards(chunk=3).stages[Stage.PLANNED] == 7
    assert pump.store.counters.count_open_shards(chunk=7).stages[Stage.PLANNED] == 7
    assert pump.store.counters.count_open_shards(chunk=2, most=4).stages[Stage.PLANNED] == 4


def test_waits_are_counted_by_reason(pump: Pump, chat_rows: Rows) -> None:
    pump.api.fail_next("upload", Unavailable("HTTP 503", status=503), times=2)
    pump.api.fail_next("create_batch", Paused("no key", code="invalid_api_key"))
    job_id = pump.submit(chat_rows(2))
    found: Numbers = {}
    for _ in range(100):
        if pump.store.accounts.pause_of("default"):
            found = numbers(exposed(pump.store))
            break
        if pump.step() is None:
            pump.advance(1)
    assert 0 < value(found, "account_paused_seconds", account="default") <= pump.settings.account_pause_seconds
    assert value(found, "shards_in_trouble") == 1
    pump.run_until_idle()
    found = numbers(exposed(pump.store))
    assert value(found, "waits_total", reason="provider") == 2
    assert value(found, "waits_total", reason="paused") >= 1
    assert value(found, "account_pauses_total", account="default") == 1
    assert {"provider", "paused"} <= set(_metrics_of(pump, job_id)["waits"])


def _metrics_of(pump: Pump, job_id: str) -> dict[str, Any]:
    job, store = pump.job(job_id), pump.store
    return metrics_view(job, store.shards.of_job(job), store.now(), store.events.read(job_id))


def test_one_job_tells_the_same_of_itself(pump: Pump, chat_rows: Rows) -> None:
    """Rows that were sent again, batches and uploads, beside rows, tokens and seconds."""
    refused = iter([503])
    pump.api.answer = lambda request: (
        next(refused, {"usage": {"total_tokens": 3}}) if request["custom_id"] == "r1" else {}
    )
    job_id = pump.submit(chat_rows(3))
    pump.run_until_idle()
    shown, found = _metrics_of(pump, job_id), numbers(exposed(pump.store))
    assert (shown["rounds"], shown["batches"], shown["uploads"], shown["rows_resent"]) == (2, 3, 3, 1)
    assert shown["stages"] == {"collected": 3}
    assert shown["rows"]["ok"] == value(found, "rows_total", account="default", outcome="ok") == 3
    assert value(found, "rounds_total") == value(found, "rows_resent_total") == 1
    assert value(found, "rows_collected_total", account="default", outcome="failed") == 1


def test_a_turn_does_not_fail_for_its_counts(tmp_path: Path, chat_rows: Rows) -> None:
    """They wait in the process until Redis takes them."""

    class Forgetful(Counters):
        away = True

        def add(self, counts: Any) -> None:
            if self.away:
                raise StoreUnavailable("Redis: gone")
            super().add(counts)

    store = Store(Connection(new_redis()))
    counters = store.counters = Forgetful(store.connection)
    pump = Pump(tmp_path, store=store)
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    assert pump.job(job_id).ok == 2
    counters.away = False
    pump.shard_runner.flush()
    assert value(numbers(exposed(store)), "rows_collected_total", account="default", outcome="ok") == 2


def test_a_scrape_while_redis_is_away_says_so() -> None:
    """It is answered: up is 0, and there is no other number that could be believed."""
    found = numbers(exposed(Store.connect("redis://127.0.0.1:1/0")))
    assert found == {("batchpipe_up", ()): 0}


def test_a_count_of_a_newer_version_is_no_trouble(pump: Pump) -> None:
    pump.store.counters.add({"what is this": 1, '["new","a","b"]': 1, '["turns","too few"]': 1, "{}": 1})
    assert value(numbers(exposed(pump.store)), "up") == 1


# -- labels --------------------------------------------------------------------------------------------------------


def test_more_jobs_make_no_more_series(tmp_path: Path, chat_rows: Rows) -> None:
    """And no label holds an id of a job, a batch, a file or a row."""
    pump = Pump(tmp_path, max_rows=1)
    registry = exposed(pump.store, clock=iter(range(0, 10_000, 60)).__next__)
    pump.submit(chat_rows(2))
    pump.run_until_idle()
    before = numbers(registry).keys()
    for _ in range(29):
        pump.submit(chat_rows(1))
    pump.run_until_idle()
    found = numbers(registry)
    assert value(found, "jobs_ended_total", account="default", state="succeeded") == 30
    assert found.keys() == before
    assert not [labels for _, labels in found if re.search(r"job_|batch_|file-|file_|\br\d", str(labels))]


def test_models_are_in_the_metrics_by_few_names_that_are_names(pump: Pump) -> None:
    """Rows name them, so anything may come; whoever reads metrics is asked nothing."""
    names = [f"model-{number}" for number in range(30)]
    odd = [
        "sk-" + "x" * 200,
        "see\nhttps://evil.example",
        "<b>",
        "ann@example.com wrote: {secret}",
        "ft:gpt-4o-mini:org::id",
    ]
    client: Any = pump.store.connection.client
    prefix, now = pump.store.connection.prefix, pump.store.now()
    day = int(now // 86_400)
    for age, name in enumerate([*odd, *names]):
        client.hset(f"{prefix}pace:default:{name}", f"{day}:took", '{"20":9}')
        client.zadd(f"{prefix}paces:default", {name: now - age})
    found = numbers(exposed(pump.store))
    models = {dict(labels).get("model") for _, labels in found} - {None}
    assert models == {"ft:gpt-4o-mini:org::id", *names[: MOST_MODELS - len(odd)]}


def test_known_series_are_there_before_they_count(pump: Pump) -> None:
    """`increase()` overlooks the first failure of a series that is born with it."""
    found = numbers(exposed(pump.store, accounts=lambda: ["other"]))
    assert value(found, "jobs_ended_total", account="other", state="failed") == 0
    assert value(found, "account_paused_seconds", account="other") == 0
    assert value(found, "stage_seconds_count", stage="created") == 0


# -- formats -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text after one job, with a call of each kind."""
    pump = Pump(tmp_path_factory.mktemp("output"))
    pump.submit(b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n')
    pump.run_until_idle()
    pump.shard_runner.counters.call("default", "GET /batches/{id}", "200", 0.2)
    pump.shard_runner.flush()
    return generate_latest(exposed(pump.store)).decode()


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool here; the client's own parser is the proof")
    done = subprocess.run([found, *map(str, arguments)], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_finds_nothing_to_mend(output: str) -> None:
    """Names, units, types and help texts are as the field writes them."""
    assert promtool("check", "metrics", text=output) == ""


def test_the_output_can_be_had_as_openmetrics(pump: Pump, chat_rows: Rows) -> None:
    """Which is stricter; Prometheus asks for it."""
    pump.submit(chat_rows(1))
    pump.run_until_idle()
    text = generate_openmetrics(exposed(pump.store)).decode()
    assert {f"{PREFIX}{name}" for name in (*GAUGES, *METRICS)} < {f.name for f in parse_openmetrics(text)}


@pytest.fixture
def client(redis_url: str, prefix: str, tmp_path: Path) -> Client:
    return Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path))


def test_a_redis_that_hangs_is_asked_once() -> None:
    """Each of its readings would be tried for minutes, and Prometheus waits for seconds."""

    class Hanging(Connection):
        def ping(self) -> None:
            raise StoreUnavailable("it hangs")

        def call(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("it was asked again")

        run = execute = call

    assert numbers(exposed(Store(Hanging(new_redis())))) == {("batchpipe_up", ()): 0}


def test_some_of_the_metrics_can_be_asked_for(pump: Pump) -> None:
    """``/metrics?name[]=...``, as of any other exporter; and nobody registers them twice."""
    registry = exposed(pump.store)
    some = generate_latest(registry.restricted_registry(["batchpipe_jobs", "batchpipe_rows_total"])).decode()

    assert {name.rsplit("_total")[0] for name in NAME.findall(some)} == {"batchpipe_jobs", "batchpipe_rows"}
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(JobCollector(Meter(lambda: pump.store).read))


def test_it_can_be_mounted_into_a_site(client: Client) -> None:
    """As a WSGI app, or as bytes for any view."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    answers: list[Any] = []
    body = b"".join(metrics.wsgi_app()(environ, cast(Any, lambda *answer: answers.append(answer))))
    assert answers[0][0] == "200 OK"
    assert b"\nbatchpipe_up 1.0\n" in body
    text, content_type = metrics.render(client)
    assert b"\nbatchpipe_up 1.0\n" in text
    assert content_type.startswith("text/plain; version=")


# -- dashboard and alerts ------------------------------------------------------------------------------------------

NAME = re.compile(r"\bbatchpipe_[a-z_]+")


def test_the_dashboard_asks_only_for_what_is_there(output: str) -> None:
    """Each panel has a title, a word of what it shows, and names and labels that exist."""
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all(panel["title"] and panel["description"] for panel in panels)
    _all_there(" ".join(asked), output)


def test_the_alerts_ask_only_for_what_is_there_and_say_what_to_do(output: str) -> None:
    text = (MONITORING / "alerts.yml").read_text()
    _all_there(text, output)
    alerts = text.count("- alert:")
    assert (
        alerts
        == text.count("summary:")
        == text.count("action:")
        == text.count("severity: page\n") + text.count("severity: ticket\n")
    )
    promtool("check", "rules", MONITORING / "alerts.yml")
    promtool("check", "config", MONITORING / "prometheus.yml")


def test_the_page_on_monitoring_names_every_metric_and_alert(output: str) -> None:
    """And none that is not there."""
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    counters = {f"{name}{'' if metric.buckets else '_total'}" for name, metric in METRICS.items()}
    assert set(NAME.findall(page)) == {PREFIX + name for name in ("up", *GAUGES, *ROOMS, *counters)}
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    assert sorted(re.findall(r"^\| `(Batchpipe\w+)` \|", page, re.MULTILINE)) == sorted(alerts)
    assert all(f"`{reason}`" in page for reason in REASONS)


def _all_there(text: str, output: str) -> None:
    there = {sample.name for f in text_string_to_metric_families(output) for sample in f.samples}
    assert (names := set(NAME.findall(text)))
    assert names - there == set()
    labels = {label for f in text_string_to_metric_families(output) for s in f.samples for label in s.labels}
    used = set(re.findall(r"[{,]\s*([a-z]+)(?:=~|!=|=)", text)) | {
        label for group in re.findall(r"by \(([a-z, ]+)\)", text) for label in group.split(", ")
    }
    assert used - labels - {"job"} == set()


ALERT_TEST = """
rule_files: [%s]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'up{job="batchpipe"}', values: '1x90'}
      - {series: 'batchpipe_up', values: '1x90'}
      - {series: 'batchpipe_unfinished_records', values: '3x90'}
      - {series: 'batchpipe_turns_total{link="poll",ending="retry"}', values: '0+1x20 20x70'}
      - {series: 'batchpipe_sweep_age_seconds', values: '0+60x90'}
      - {series: 'batchpipe_overdue_records', values: '0+1x90'}
      - {series: 'batchpipe_sweep_lag_seconds', values: '0+60x90'}
      - {series: 'batchpipe_oldest_shard_seconds', values: '93000+60x90'}
      - {series: 'batchpipe_account_paused_seconds{account="a"}', values: '0x30 300x60'}
      - {series: 'batchpipe_late_batches{account="a"}', values: '0x30 2x60'}
      - {series: 'batchpipe_jobs_ended_total{account="a",state="failed"}', values: '0x70 1x20'}
      - {series: 'batchpipe_rows_total{account="a",outcome="ok"}', values: '0x70 90x20'}
      - {series: 'batchpipe_rows_total{account="a",outcome="missing"}', values: '0x70 10x20'}
      - {series: 'batchpipe_provider_calls_total{account="a",route="GET /batches",status="200"}', values: '0+1x90'}
      - {series: 'batchpipe_provider_calls_total{account="a",route="GET /batches",status="error"}', values: '0+1x90'}
    promql_expr_test:
      - expr: 'count(ALERTS{alertstate="firing"})'
        eval_time: 10m
        exp_samples: []
      - expr: 'count by (alertname) (ALERTS{alertstate="firing"})'
        eval_time: 80m
        exp_samples:
%s
"""


def test_each_alert_fires_when_its_day_has_come(tmp_path: Path) -> None:
    """Of a batchpipe that is up; the two that say that nothing can be seen are left out."""
    rules = MONITORING / "alerts.yml"
    names = set(re.findall(r"- alert: (\w+)", rules.read_text())) - {"BatchpipeMetricsMissing", "BatchpipeRedisDown"}
    samples = "\n".join(f"          - {{labels: '{{alertname=\"{name}\"}}', value: 1}}" for name in sorted(names))
    test = tmp_path / "test.yml"
    test.write_text(ALERT_TEST % (rules, samples))
    promtool("test", "rules", test)


# -- following a log -----------------------------------------------------------------------------------------------


def test_a_log_is_followed_to_the_end_though_redis_blinks(tmp_path: Path, chat_rows: Rows) -> None:
    """Each event comes once, in order, and the last one is there."""

    class Blinking(Events):
        pump: Pump
        reads = 0

        def read(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
            self.reads += 1
            if self.reads % 2:
                raise StoreUnavailable("Redis: gone")
            if self.pump.step() is None:  # the job goes on between two readings
                self.pump.advance(5)
            return super().read(*args, **kwargs)

    store = Store(Connection(new_redis()))
    store.events = blinking = Blinking(store.connection)
    pump = blinking.pump = Pump(tmp_path, store=store)
    job_id = pump.submit(chat_rows(2))
    seen = list(follow_log(store, job_id, pause=0))
    assert seen == Events(store.connection).read(job_id)
    assert [event["event"] for event in seen if event["event"] in ("planned", "ended")] == ["planned", "ended"]
