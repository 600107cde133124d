"""When beat sends its next message, which says only "look": not while an earlier one must still be waiting.

Redis does not drop expired messages, and none are taken while there is no worker: with one every few seconds a queue
would grow by 17,280 a day.
"""

from __future__ import annotations

from batchpipe.pipeline.messages import WaitingIn
from batchpipe.store import Store

#: Seconds between two messages to a queue that moves slowly.
MOVING_SECONDS = 60.0
#: And to one that a worker listens on without taking any of ours: the message may have expired unseen. Each further
#: pause is as long as the time since one was taken, a day at most, so that the queue does not fill.
LISTENED_SECONDS, LONGEST_SECONDS = 600.0, 86_400.0


def may_send(store: Store, name: str, queue: str, waiting_in: WaitingIn) -> bool:
    """Whether the message of this name is due now; if so, it is recorded as sent. Raises StoreUnavailable."""
    now, last = store.now(), store.queues.beat_times(name)
    waits = last.taken <= last.sent and bool(waiting_in(queue))
    if waits and last.sent:
        pause = min(max(LISTENED_SECONDS, last.sent - last.since), LONGEST_SECONDS)
        moves = now - last.sent >= MOVING_SECONDS and store.queues.last_taken(queue) > last.sent
        listened = now - last.sent >= pause and queue in store.queues.listening()
        if not moves and not listened:
            return False
    store.queues.note_beat(name, sent=now, since=last.since if last.taken <= last.since and last.since else now)
    return True
