"""The provider's lists, page by page: read completely, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from batchpipe.errors import Unavailable
from batchpipe.model.provider import Batch, StoredFile
from batchpipe.provider.errors import translated
from batchpipe.provider.parse import json_object, text

#: A list of more pages is taken to be endless.
_MOST_PAGES = 10_000
#: Calls for one page of a list.
_PAGE_TRIES = 3

T = TypeVar("T", Batch, StoredFile)


def newest_first(
    call: Callable[..., Any],
    what: str,
    parse: Callable[[dict[str, Any]], T],
    since: float,
    secret: str,
    **options: Any,
) -> Iterator[T]:
    """The entries of a list until one is older than ``since`` (the provider's clock).

    ``call`` with ``options`` (which have the ``limit`` of a page) reads one page of ``what``, in words. ``secret`` is
    kept out of errors. Raises Gone or Refused if the provider cannot list; Unavailable, Paused.
    """
    for page in _pages(call, what, secret, **options):
        found = [parse(item) for item in page]
        yield from found
        if _is_past(found, since):
            return


def page_of(
    call: Callable[..., Any], what: str, parse: Callable[[dict[str, Any]], T], secret: str, **options: Any
) -> tuple[list[T], bool]:
    """One page of a list, and whether there is more. Raises as ``newest_first``, also for an empty page before more."""
    page = _page(call, what, secret, **options)
    found, more = [parse(item) for item in page["data"]], _has_more(page, options["limit"])
    if more and not found:
        raise Unavailable(f"the provider's list of {what} does not advance", code="nonsense")
    return found, more


def _has_more(page: dict[str, Any], limit: int) -> bool:
    return bool(page.get("has_more", len(page["data"]) >= limit))


def _pages(call: Callable[..., Any], what: str, secret: str, **options: Any) -> Iterator[list[dict[str, Any]]]:
    """The pages of a list, none of them empty.

    Raises Unavailable unless it can be read completely: half a list must not look like one that lacks a batch.
    """
    after: str | None = None
    seen: set[str] = set()
    while len(seen) < _MOST_PAGES:
        page = _page(call, what, secret, **options, **({"after": after} if after else {}))
        data: list[dict[str, Any]] = page["data"]
        if data:
            yield data
        if not _has_more(page, options["limit"]):
            return
        after = data[-1]["id"] if data else None
        if after is None or after in seen:
            raise Unavailable(f"the provider's list of {what} does not advance", code="nonsense")
        seen.add(after)
    raise Unavailable(f"the provider's list of {what} does not end", code="nonsense")


def _page(call: Callable[..., Any], what: str, secret: str, **options: Any) -> dict[str, Any]:
    """One page, with objects that have an id in ``data``. Tried a few times: if it fails, the whole list fails."""
    for left in reversed(range(_PAGE_TRIES)):
        try:
            with translated(secret):
                page = json_object(call(**options).http_response.content)
            data = page.get("data")
            if not isinstance(data, list):
                raise Unavailable(f"the provider's list of {what} has no `data`", code="nonsense")
            if not all(isinstance(item, dict) and text(item.get("id")) for item in data):
                raise Unavailable(f"the provider's list of {what} has entries without an id", code="nonsense")
            return page
        except Unavailable as error:
            if not left or error.after is not None or error.status == 429:
                raise
    raise AssertionError("unreachable")


def _is_past(page: Sequence[Batch | StoredFile], since: float) -> bool:
    """Whether a list, newest first, has reached older entries; one that is oldest first is read to its end."""
    first, last = page[0].created_at, page[-1].created_at
    return first is not None and last is not None and last < since and first >= last
