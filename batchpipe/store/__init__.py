"""The records in Redis, which decide the state of every job and shard. The only importer of redis.

Every write that more than one worker could make at once is a Lua script (``scripts/``); most are written so
that the client may repeat them after a lost reply.
"""

from __future__ import annotations

from batchpipe.store.connection import Connection
from batchpipe.store.due import NewEpoch, When, new_task_ids
from batchpipe.store.lease import ClaimDenied, Following, JobLease, Lease, Renewal, RoomWanted, ShardLease, host_clock
from batchpipe.store.leases import AT_ONCE
from batchpipe.store.looks import LookState
from batchpipe.store.news import WebhookState
from batchpipe.store.paces import ModelPace
from batchpipe.store.queues import LISTENING_PACE, WaitingMessage
from batchpipe.store.records import parse_member
from batchpipe.store.schedules import LastRun
from batchpipe.store.shards import Settled
from batchpipe.store.store import Store, open_store
from batchpipe.store.unreadable import log_once

__all__ = [
    "AT_ONCE",
    "LISTENING_PACE",
    "ClaimDenied",
    "Connection",
    "Following",
    "JobLease",
    "LastRun",
    "Lease",
    "LookState",
    "ModelPace",
    "NewEpoch",
    "Renewal",
    "RoomWanted",
    "Settled",
    "ShardLease",
    "Store",
    "WaitingMessage",
    "WebhookState",
    "When",
    "host_clock",
    "log_once",
    "new_task_ids",
    "open_store",
    "parse_member",
]
