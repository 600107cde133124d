"""What ``batchpipe.setup`` adds to a site's Celery app, and what it only reports."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task, current_app, signals
from kombu.entity import Exchange, Queue

from batchpipe.config.limits import LONG_TASK_SECONDS, LONGEST_GROWTH, task_limit, turn_deadline
from batchpipe.config.loading import load_settings
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_settings, current_site
from batchpipe.config.site_values import SiteSettings
from batchpipe.errors import SettingsError
from batchpipe.model.steps import STEPS
from batchpipe.tasks.app import app_in_use
from batchpipe.worker.checks import check_app
from batchpipe.worker.request import TaskRequest
from batchpipe.worker.setup import is_set_up, load_app, setup, site_app

SETTINGS = Settings(_env_file=None)
GOOD = {
    "broker_url": "redis://localhost/9",
    "worker_prefetch_multiplier": 1,
    "broker_transport_options": {"socket_timeout": 30},
}


def app(**configuration: Any) -> Celery:
    made = Celery("shop", set_as_current=False)
    made.conf.update({**GOOD, **configuration})
    return made


def names(site: Celery) -> list[str]:
    return [finding.name for finding in check_app(site, SETTINGS)]


def test_an_app_that_suits_is_reported_as_such() -> None:
    assert names(app()) == []


@pytest.mark.parametrize(
    ("configuration", "name", "fatal"),
    [
        ({"accept_content": ["pickle"]}, "app.conf.accept_content", True),
        ({"task_always_eager": True}, "app.conf.task_always_eager", True),
        ({"broker_transport_options": {"socket_timeout": 9, "visibility_timeout": 1_000}}, "transport", False),
        ({"broker_transport_options": {}}, "transport", False),
        ({"broker_transport_options": {"socket_timeout": 9, "visibility_timeout": "60"}}, "transport", False),
        ({"worker_prefetch_multiplier": 4}, "app.conf.worker_prefetch_multiplier", False),
        ({"worker_prefetch_multiplier": 0}, "app.conf.worker_prefetch_multiplier", False),
        ({"task_annotations": {"*": {"max_retries": 3}}}, "app.conf.task_annotations", False),
        ({"task_annotations": {"*": {"rate_limit": "1/m"}}}, "app.conf.task_annotations", False),
        ({"task_annotations": {"*": {"serializer": "pickle"}}}, "app.conf.task_annotations", True),
        ({"task_annotations": {"*": {"expires": 60}}}, "app.conf.task_annotations", False),
        ({"task_annotations": {"*": {"ignore_result": False}}}, "app.conf.task_annotations", False),
        ({"task_annotations": {"*": {"acks_late": False}}}, "app.conf.task_annotations", False),
        ({"task_annotations": {"*": {"reject_on_worker_lost": False}}}, "app.conf.task_annotations", False),
        ({"task_annotations": {"*": {"routing_key": "low"}}}, "app.conf.task_annotations", False),
        ({"task_annotations": {"batchpipe.sweep": {"rate_limit": "1/h"}}}, "app.conf.task_annotations", False),
        ({"task_annotations": {"batchpipe.merge": {"time_limit": 60}}}, "app.conf.task_annotations", False),
        ({"task_routes": {"*": {"exchange": "low", "routing_key": "low"}}}, "app.conf.task_routes", True),
        ({"task_routes": {"batchpipe.*": {"expires": 60}}}, "app.conf.task_routes", True),
        ({"broker_url": "amqp://", "task_default_queue_type": "quorum"}, "app.conf.task_queues", False),
        ({"worker_pool": "eventlet"}, "app.conf.worker_pool", True),
        ({"worker_enable_remote_control": False}, "app.conf.worker_enable_remote_control", False),
    ],
)
def test_a_setting_that_does_harm_is_named_with_the_line_to_write(
    configuration: dict[str, Any], name: str, fatal: bool
) -> None:
    [finding] = check_app(app(**configuration), SETTINGS)

    assert name in finding.name
    assert finding.fatal is fatal
    assert finding.line.startswith(f"{finding.name} = ")
    site = app(**configuration)
    exec(f"from kombu import Exchange, Queue\n{finding.line}", {"app": site})  # as it is pasted
    assert names(site) == []


@pytest.mark.parametrize(
    "configuration",
    [
        {"task_annotations": {"*": {"track_started": True}, "shop.pay": {"rate_limit": "1/m"}}},
        {"task_routes": {"batchpipe.*": {"queue": "slow"}}, "task_create_missing_queues": True},
        {"task_routes": [{"shop.*": {"exchange": "low", "routing_key": "low"}}]},
        {"task_default_rate_limit": "1/m", "task_serializer": "pickle", "accept_content": ["json", "pickle"]},
        {"task_acks_late": False, "task_ignore_result": False, "task_track_started": True},
    ],
)
def test_a_setting_that_does_not_reach_our_tasks_or_does_no_harm_is_none_of_our_business(
    configuration: dict[str, Any],
) -> None:
    assert names(app(**configuration)) == []


def test_a_base_class_that_repeats_tasks_is_named() -> None:
    """Celery wraps each task that is made from it."""

    class Base(Task):  # type: ignore[misc]  # Celery has no types
        autoretry_for = (Exception,)

    site = Celery("shop", set_as_current=False, task_cls=Base)
    site.conf.update(GOOD)
    [finding] = check_app(site, SETTINGS)
    assert (finding.name, "autoretry_for" in finding.why) == ("task_cls", True)


def test_one_line_mends_all_of_a_setting_and_tells_no_secret() -> None:
    """Of a site's own options, too: a line for each alone would undo the other, and drop theirs."""
    theirs = {
        "socket_keepalive": True,
        "visibility_timeout": 60,
        "sentinel_kwargs": {"password": "s3cret"},
        "key": "s3",
    }
    first, second = check_app(app(broker_transport_options=theirs), SETTINGS)

    assert first.line == second.line
    assert first.line == (
        'app.conf.broker_transport_options = {"socket_keepalive": True, "visibility_timeout": 1800, '
        '"sentinel_kwargs": "...", "key": "...", "socket_timeout": 30, "socket_connect_timeout": 5}'
    )


