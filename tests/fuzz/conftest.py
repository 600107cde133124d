"""What the jobs of these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.jobs import Line


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()
    assert line.wire.broken == []
