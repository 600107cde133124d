"""What a probe has found out about a server, and the settings of its account that follow."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Found:
    """One thing that was found out. ``value``: yes, no, or a word; None: it could not be found out."""

    what: str
    value: str | None
    detail: str = ""


@dataclass
class Capabilities:
    """What a server can do, and the settings of its account that follow; ``rows`` were sent."""

    account: str
    model: str
    found: list[Found] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    left: list[str] = field(default_factory=list)  #: what could not be deleted or cancelled

    def note(self, what: str, value: bool | str | None, detail: str = "") -> None:
        word = ("yes" if value else "no") if isinstance(value, bool) else value
        self.found.append(Found(what, word, detail))
