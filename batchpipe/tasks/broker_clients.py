"""One Redis client for each channel of the broker, where kombu makes a new one for each acknowledgement.

kombu's ``Channel._create_client`` builds a ``redis.Redis`` (its parser, its retry, its table of answers) around the
pool of the channel for every command or two: an eighth of what a short task costs. The client keeps nothing but its
pool, and is safe between threads, so one serves as long as the channel has that pool. It belongs in kombu. A worker
lets all its channels do so; a program that only submits, the channels that it submits over.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from kombu.transport import redis as transport

logger = logging.getLogger(__name__)

#: The attribute of a channel that holds its client.
_KEPT = "_batchpipe_client"


def keep_clients(channel: Any = None) -> bool:
    """Let channels keep their clients from now on. Returns whether they do: a kombu that works in another way is left
    as it is. A second call does no harm. ``channel``: the class to change, kombu's if it is None.
    """
    channel = channel or transport.Channel
    create = channel._create_client if hasattr(channel, "_create_client") else None
    if _keeps(create):
        return True
    if create is None or not _as_expected(channel, create):
        logger.debug("kombu makes its clients in a way that is not known here: each message costs a little more")
        return False

    def kept_client(self: Any, asynchronous: bool = False) -> Any:
        return _client_of(self, create, asynchronous)

    vars(kept_client)["keeps_clients"] = True
    channel._create_client = kept_client
    return True


def keep_client_of(channel: Any) -> bool:
    """The same for one channel: other channels of the process are not ours. Returns whether it keeps its client."""
    create = getattr(type(channel), "_create_client", None)
    if _keeps(create):
        return True
    if _KEPT in vars(channel):
        return "_create_client" in vars(channel)
    vars(channel)[_KEPT] = None  # looked at, once
    if create is None or not _as_expected(type(channel), create):
        return False

    def kept_client(asynchronous: bool = False) -> Any:
        return _client_of(channel, create, asynchronous)

    channel._create_client = kept_client
    return True


def _keeps(create: Any) -> bool:
    return bool(getattr(create, "keeps_clients", False))


def _client_of(channel: Any, create: Callable[..., Any], asynchronous: bool) -> Any:
    if asynchronous:  # these hold a connection
        return create(channel, asynchronous=asynchronous)
    client = vars(channel).get(_KEPT)
    if client is None or client.connection_pool is not channel.pool:
        client = vars(channel)[_KEPT] = create(channel)
    return client


def _as_expected(channel: Any, create: Any) -> bool:
    """Whether it is kombu's of 5.5 to 5.7: a client of ``self.pool``, or of another pool where it is asynchronous."""
    try:
        names, text = list(inspect.signature(create).parameters), inspect.getsource(create)
    except (TypeError, ValueError, OSError):
        return False
    is_pool = isinstance(inspect.getattr_static(channel, "pool", None), property)
    return names == ["self", "asynchronous"] and is_pool and "self.pool" in text and "self.async_pool" in text
