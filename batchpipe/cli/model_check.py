"""Whether the provider lists the models that the rows of a run name. Asked beside it: it neither delays nor fails it.

Else a name that is mistyped shows when the batch has ended, perhaps in a day.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from difflib import get_close_matches

from batchpipe.config.settings import Settings
from batchpipe.masking import one_line

#: How long the list may take, in seconds, and how many of its names are read.
LIST_SECONDS, MOST_NAMES = 10.0, 2_000
#: Models of a job that are told of.
MOST_TOLD = 3


def listed_models(settings: Settings, account: str) -> Collection[str]:
    """The models that the account's server lists; none where that says nothing: Azure's are deployments, and a sandbox
    takes more than it lists. Raises whatever the call does.
    """
    from batchpipe.provider import Apis

    if settings.is_sandbox(account) or settings.account(account).kind == "azure":
        return ()
    return Apis(settings)(account).model_names(seconds=LIST_SECONDS, most=MOST_NAMES)


class ModelCheck:
    """One for each run. ``names`` is called once, in a thread; whatever it raises means that nothing is known."""

    def __init__(self, names: Callable[[], Collection[str]]) -> None:
        self._names = names
        self._thread: threading.Thread | None = None
        self._listed: frozenset[str] = frozenset()
        self._seen: set[str] = set()
        self._told = 0

    def warnings(self, models: Iterable[str | None]) -> Iterator[str]:
        """A line for each of these models that is not listed, once; none until the server has answered."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._ask, name="batchpipe-models", daemon=True)
            self._thread.start()
        if not self._listed:
            return
        for model in sorted({model for model in models if model} - self._seen):
            self._seen.add(model)
            if model not in self._listed and self._told < MOST_TOLD:
                self._told += 1
                near = get_close_matches(model[:200], self._listed, n=1)
                hint = f" (did you mean {one_line(near[0])!r}?)" if near else ""
                yield f"the server does not list a model {one_line(model)!r}{hint}"

    def _ask(self) -> None:
        try:
            self._listed = frozenset(self._names())
        except Exception:  # a server need not have such a list, and trouble of the account is told elsewhere
            return

    def wait(self, seconds: float) -> None:
        """Until the server has answered."""
        if self._thread is not None:
            self._thread.join(seconds)