def test_a_setting_that_says_none_is_the_default() -> None:
    """Django's settings often read ``os.environ.get(...)``."""
    assert names(app(broker_transport_options={"socket_timeout": 9, "visibility_timeout": None})) == []
    site = app(beat_schedule=None)
    setup(site)
    assert set(site.conf.beat_schedule) == {"batchpipe-sweep"}


def test_the_line_for_quorum_queues_is_enough() -> None:
    quorum = {"x-queue-type": "quorum"}
    ours = Queue("batchpipe", Exchange("batchpipe-topic", "topic"), "batchpipe", queue_arguments=quorum)
    assert names(app(broker_url="amqp://", task_queues=[Queue("shop", queue_arguments=quorum), ours])) == []


def test_another_broker_has_no_visibility_timeout() -> None:
    """RabbitMQ knows none of Redis' transport options."""
    assert names(app(broker_url="amqp://localhost//", broker_transport_options={})) == []


def test_a_djangos_setting_is_spelled_as_django_spells_it() -> None:
    """``config_from_object(..., namespace="CELERY")`` is how its settings are read."""
    site = app(task_always_eager=True)
    site.namespace = "CELERY"

    assert names(site) == ["CELERY_TASK_ALWAYS_EAGER"]


def test_setup_adds_the_sweep_and_the_route() -> None:
    """What the site has said itself comes first. No other app of the process gets any of it."""
    site, other = app(task_routes={"batchpipe.sweep": {"queue": "theirs"}}, beat_schedule={"own": {"task": "x"}}), app()
    setup(site)
    setup(site)

    assert set(site.conf.beat_schedule) == {"own", "batchpipe-sweep"}
    assert site.conf.task_routes == [
        {"batchpipe.sweep": {"queue": "theirs"}},
        {"batchpipe.*": {"queue": "batchpipe"}},
    ]
    assert site.amqp.router.route({}, "batchpipe.poll")["queue"].name == "batchpipe"
    assert site.amqp.router.route({}, "batchpipe.sweep")["queue"].name == "theirs"
    assert site.amqp.router.route({}, "shop.own") != site.amqp.router.route({}, "batchpipe.poll")
    assert (other.conf.beat_schedule, other.conf.task_routes) == ({}, None)


def test_what_setup_adds_follows_the_settings_of_the_site() -> None:
    """They may be there only once the site is loaded, after somebody has read the app's configuration."""
    site = app()
    setup(site)
    assert site.conf.beat_schedule["batchpipe-sweep"]["schedule"] == 5
    given = SiteSettings({"QUEUE": "ours", "SWEEP_SECONDS": 9}, str)
    current_site().read = lambda: load_settings(given=given)
    site.loader.import_default_modules()

    assert site.conf.beat_schedule["batchpipe-sweep"]["schedule"] == 9
    assert site.conf.beat_schedule["batchpipe-sweep"]["options"]["queue"] == "ours"
    assert site.conf.task_routes == [{"batchpipe.*": {"queue": "ours"}}]


