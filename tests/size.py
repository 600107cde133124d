"""How many cases the tests go through that make their cases up, or have very many. Those tests are marked `scaled`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: 1 is what a change must pass (`make slow`); a twentieth of that is in `make test`. More: ``TEST_SCALE=20``.
SCALE = float(os.environ.get("TEST_SCALE", "0.05"))


def scaled(count: int) -> int:
    return max(math.ceil(count * SCALE), 1)


def thinned(cases: Sequence[T], one_in: int) -> Sequence[T]:
    """One in so many of the cases, the first among them; all of them in `make slow`."""
    return cases if SCALE >= 1 else cases[::one_in]
