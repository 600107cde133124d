"""Webhooks of the provider in a WSGI framework: plain values in, the status of the response and its JSON out.

Importing this loads none of our libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchpipe.client.client import Client

Answer = tuple[int, dict[str, Any]]


def take(
    client: Callable[[], Client],
    method: str,
    header: Callable[[str], str | None],
    read: Callable[[int], bytes],
    account: str | None,
) -> Answer:
    """Receive one webhook, and wake its shard.

    ``header``: one by its name, in lower case. ``read``: at most so many bytes of the body. ``account``: the one that
    the URL names; None: all are tried.
    """
    from batchpipe.client import webhooks
    from batchpipe.errors import BatchpipeError
    from batchpipe.model.webhooks import HEADERS, MOST_BYTES

    if method != "POST":
        return webhooks.ONLY_POST.status, webhooks.ONLY_POST.body
    length = header("content-length") or ""
    if length.isascii() and length.isdigit() and (len(length) > 9 or int(length) > MOST_BYTES):
        return webhooks.TOO_LARGE.status, webhooks.TOO_LARGE.body
    try:
        receiver = client().webhooks()
        body = _whole(read, MOST_BYTES + 1)
        answer = receiver.receive(body, {name: header(name) or "" for name in HEADERS}, account)
    except BatchpipeError as error:
        answer = webhooks.out_of_order(error)
    except OSError:  # the sender has hung up
        answer = webhooks.refused(400, "malformed", "its body did not come")
    else:
        receiver.wake_soon(answer.place)
    return answer.status, answer.body


def _whole(read: Callable[[int], bytes], most: int) -> bytes:
    """A read may return less than there is."""
    body = b""
    while len(body) < most and (part := read(most - len(body))):
        body += part
    return body