def test_a_dict_of_the_sites_settings_is_not_written_to() -> None:
    """Its beat schedule stands in a module that others may read, and another app may share."""
    theirs: dict[str, Any] = {"own": {"task": "x"}}
    site = app()
    site.config_from_object({**GOOD, "beat_schedule": theirs})
    setup(site)
    site.loader.import_default_modules()

    assert set(site.conf.beat_schedule) == {"own", "batchpipe-sweep"}
    assert set(theirs) == {"own"}


def test_an_app_that_makes_no_missing_queues_gets_ours() -> None:
    """``setup`` has told it; it would send nothing else, and raise in the view that submits."""
    site = app(task_create_missing_queues=False, task_queues=[Queue("shop")])
    setup(site)
    site.loader.import_default_modules()

    assert site.amqp.router.route({"queue": "batchpipe"}, "batchpipe.sweep")["queue"].name == "batchpipe"
    assert set(site.amqp.queues.consume_from) == {"shop"}


def test_celerys_current_app_may_be_set_up() -> None:
    """It is only a stand-in for the app, and signals tell of the app."""
    site = app()

    def make_at_home() -> None:
        site.set_current()
        setup(current_app)

    thread = threading.Thread(target=make_at_home)  # what is current is so in one thread
    thread.start()
    thread.join()

    assert is_set_up(site)
    assert set(site.conf.beat_schedule) == {"batchpipe-sweep"}
    assert site_app() is site


def test_a_site_may_call_its_app_batchpipe() -> None:
    site = Celery("batchpipe", set_as_current=False, broker="redis://localhost/9")
    setup(site)

    assert site_app() is site


def test_of_two_apps_the_one_whose_worker_this_is_publishes() -> None:
    """Its broker is the one whose messages the worker gets."""
    first, second = app(), app()
    for site in (first, second):
        setup(site, {"REDIS_URL": "redis://127.0.0.1:1/0"})
    signals.celeryd_init.send(sender="worker", instance=SimpleNamespace(app=first), conf=first.conf)

    assert app_in_use() is first
    assert set(first.amqp.queues.consume_from) == {"celery", "batchpipe"}


def test_setup_changes_nothing_that_is_the_sites() -> None:
    """The whole configuration before and after, but for what it adds."""
    site = app(worker_prefetch_multiplier=7)
    before = {name: value for name, value in site.conf.items() if name not in ("beat_schedule", "task_routes")}
    setup(site)
    site.loader.import_default_modules()

    assert before == {name: site.conf[name] for name in before}


def test_settings_may_be_given_in_the_call() -> None:
    """They come before the environment's, and an unknown name is spelled as it was given."""
    setup(app(), {"QUEUE": "ours", "ACCOUNTS": {"default": {"API_KEY": "sk-x"}}})
    assert current_settings().queue == "ours"
    assert current_settings().account("default").api_key is not None

    setup(app(), {"QUEUES": "ours"})
    with pytest.raises(SettingsError, match=r"batchpipe.setup\(app, settings=\{'QUEUES': ...\}\).*did you mean QUEUE"):
        current_settings()


def test_bad_settings_do_not_keep_a_site_from_loading(caplog: pytest.LogCaptureFixture) -> None:
    """The site's own tasks must run; what is wrong is one line in the log."""
    site = app()
    setup(site, {"ATTEMPTS": 0})
    site.loader.import_default_modules()

    assert "batchpipe is not set up" in caplog.text
    assert site.conf.beat_schedule == {}


