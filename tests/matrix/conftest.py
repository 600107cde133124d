"""Everything real, as in the acceptance tests, with what users bring along in environments of its own.

These tests fetch packages, so they run only where they are asked for: ``make matrix``, ``-m matrix``, or by their path.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.acceptance.conftest import forkserver, new_machine, new_sandbox, redis_server, sandbox  # noqa: E402, F401


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """No run of all tests comes here by itself."""
    wanted = "matrix" in (config.option.markexpr or "")
    named = any(Path(argument.partition("::")[0]).resolve().is_relative_to(HERE) for argument in config.args)
    return None if wanted or named else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first who asks for an environment waits until it is made."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(900))
