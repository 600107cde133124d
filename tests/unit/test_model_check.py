"""A mistyped model is told of while a run waits for its batch; whatever the server answers, the run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

import pytest
from pydantic import SecretStr

from batchpipe.cli.model_check import MOST_TOLD, ModelCheck, listed_models
from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.errors import Paused, Refused, SettingsError
from batchpipe.sandbox import Sandbox


def asked(check: ModelCheck, *models: str | None) -> list[str]:
    """What is said of these models once the server has answered."""
    first = list(check.warnings(models))
    check.wait(10.0)
    return [*first, *check.warnings(models)]


def test_a_model_that_is_not_listed_is_told_of_once_with_the_nearest_one() -> None:
    check = ModelCheck(lambda: ["gpt-4o-mini", "gpt-4.1"])
    assert asked(check, "gpt-4o-mni", "gpt-4.1", None, "gpt-4o-mni") == [
        "the server does not list a model 'gpt-4o-mni' (did you mean 'gpt-4o-mini'?)"
    ]
    assert list(check.warnings(["gpt-4o-mni", "xyz"])) == ["the server does not list a model 'xyz'"]


def test_of_very_many_models_some_are_told_of() -> None:
    assert len(asked(ModelCheck(lambda: ["gpt"]), *(f"model-{number}" for number in range(100)))) == MOST_TOLD


@pytest.mark.parametrize(
    "error", [Refused("no such route", status=404), Paused("no"), SettingsError("no"), KeyError(1)]
)
def test_a_server_without_such_a_list_is_passed_over_in_silence(error: Exception) -> None:
    def names() -> Collection[str]:
        raise error

    assert asked(ModelCheck(names), "gpt-4o-mni") == []
    assert asked(ModelCheck(list), "gpt-4o-mni") == []


def test_nothing_waits_for_the_answer() -> None:
    """A server that hangs delays no run; it is asked once."""
    end, calls = threading.Event(), list[int]()

    def names() -> Collection[str]:
        calls.append(1)
        end.wait(30)
        return ["gpt-4o-mini"]

    check, begun = ModelCheck(names), time.monotonic()
    for _ in range(100):
        assert list(check.warnings(["gpt-4o-mni"])) == []
    assert time.monotonic() - begun < 5
    end.set()
    assert (len(asked(check, "gpt-4o-mni")), calls) == (1, [1])


def test_lists_that_do_not_say_what_is_taken_are_not_read() -> None:
    """Azure's models are deployments, and a sandbox takes more than it lists."""
    with Sandbox() as sandbox:
        given = {"base_url": sandbox.base_url, "api_key": SecretStr("any")}
        accounts = {
            "gate": Account(**given),
            "azure": Account(kind="azure", **given),
            "sand": Account(sandbox=True, **given),
        }
        settings = Settings(_env_file=None, accounts=accounts)
        assert "gpt-4o-mini" in listed_models(settings, "gate")
        for name in ("azure", "sand", "sandbox"):
            assert listed_models(settings, name) == ()