def test_a_worker_without_any_key_says_which_variable_to_set(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, as a warning: workers elsewhere may have one. One key is enough."""
    site = app()
    setup(site, {"ACCOUNTS": {"research": {"BASE_URL": "http://localhost"}}})
    signals.celeryd_after_setup.send(sender="w", instance=SimpleNamespace(app=site), conf=site.conf)
    [said] = [record for record in caplog.records if "cannot call the provider" in record.getMessage()]
    assert (said.levelname, "OPENAI_API_KEY" in said.getMessage()) == ("WARNING", True)

    caplog.clear()
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__RESEARCH__API_KEY", "sk-x")
    setup(site, {})
    signals.celeryd_after_setup.send(sender="w", instance=SimpleNamespace(app=site), conf=site.conf)
    assert "cannot call the provider" not in caplog.text


def test_the_app_that_was_set_up_is_used_in_every_thread() -> None:
    """Celery's own current app is one thread's; a web server has many."""
    site = app()
    assert site_app() is not site
    setup(site)

    assert site_app() is site
    assert app_in_use() is site
    assert is_set_up(site)


def test_a_module_that_is_no_site_is_one_clear_error() -> None:
    with pytest.raises(SettingsError, match="-A no_such_module_here: cannot be loaded: ModuleNotFoundError"):
        load_app("no_such_module_here")


def test_the_modules_of_a_site_are_found_in_the_current_folder(tmp_path: Path) -> None:
    """Those that the app loads later, too: the program ``batchpipe`` lies in another folder than the site."""
    (tmp_path / "stall_app.py").write_text(
        "from celery import Celery\napp = Celery('stall', broker='redis://localhost/9')\n"
        "app.autodiscover_tasks(['stall_goods'])\n"
    )
    (tmp_path / "stall_goods").mkdir()
    (tmp_path / "stall_goods/tasks.py").write_text("from stall_app import app\n@app.task\ndef told(job): ...\n")
    script = (
        "import sys; sys.path.pop(0)  # as in our command\n"
        "from batchpipe.worker.setup import load_app; print(*load_app('stall_app').tasks)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert "stall_goods.tasks.told" in done.stdout, done.stderr


def test_a_rate_limit_of_the_site_is_not_for_our_tasks() -> None:
    """One poll a minute would be no pipeline."""
    site = app(task_default_rate_limit="1/m")
    site.finalize()

    assert {site.tasks[f"batchpipe.{name}"].rate_limit for name in ("poll", "merge", "sweep", "schedules")} == {0}
    assert site.tasks["celery.chord_unlock"].rate_limit == "1/m"


def test_short_and_long_tasks_have_limits_of_their_own() -> None:
    """A site's task_time_limit of a minute must not end a download of an hour."""
    site = app(task_time_limit=60, task_soft_time_limit=50)
    setup(site)
    site.finalize()
    names = ("poll", "sweep", "schedules", "download", "merge", "prepare")
    limits = {name: site.tasks[f"batchpipe.{name}"].time_limit for name in names}

    assert {limits["poll"], limits["sweep"], limits["schedules"]} == {task_limit(SETTINGS, "poll") + 60}
    assert {limits["download"], limits["merge"], limits["prepare"]} == {task_limit(SETTINGS, "merge") + 60}
    assert site.tasks["batchpipe.download"].soft_time_limit == task_limit(SETTINGS, "download") >= LONG_TASK_SECONDS


@pytest.mark.parametrize("seconds", [600, 10_000, 400_000])
def test_limits_of_transfers_follow_the_settings(seconds: float) -> None:
    """No task is ended while its turn may still go on, however long the settings let a transfer take."""
    site = app()
    setup(site)
    site.finalize()
    current_site().settings = Settings(_env_file=None, transfer_timeout_seconds=seconds)
    try:
        settings = current_settings()
        for name in (step.name for step in STEPS.values() if step.is_long):
            task = site.tasks[f"batchpipe.{name}"]
            assert task.time_limit > task.soft_time_limit >= 2 * turn_deadline(settings, STEPS[name]) > 2 * 200
        assert site.tasks["batchpipe.upload"].soft_time_limit > LONGEST_GROWTH * seconds
        assert check_app(site, settings) == []
    finally:
        current_site().settings = None


def test_a_limit_that_a_message_brings_along_does_not_count() -> None:
    """Who publishes may have other settings than the worker."""
    site = app()
    setup(site)
    site.finalize()
    headers = {"id": "x", "task": "batchpipe.upload", "timelimit": [5, 4], "kwargs": {}}
    message = SimpleNamespace(headers=headers, body=((), {}, {}), delivery_info={}, properties={})
    request = TaskRequest(message, app=site, headers=headers, task=site.tasks["batchpipe.upload"], decoded=True)
    assert request.time_limits == (None, None)


@pytest.mark.parametrize("name", ["time_limit", "soft_time_limit"])
def test_a_limit_that_is_shorter_is_named_and_a_longer_one_is_none_of_our_business(name: str) -> None:
    shorter, longer = ({"batchpipe.upload": {name: seconds}} for seconds in (900, 10**7))
    [finding] = check_app(app(task_annotations=shorter), SETTINGS)
    assert "task_annotations" in finding.name
    assert f"{name} of batchpipe.upload" in finding.why
    assert check_app(app(task_annotations=longer), SETTINGS) == []
    [finding] = check_app(app(task_annotations={"*": {name: 0}}, **{f"task_{name}": 60}), SETTINGS)
    assert name in finding.why
