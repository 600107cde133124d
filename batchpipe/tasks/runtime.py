"""What the tasks of one site share: the store, the provider's clients and the runners, made from its settings."""

from __future__ import annotations

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.pipeline.job_runner import JobRunner
from batchpipe.pipeline.notices import Notices
from batchpipe.pipeline.shard_runner import ShardRunner
from batchpipe.provider import Apis
from batchpipe.store import Store
from batchpipe.tasks import notifying, publishing
from batchpipe.tasks.delivery import Deliverer
from batchpipe.tasks.inspection import waiting_in
from batchpipe.telemetry.counters import Counters


class Runtime:
    """Everything a turn is taken with; it connects at its first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store.connect(
            settings.redis_address(),
            prefix=settings.prefix,
            lease_seconds=settings.lease_seconds,
            ttl_seconds=settings.ttl_seconds,
        )
        counters = Counters()
        apis, publish, notify = Apis(settings, counters.call), publishing.publish, notifying.notify
        self.deliverer = Deliverer(settings, self.store)
        notices = Notices(settings, self.store, publishing.deliver_soon)
        self.shard_runner = ShardRunner(settings, self.store, apis, publish, counters=counters, notices=notices)
        self.job_runner = JobRunner(
            settings,
            self.store,
            apis,
            publish,
            notify,
            counters=counters,
            waiting_in=waiting_in,
            notices=notices,
            deliver=self.deliverer.deliver_due,
        )


def runtime(settings: Settings | None = None) -> Runtime:
    """The runtime of the current site for these settings, or for those in use there. Raises SettingsError."""
    site = current_site()
    return site.keep(Runtime, settings or site.settings)
