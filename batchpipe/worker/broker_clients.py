"""One Redis client for each channel of the broker, where kombu makes a new one for each acknowledgement.

kombu's ``Channel._create_client`` builds a ``redis.Redis`` (its parser, its retry, its table of answers) around the
pool of the channel for every command or two: an eighth of what a short task costs. The client keeps nothing but its
pool, and is safe between threads, so one serves as long as the channel has that pool. It belongs in kombu.
"""

from __future__ import annotations

import inspect
import logging
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
    if getattr(create, "keeps_clients", False):
        return True
    if create is None or not _as_expected(channel, create):
        logger.debug("kombu makes its clients in a way that is not known here: each message costs a little more")
        return False

    def kept_client(self: Any, asynchronous: bool = False) -> Any:
        if asynchronous:  # these hold a connection
            return create(self, asynchronous=asynchronous)
        client = vars(self).get(_KEPT)
        if client is None or client.connection_pool is not self.pool:
            client = create(self)
            vars(self)[_KEPT] = client
        return client

    vars(kept_client)["keeps_clients"] = True
    channel._create_client = kept_client
    return True


def _as_expected(channel: Any, create: Any) -> bool:
    """Whether it is kombu's of 5.5 to 5.7: a client of ``self.pool``, or of another pool where it is asynchronous."""
    try:
        names, text = list(inspect.signature(create).parameters), inspect.getsource(create)
    except (TypeError, ValueError, OSError):
        return False
    is_pool = isinstance(inspect.getattr_static(channel, "pool", None), property)
    return names == ["self", "asynchronous"] and is_pool and "self.pool" in text and "self.async_pool" in text
