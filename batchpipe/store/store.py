"""The records in Redis, as small objects on one connection."""

from __future__ import annotations

from typing import Self

from batchpipe.config.settings import Settings
from batchpipe.store.accounts import Accounts
from batchpipe.store.admission import Admission
from batchpipe.store.connection import Connection
from batchpipe.store.counters import Counters
from batchpipe.store.due import Due
from batchpipe.store.events import Events
from batchpipe.store.jobs import Jobs
from batchpipe.store.leases import Leases
from batchpipe.store.looks import Looks
from batchpipe.store.news import News
from batchpipe.store.outbox import Outbox
from batchpipe.store.paces import Paces
from batchpipe.store.queues import Queues
from batchpipe.store.schedules import Schedules
from batchpipe.store.shards import Shards
from batchpipe.store.unanswered import Unanswered


def open_store(settings: Settings) -> Store:
    """The store of these settings; it connects at its first use. Kept by the site: see ``Site.keep``."""
    return Store.connect(
        settings.redis_address(),
        prefix=settings.prefix,
        lease_seconds=settings.lease_seconds,
        ttl_seconds=settings.ttl_seconds,
    )


class Store:
    """All records under one prefix of one Redis."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.due = Due(connection)
        self.jobs = Jobs(connection, self.due)
        self.shards = Shards(connection)
        self.leases = Leases(connection, self.due)
        self.accounts = Accounts(connection)
        self.news = News(connection)
        self.admission = Admission(connection)
        self.unanswered = Unanswered(connection)
        self.looks = Looks(connection)
        self.paces = Paces(connection)
        self.queues = Queues(connection)
        self.events = Events(connection)
        self.counters = Counters(connection)
        self.schedules = Schedules(connection)
        self.outbox = Outbox(connection)

    @classmethod
    def connect(
        cls, url: str, *, prefix: str = "{batchpipe}:", lease_seconds: float = 60.0, ttl_seconds: int = 30 * 86_400
    ) -> Self:
        """A store over a URL, see ``Connection.connect``; no connection is made before the first use."""
        return cls(Connection.connect(url, prefix=prefix, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds))

    def now(self) -> float:
        """The time of all records: Redis' clock in unix seconds, with the exceptions that ``Clock`` describes."""
        return self.connection.now()

    def ping(self) -> None:
        """One short try, because the caller waits. Raises StoreUnavailable."""
        self.connection.ping()
