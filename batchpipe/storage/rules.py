"""What an input may be, and where it may lie: the operator's settings, in the form that the readers of inputs use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchpipe.model.least_rate import SILENCE_SECONDS


@dataclass(frozen=True)
class InputRules:
    """``roots``: where inputs must lie, after links and redirects are followed; without roots, anywhere.

    ``private_addresses``: under roots, whether addresses that are not public may be reached. ``most_bytes``: of an
    input, uncompressed; ``most_line``: of one line, its newline included; ``most_expansion``: bytes that one compressed
    byte may become. 0: no limit. ``rate``: the minimum, in bytes a second over ``window`` seconds.
    """

    roots: Sequence[str] = ()
    private_addresses: bool = False
    most_bytes: int = 0
    most_line: int = 0
    most_expansion: float = 100.0
    rate: float = 0.0
    window: float = SILENCE_SECONDS

    @property
    def public_only(self) -> bool:
        return bool(self.roots) and not self.private_addresses


#: For callers that read their own files.
ANY_INPUT = InputRules()
