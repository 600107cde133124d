"""The real store and scripts on the clock of a `World`, with a point before and after each script, each watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
import redis

from batchpipe.errors import (
    LeaseLost,
    StoreUnavailable,
)
from batchpipe.model.stats import Clock
from batchpipe.store import ClaimDenied, Connection, JobLease, Lease, ShardLease, Store
from batchpipe.store.accounts import Accounts
from batchpipe.store.due import Due
from batchpipe.store.events import Events
from batchpipe.store.jobs import Jobs
from batchpipe.store.leases import Leases
from tests.model.invariants import Records

if TYPE_CHECKING:
    from tests.model.world import World

LEASE = 60.0
#: Scripts that change no record.
_ABOUT_NO_RECORD = ("read_clock", "note_sweep")
#: What may befall a script: it is repeated after a lost answer, Redis is away, or went away after it ran.
SCRIPT_FAULTS = ("repeat", "away", "away after")


#: Runs a script as it is shipped, and tells all records as they are after it: one round trip.
_WATCHED = """
local function script()
%s
end
local answer = script()
local job = KEYS[#KEYS - 1]
local prefix, id = string.match(job, '^(.-)job:(.*)$')
local function read(key)
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
local seen = { job = read(job), shards = {}, due = {} }
for index = 0, tonumber(seen.job.shards or '0') - 1 do
  seen.shards[tostring(index)] = read(prefix .. 'shard:' .. id .. ':' .. index)
end
local flat = redis.call('ZRANGE', prefix .. 'due', 0, -1, 'WITHSCORES')
for i = 1, #flat, 2 do seen.due[flat[i]] = tonumber(flat[i + 1]) end
return { answer, cjson.encode(seen) }
"""


Source = Callable[[str], str]


class ModelLease(Lease):
    """A lease by the model's clock; the world renews it while its actor is not frozen."""

    world: World
    renew_at: float

    def age(self) -> float:
        return self.world.at - self.confirmed

    def __enter__(self) -> ModelLease:
        self.renew_at = self.world.at + self.seconds / 3
        return self

    @property
    def renewing(self) -> bool:
        return not (self.lost or self._stopped)

    def renew_now(self) -> None:
        """What the renewal thread does when its pause is over."""
        before = self.world.at
        try:
            self.seconds, self.news = self._renewed()
        except LeaseLost:
            self.lost = True
            return
        self.confirmed = before
        self.renew_at = before + max(self.seconds / 3, 0.1)  # near its deadline a lease grants less and less


class ModelJobLease(ModelLease, JobLease):
    """Of a job."""


class ModelShardLease(ModelLease, ShardLease):
    """Of a shard."""


L = TypeVar("L", ModelJobLease, ModelShardLease)


class ModelConnection(Connection):
    """The real scripts, with a point before and after each, and the watch told of each."""

    def __init__(self, client: redis.Redis, world: World, prefix: str, text: Source) -> None:
        super().__init__(
            client,
            prefix=prefix,
            lease_seconds=LEASE,
            ttl_seconds=3600,
            skew=lambda: world.at + world.redis_off - time.time(),
        )
        self.host_time = lambda: world.at
        self.world = world
        self._text = text
        # past retries and pools, which the model does not need and which cost more than the script
        self._wire = client.connection_pool.get_connection()

    def close(self) -> None:
        self.client.connection_pool.release(self._wire)

    def clock(self) -> Clock:
        if not self.world.redis_moved:
            return Clock(self.world.at)  # the same, and quicker
        return super().clock()

    def run(self, name: str, keys: Sequence[str], *args: Any) -> list[Any]:
        if name in _ABOUT_NO_RECORD or not keys:
            given = [*keys, self.clock_key, f"{self.skew():.6f}", *args]
            return cast(list[Any], self._ask("EVAL", self._text(name), len(keys) + 1, *given))
        self.world.point(name)
        fault = self.world.take_fault(SCRIPT_FAULTS)
        if fault == "away":
            raise StoreUnavailable("away")
        answer = self._executed(name, keys, args)
        self.world.point(f"{name} done")
        if fault == "away after":
            raise StoreUnavailable("the answer is lost")
        if fault == "repeat":
            answer = self._executed(name, keys, args)
            self.world.point()
        return answer

    def _executed(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        job = self.job_key(self.world.job_id)
        given = [*keys, job, self.clock_key, f"{self.skew():.6f}", *args]
        answer, seen = self._ask("EVALSHA", self._sha(name), len(keys) + 2, *given)
        self.world.tell(f"{name} {keys[0].rpartition(':')[2]} {args}")
        record = "job" if keys[0] == job else keys[0].rpartition(":")[2]
        after = orjson.loads(seen)
        job_fields = after["job"] or {}
        planned = int(job_fields.get("shards", "0"))  # records beyond are drafts, which nobody sees
        shards = {index: shard for index, shard in (after["shards"] or {}).items() if int(index) < planned}
        records = Records(job_fields, shards, _named(after["due"] or {}))
        self.world.tell(f"  -> {str(answer)[:80]}")
        self.world.watch.script(name, record, args, answer, records, self.clock().now)
        return cast(list[Any], answer)

    def _sha(self, name: str) -> str:
        text = self._text(name)
        return _loaded(self, name, text)

    def _ask(self, *command: Any) -> Any:
        self._wire.send_command(*command)
        return self._wire.read_response()


class ModelLeases(Leases):
    """The real claims; their leases follow the model's clock."""

    def __init__(self, connection: ModelConnection, due: Due) -> None:
        super().__init__(connection, due)
        self.world = connection.world

    def claim_job(self, *args: Any, **named: Any) -> JobLease | ClaimDenied:
        before = self.world.at
        answer = super().claim_job(*args, **named)
        return self._denied(answer) if isinstance(answer, ClaimDenied) else self._ours(ModelJobLease, answer, before)

    def claim_shard(self, *args: Any, **named: Any) -> ShardLease | ClaimDenied:
        before = self.world.at
        answer = super().claim_shard(*args, **named)
        if isinstance(answer, ClaimDenied):
            return self._denied(answer)
        return self._ours(ModelShardLease, answer, before, shard=answer.shard)

    def _denied(self, answer: ClaimDenied) -> ClaimDenied:
        self.world.watch.facts[f"refused: {answer.why}"] += 1
        return answer

    def _ours(self, kind: type[L], answer: Lease, before: float, **more: Any) -> L:
        names = ("renewer", "job", "token", "seconds", "news", "deadline")
        lease = kind(**{name: getattr(answer, name) for name in names}, **more, confirmed=before)
        lease.world = self.world
        self.world.leases[self.world.actor] = lease
        return lease


class ModelJobs(Jobs):
    """All of one account."""

    def account_of(self, job_id: str) -> str | None:
        return "default"


class ModelAccounts(Accounts):
    """Never paused, and without a budget; polls are parked as ever."""

    def pause_of(self, account: str) -> None:
        return None

    def take_rate_token(
        self, account: str, *, per_second: float, what: str = "poll", park: tuple[int, float] | None = None
    ) -> tuple[str, float]:
        if park is None:
            return "slot", 0.0
        return super().take_rate_token(account, per_second=per_second, what="booked", park=park)


class NoEvents(Events):
    """Not kept."""

    def add(self, job_id: str, event: str, **fields: Any) -> None:
        pass


def model_store(connection: ModelConnection) -> Store:
    store = Store(connection)
    store.leases, store.jobs = ModelLeases(connection, store.due), ModelJobs(connection, store.due)
    store.accounts, store.events = ModelAccounts(connection), NoEvents(connection)
    return store


_shas: dict[tuple[int, str], str] = {}


def _loaded(connection: ModelConnection, name: str, text: str) -> str:
    """The script is sent to a server once."""
    place = (id(connection.client), text)
    if place not in _shas:
        _shas[place] = connection._ask("SCRIPT", "LOAD", _WATCHED % text)
    return _shas[place]


def _named(due: dict[str, float]) -> dict[str, float]:
    """The members of the due set as the watch names records."""
    names = {member: member.rpartition("/")[2] for member in due}
    return {"job" if name == "-1" else name: due[member] for member, name in names.items()}
