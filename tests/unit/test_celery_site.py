"""What ``batchpipe.setup`` adds to a site's Celery app, and what it only reports."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from batchpipe import tasks
from batchpipe.celery_site import check_app, is_set_up, load_app, setup, site_app
from batchpipe.errors import SettingsError
from batchpipe.settings import Settings, current_settings

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
        ({"worker_prefetch_multiplier": 4}, "app.conf.worker_prefetch_multiplier", False),
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


def test_another_broker_has_no_visibility_timeout() -> None:
    """RabbitMQ knows none of Redis' transport options."""
    assert names(app(broker_url="amqp://localhost//", broker_transport_options={})) == []


def test_a_djangos_setting_is_spelled_as_django_spells_it() -> None:
    """``config_from_object(..., namespace="CELERY")`` is how its settings are read."""
    site = app(task_always_eager=True)
    site.namespace = "CELERY"

    assert names(site) == ["CELERY_TASK_ALWAYS_EAGER"]


def test_setup_adds_the_sweep_and_the_route_when_the_site_is_loaded() -> None:
    """Not before: a site's settings can be read only then. What the site has said itself comes first."""
    site = app(task_routes={"batchpipe.sweep": {"queue": "theirs"}}, beat_schedule={"own": {"task": "x"}})
    setup(site)
    setup(site)
    assert set(site.conf.beat_schedule) == {"own"}

    site.loader.import_default_modules()
    site.loader.import_default_modules()

    assert set(site.conf.beat_schedule) == {"own", "batchpipe-sweep"}
    assert site.conf.task_routes == [
        {"batchpipe.sweep": {"queue": "theirs"}},
        {"batchpipe.*": {"queue": "batchpipe"}},
    ]
    assert site.amqp.router.route({}, "batchpipe.poll")["queue"].name == "batchpipe"
    assert site.amqp.router.route({}, "batchpipe.sweep")["queue"].name == "theirs"
    assert site.amqp.router.route({}, "shop.own") != site.amqp.router.route({}, "batchpipe.poll")


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


def test_the_app_that_was_set_up_is_used_in_every_thread() -> None:
    """Celery's own current app is one thread's; a web server has many."""
    site = app()
    assert site_app() is not site
    setup(site)

    assert site_app() is site
    assert tasks.app_in_use() is site
    assert is_set_up(site)


def test_a_module_that_is_no_site_is_one_clear_error() -> None:
    with pytest.raises(SettingsError, match="-A no_such_module_here: cannot be loaded: ModuleNotFoundError"):
        load_app("no_such_module_here")


def test_short_and_long_tasks_have_limits_of_their_own() -> None:
    """A site's task_time_limit of a minute must not end a download of an hour."""
    site = app(task_time_limit=60, task_soft_time_limit=50)
    setup(site)
    site.finalize()
    limits = {name: (site.tasks[f"batchpipe.{name}"].time_limit) for name in ("poll", "download", "merge", "prepare")}

    assert limits["poll"] == tasks.SHORT_TASK_SECONDS
    assert {limits["download"], limits["merge"], limits["prepare"]} == {tasks.LONG_TASK_SECONDS}
    assert site.tasks["batchpipe.download"].soft_time_limit == tasks.LONG_TASK_SECONDS
