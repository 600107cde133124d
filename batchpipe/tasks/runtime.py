"""What the tasks of one site share: the store, the provider's clients and the runners, made from its settings."""

from __future__ import annotations

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.model.records import JOB
from batchpipe.pipeline.job_runner import JobRunner
from batchpipe.pipeline.messages import Next
from batchpipe.pipeline.notices import Notices
from batchpipe.pipeline.shard_runner import ShardRunner
from batchpipe.pipeline.visits import Visits
from batchpipe.provider import Apis
from batchpipe.store import open_store
from batchpipe.tasks import notifying, publishing
from batchpipe.tasks.delivery import Deliverer
from batchpipe.tasks.inspection import waiting_in
from batchpipe.telemetry.counters import Counters

#: How long what a turn has counted may wait for that of further turns, before it is written to Redis. Seconds.
COUNTED_SECONDS = 2.0


class Runtime:
    """Everything a turn is taken with; it connects at its first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = current_site().keep(open_store, settings)
        counters = Counters(COUNTED_SECONDS)
        self.visits = Visits(publishing.publish)
        apis, publish, notify = Apis(settings, counters.call), self.visits.publish, notifying.notify
        self.deliverer = Deliverer(settings, self.store)
        notices = Notices(settings, self.store, publishing.deliver_soon)
        ahead = self.visits.ahead
        self.shard_runner = ShardRunner(
            settings, self.store, apis, publish, counters=counters, notices=notices, ahead=ahead
        )
        self.job_runner = JobRunner(
            settings,
            self.store,
            apis,
            publish,
            notify,
            counters=counters,
            waiting_in=waiting_in,
            notices=notices,
            ahead=ahead,
            deliver=lambda here: self.deliverer.see_to(here=here),
        )

    def turn(self, name: str, job: str, index: int, epoch: int) -> Next:
        """Take the turn of the step of this name. Raises StoreUnavailable."""
        return (self.job_runner if index == JOB else self.shard_runner).run(name, job, index, epoch)


def runtime(settings: Settings | None = None) -> Runtime:
    """The runtime of the current site for these settings, or for those in use there. Raises SettingsError."""
    site = current_site()
    return site.keep(Runtime, settings or site.settings)
