"""When beat sends its next message, which says only "look": not while one of them can only be waiting.

Redis drops no message because it has expired, and nobody takes any while no worker is there: at one every few seconds
a queue would grow by 17,280 a day.
"""

from __future__ import annotations

from batchpipe.store import Store
from batchpipe.turns import WaitingIn

#: Of a queue that moves, but slowly, so many seconds lie between two messages.
MOVING_SECONDS = 60.0
#: And of one that a worker listens on, but of which it takes nothing of ours: the message may have expired unseen.
LISTENED_SECONDS = 600.0


def may_send(store: Store, name: str, queue: str, waiting_in: WaitingIn) -> bool:
    """Whether the message of this name is to be sent now; that it is sent is noted. Raises StoreUnavailable."""
    now = store.now()
    sent, taken = store.pulse(name)
    if taken <= sent and waiting_in(queue):
        moves = now - sent >= MOVING_SECONDS and store.last_taken(queue) > sent
        listened = now - sent >= LISTENED_SECONDS and queue in store.listening()
        if sent and not moves and not listened:
            return False
    store.note_pulse(name, sent=now)
    return True
