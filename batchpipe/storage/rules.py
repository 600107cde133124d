"""What an input may be, and where it may lie: the settings of an operator, as the readers of inputs take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchpipe.model.least_rate import SILENCE_SECONDS


@dataclass(frozen=True)
class InputRules:
    """``roots``: what an input must lie under, links and redirects followed; none allow all.

    ``private_addresses``: under roots, whether addresses that are not public may be reached. ``most_bytes``: of an
    input as it is read, so unpacked; ``most_line``: of one line, its newline included; ``most_expansion``: how many
    bytes may come of one that was sent compressed. 0: no limit. ``rate``: bytes a second at least, over ``window`` s.
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


#: For who reads a file of his own.
ANY_INPUT = InputRules()
