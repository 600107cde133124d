"""How many cases the tests go through that make their cases up."""

from __future__ import annotations

import math
import os

#: 1 is what a change must pass (`make slow`); a tenth of that is in `make test`. More: ``TEST_SCALE=20``.
SCALE = float(os.environ.get("TEST_SCALE", "0.1"))


def scaled(count: int) -> int:
    return max(math.ceil(count * SCALE), 1)
