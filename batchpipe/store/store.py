"""Claim, advance, settle, raise and the rest of the protocol, as Python methods over the Lua scripts."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from batchpipe.errors import JobNotFound, LeaseLost, OutputInUse, SettingsError, StoreUnavailable
from batchpipe.jobs import JOB, JobRecord, Move, Problem, ShardRecord, State
from batchpipe.store.leases import NO_NEWS, Lease, Refused, Renewal, host_clock
from batchpipe.store.records import decode, encode_changes, encode_record
from batchpipe.store.scripts import source

#: Events kept per job; the oldest go first.
LOG_LENGTH = 2_000
_LOG_SECONDS = 60 * 86_400


@dataclass(frozen=True)
class Raised:
    """A new epoch, under which the caller publishes; ``old_ids`` are the Celery ids of the void messages."""

    epoch: int
    stage: str
    queue: str
    old_ids: list[str]


@dataclass(frozen=True)
class Settled:
    """What became of a batch id: ``ok``, ``late``, ``known``, or ``cancel``: the caller cancels the batch it made."""

    verdict: str
    news: Renewal = NO_NEWS


@dataclass(frozen=True)
class Pause:
    """Why an account is not used, and for how many more seconds."""

    seconds: float
    code: str
    message: str


def new_task_ids(count: int) -> list[str]:
    """Fresh Celery task ids: stored with the epoch, before anything is published."""
    return [str(uuid.uuid4()) for _ in range(count)]


class Store:
    """All records under one prefix of one Redis.

    ``skew`` (seconds) is added to Redis' clock in every script: tests pass time with it instead of waiting.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str = "{batchpipe}:",
        lease_seconds: float = 60.0,
        ttl_seconds: int = 30 * 86_400,
        skew: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.client = client
        self.prefix = prefix
        self.lease_seconds = lease_seconds
        self.ttl_seconds = ttl_seconds
        self.skew = skew
        self._scripts: dict[str, Any] = {}

    @classmethod
    def connect(
        cls, url: str, *, prefix: str = "{batchpipe}:", lease_seconds: float = 60.0, ttl_seconds: int = 30 * 86_400
    ) -> Store:
        """A store over ``redis://``, ``rediss://`` or ``unix://``. No connection is made before the first use.

        Raises SettingsError for anything else.
        """
        options: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
        try:
            client = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=10,
                socket_connect_timeout=5,
                health_check_interval=25,
                # the scripts may be repeated; a blip must not cost a turn
                retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), 3),
                **options,
            )
        except ValueError as error:  # it may quote the URL, and so the password
            raise SettingsError(
                "BATCHPIPE_REDIS_URL is no Redis URL: redis://[:PASSWORD@]HOST:PORT/DB, rediss://... or unix://PATH"
            ) from error
        return cls(client, prefix=prefix, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds)

    # -- keys ----------------------------------------------------------------------------------------------------

    def _job_key(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    def _key(self, job_id: str, index: int) -> str:
        return self._job_key(job_id) if index == JOB else f"{self.prefix}shard:{job_id}:{index}"

    def _keys(self, job_id: str, index: int) -> list[str]:
        return [self._key(job_id, index), self._job_key(job_id), f"{self.prefix}due"]

    @staticmethod
    def _member(job_id: str, index: int) -> str:
        return f"{job_id}/{index}"

    def _run(self, name: str, keys: Sequence[str], *args: Any) -> list[Any]:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self.client.register_script(source(name))
        try:
            return cast(list[Any], script(keys=keys, args=[f"{self.skew():.6f}", *args]))
        except redis.RedisError as error:
            raise unavailable(error) from error

    # -- a job's beginning and end ---------------------------------------------------------------------------------

    def submit(self, job: JobRecord, *, again: str = "") -> tuple[str, bool]:
        """Record a job, due at once. Answers (id, True), or (the first job's id, False) if its key is taken.

        ``again``: "1" lets it take the key from any job, a job's id from that one only.
        Raises OutputInUse if another job that has not ended writes to the same output.
        """
        key = f"{self.prefix}key:{job.key}" if job.key else self._job_key(job.id)
        verdict, job_id = self._run(
            "submit",
            [*self._keys(job.id, JOB), key, f"{self.prefix}output:{job.output.rstrip('/')}"],
            self.prefix,
            job.id,
            self._member(job.id, JOB),
            self.lease_seconds,
            again,
            *encode_record(job),
        )
        if verdict == "output":
            raise OutputInUse(output_in_use(job.output, job_id))
        return job_id, verdict == "ok"

    def job_of_key(self, key: str) -> str | None:
        """The id of the job that was submitted under this idempotency key, if it is still known."""
        job_id = self._call(self.client.get, f"{self.prefix}key:{key}")
        return job_id if job_id and self._call(self.client.exists, self._job_key(job_id)) else None

    def cancel(self, job_id: str) -> tuple[bool, int]:
        """Set the cancel flag. Answers (False if the job had ended, number of its shards). Raises JobNotFound."""
        answer = self._run("cancel", self._keys(job_id, JOB))
        if answer[0] == "gone":
            raise JobNotFound(f"no job {job_id} is known here")
        return answer[0] == "ok", int(answer[1])

    def plan(self, lease: Lease, changes: Mapping[str, Any], shards: Sequence[ShardRecord], ids: list[str]) -> int:
        """Plan a round under the job's lease. Answers 0, or the epoch under which to publish merge: it is cancelled.

        Raises LeaseLost.
        """
        fields = encode_changes(changes)
        args: list[object] = [len(fields), *fields, len(shards)]
        for shard in shards:
            encoded = encode_record(shard)
            args += (shard.index, len(encoded), *encoded)
        answer = self._fenced(
            "plan", lease, self._member(lease.job.id, JOB), lease.token, self.lease_seconds, ids, *args
        )
        return int(answer[1]) if answer[0] == "cancel" else 0

    def finish(self, lease: Lease, state: State, changes: Mapping[str, Any]) -> State:
        """Fix the end state; the lease stays for telling. Answers what it became: the cancel flag wins."""
        return State(self._fenced("finish", lease, lease.token, state.value, *encode_changes(changes))[1])

    def told(self, lease: Lease) -> None:
        """Nothing is left to do for an ended job: it leaves the due set and its records expire some day."""
        self._fenced("told", lease, self._member(lease.job.id, JOB), lease.token, self.ttl_seconds)

    # -- turns -----------------------------------------------------------------------------------------------------

    def claim(
        self, job_id: str, index: int, epoch: int, stages: Sequence[str], *, deadline: float, enter: str = ""
    ) -> Lease | Refused:
        """Take the lease on a record whose stage is one of ``stages``, for at most ``deadline`` seconds in all."""
        token, before = uuid.uuid4().hex, host_clock()
        answer = self._run(
            "claim",
            self._keys(job_id, index),
            self.prefix,
            job_id,
            epoch,
            f",{','.join(stages)},",
            enter,
            token,
            self.lease_seconds,
            deadline,
            self._member(job_id, index),
        )
        if answer[0] != "ok":
            return Refused(answer[0], float(answer[1]) if len(answer) > 1 else 0.0)
        job = decode(JobRecord, answer[2])
        shard = decode(ShardRecord, answer[1]) if index != JOB else None
        return Lease(self, job, shard, token, float(answer[3]), before, Renewal(cancel=job.cancel))

    def renew(self, lease: Lease) -> tuple[float, Renewal]:
        """Keep a lease. Answers the seconds it now lasts. Raises LeaseLost."""
        answer = self._run(
            "renew",
            self._keys(lease.job.id, lease.index),
            self._member(lease.job.id, lease.index),
            lease.token,
            self.lease_seconds,
        )
        if answer[0] == "lost":
            raise LeaseLost
        return float(answer[1]), _news(answer[2], answer[3])

    def save(self, lease: Lease, changes: Mapping[str, Any]) -> Renewal:
        """Write fields and keep the lease. Raises LeaseLost."""
        answer = self._run("save", self._keys(lease.job.id, lease.index), lease.token, *encode_changes(changes))
        return _news_or_lost(answer)

    def advance(self, lease: Lease, move: Move, *, tries: str, merge_ids: list[str]) -> tuple[Renewal, int]:
        """End a turn. Answers what the holder must know, and the epoch under which to publish merge (0: not now).

        ``tries``: keep (unforeseen trouble), refund (foreseen) or reset (it got on). Raises LeaseLost.
        """
        answer = self._fenced(
            "advance",
            lease,
            self._member(lease.job.id, lease.index),
            self._member(lease.job.id, JOB),
            lease.token,
            move.stage.value,
            move.after,
            tries,
            self.lease_seconds,
            merge_ids,
            *encode_changes(move.changes),
        )
        return _news(answer[1], answer[2]), int(answer[3])

    def put_off(self, lease: Lease, after: float, changes: Mapping[str, Any], *, tries: str) -> Renewal:
        """End a turn of the job itself without a new stage: come back after ``after`` seconds."""
        answer = self._fenced(
            "advance",
            lease,
            self._member(lease.job.id, JOB),
            self._member(lease.job.id, JOB),
            lease.token,
            "",
            after,
            tries,
            self.lease_seconds,
            [],
            *encode_changes(changes),
        )
        return _news(answer[1], answer[2])

    def _fenced(self, name: str, lease: Lease, *args: object) -> list[Any]:
        flat = [orjson.dumps(arg).decode() if isinstance(arg, list) else arg for arg in args]
        answer = self._run(name, self._keys(lease.job.id, lease.index), self.prefix, lease.job.id, *flat)
        if answer[0] == "lost":
            raise LeaseLost
        return answer

    def raise_epoch(
        self, job_id: str, index: int, ids: list[str], *, if_due: bool = False, after: float = 0.0
    ) -> Raised | None:
        """Void a record's messages and take a new epoch for new ones, which run after ``after`` seconds, with their
        task ids. None: not now, or not ever.

        While a lease lives a wake mark is left instead: its holder publishes.
        """
        answer = self._run(
            "raise",
            self._keys(job_id, index),
            self._member(job_id, index),
            self.lease_seconds,
            orjson.dumps(ids).decode(),
            int(if_due),
            after,
        )
        if answer[0] != "ok":
            return None
        return Raised(int(answer[1]), answer[2], answer[3], orjson.loads(answer[4]))

    # -- the paid call ---------------------------------------------------------------------------------------------

    def intend(self, lease: Lease) -> Renewal:
        """Record that a create call goes out under the shard's key. Raises LeaseLost."""
        return _news_or_lost(self._run("intent", self._keys(lease.job.id, lease.index), lease.token))

    def withdraw(self, shard: ShardRecord, call: str) -> None:
        """A call was clearly refused or never made. Needs no lease."""
        self._run("withdraw", self._keys(shard.job, shard.index), shard.key, call)

    def settle(
        self, shard: ShardRecord, batch_id: str, *, token: str | None, after: float, changes: Mapping[str, Any]
    ) -> Settled:
        """Record the id of a batch made or found under the shard's current key. Needs no lease."""
        answer = self._run(
            "settle",
            self._keys(shard.job, shard.index),
            self.prefix,
            self._member(shard.job, shard.index),
            token or "",
            shard.key,
            batch_id,
            after,
            self.lease_seconds,
            *encode_changes(changes),
        )
        return Settled(answer[0], _news(*answer[1:]) if len(answer) > 1 else Renewal())

    # -- reading ---------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Redis' clock, unix seconds."""
        seconds, micros = self._call(self.client.time)
        return float(seconds) + float(micros) / 1e6 + self.skew()

    def get_job(self, job_id: str) -> JobRecord:
        """Raises JobNotFound."""
        fields = self._call(self.client.hgetall, self._job_key(job_id))
        if not fields:
            raise JobNotFound(f"no job {job_id} is known here")
        return decode(JobRecord, fields)

    def account_of(self, job_id: str) -> str | None:
        """The name of the account a job uses, or None for an unknown job."""
        return cast("str | None", self._call(self.client.hget, self._job_key(job_id), "account"))

    def job_of_batch(self, batch_id: str) -> tuple[str, int] | None:
        """(job id, shard index) of a recorded batch."""
        member = self._call(self.client.get, f"{self.prefix}batch:{batch_id}")
        return parse_member(member) if member else None

    def iter_shards(self, job: JobRecord) -> Iterator[ShardRecord]:
        """All shards of a job in order of their index, read a few hundred at a time."""
        for start in range(0, job.shards, 200):
            pipe = self.client.pipeline(transaction=False)
            for index in range(start, min(start + 200, job.shards)):
                pipe.hgetall(self._key(job.id, index))
            for fields in self._call(pipe.execute):
                if fields:
                    yield decode(ShardRecord, fields)

    def list_jobs(self, *, state: State | None = None, limit: int = 100) -> list[JobRecord]:
        """Newest first. ``cancelling`` lists the jobs that are being cancelled."""
        stored = state if state not in (None, State.CANCELLING) else None
        index = f"{self.prefix}jobs:{stored.value}" if stored else f"{self.prefix}jobs"
        found: list[JobRecord] = []
        expired: list[str] = []
        for start in range(0, 1_000_000, 200):
            ids = self._call(self.client.zrevrange, index, start, start + 199)
            pipe = self.client.pipeline(transaction=False)
            for job_id in ids:
                pipe.hgetall(self._job_key(job_id))
            for job_id, fields in zip(ids, self._call(pipe.execute), strict=True):
                if not fields:
                    expired.append(job_id)
                elif (job := decode(JobRecord, fields)) and state in (None, job.state):
                    found.append(job)
            if len(found) >= limit or len(ids) < 200:
                break
        if expired:  # only now: taking them out while paging by rank would skip others
            self._call(self.client.zrem, index, *expired)
        return found[:limit]

    def due(self, limit: int = 1_000) -> list[tuple[str, int]]:
        """(job id, index) of what is past due, the longest overdue first."""
        members = self._call(
            self.client.zrangebyscore, f"{self.prefix}due", "-inf", f"{self.now():.6f}", start=0, num=limit
        )
        return [parse_member(member) for member in members]

    # -- accounts --------------------------------------------------------------------------------------------------

    def pause(self, account: str, seconds: float, problem: Problem) -> None:
        """Nobody uses this account for so long; everybody can read why."""
        key = f"{self.prefix}pause:{account}"
        pipe = self.client.pipeline()
        pipe.hset(key, mapping={"code": problem.code, "message": problem.message})
        pipe.pexpire(key, max(1, int(seconds * 1000)))
        self._call(pipe.execute)

    def paused(self, account: str) -> Pause | None:
        key = f"{self.prefix}pause:{account}"
        pipe = self.client.pipeline()
        pipe.hgetall(key)
        pipe.pttl(key)
        fields, left = self._call(pipe.execute)
        if not fields or left <= 0:
            return None
        return Pause(left / 1000, fields.get("code", ""), fields.get("message", ""))

    def resume(self, account: str) -> bool:
        """End a pause. True if there was one."""
        return bool(self._call(self.client.delete, f"{self.prefix}pause:{account}"))

    def may_look(self, account: str, *, per_second: float, burst: float) -> float:
        """Take one look at the provider from the account's budget. Answers 0, or the seconds until there is one."""
        return float(cast(Any, self._run("look", [f"{self.prefix}looks:{account}"], per_second, burst)))

    # -- the event log ---------------------------------------------------------------------------------------------

    def log(self, job_id: str, event: str, **fields: Any) -> None:
        """Append to the job's bounded event log."""
        key = f"{self.prefix}log:{job_id}"
        pipe = self.client.pipeline(transaction=False)
        pipe.xadd(key, {"event": event, "data": orjson.dumps(fields)}, maxlen=LOG_LENGTH, approximate=True)
        pipe.expire(key, _LOG_SECONDS)
        self._call(pipe.execute)

    def read_log(self, job_id: str, *, after: str = "-", limit: int = LOG_LENGTH) -> list[dict[str, Any]]:
        """Events, oldest first: ``{id, at, event, ...}``; ``at`` in unix seconds. ``after``: an id already read."""
        start = after if after == "-" else f"({after}"
        entries = self._call(self.client.xrange, f"{self.prefix}log:{job_id}", min=start, count=limit)
        return [
            {
                "id": entry,
                "at": int(entry.split("-")[0]) / 1000,
                "event": fields["event"],
                **orjson.loads(fields["data"]),
            }
            for entry, fields in entries
        ]

    # -- the server ------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Raises StoreUnavailable."""
        self._call(self.client.ping)

    def server_facts(self) -> dict[str, str]:
        """version, appendonly, appendfsync, maxmemory_policy: "" where the server does not tell."""
        facts = {"version": "", "appendonly": "", "appendfsync": "", "maxmemory-policy": ""}
        try:
            facts["version"] = str(self.client.info("server").get("redis_version", ""))
            for name in ("appendonly", "appendfsync", "maxmemory-policy"):
                facts[name] = str(self.client.config_get(name).get(name, ""))
        except redis.ResponseError:
            pass  # a hosted Redis often forbids INFO or CONFIG, and fakeredis has neither
        except redis.RedisError as error:
            raise unavailable(error) from error
        return facts

    def _call(self, command: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except redis.RedisError as error:
            raise unavailable(error) from error


def output_in_use(output: str, owner: str) -> str:
    """What to say of an output that another unfinished job owns."""
    return (
        f"output {output} belongs to job {owner}, which has not ended: follow it (batchpipe wait {owner}), "
        f"cancel it (batchpipe cancel {owner}) or choose another output"
    )


def unavailable(error: redis.RedisError) -> StoreUnavailable:
    """Redis' own trouble in our words; the address stays out, for it may hold the password."""
    return StoreUnavailable(f"Redis: {type(error).__name__}: {error}")


def parse_member(member: str) -> tuple[str, int]:
    """The job id and index of a member of the due set."""
    job_id, _, index = member.rpartition("/")
    return job_id, int(index)


def _news(wake: Any, cancel: Any) -> Renewal:
    return Renewal(wake=bool(int(wake)), cancel=bool(int(cancel)))


def _news_or_lost(answer: list[Any]) -> Renewal:
    if answer[0] == "lost":
        raise LeaseLost
    return _news(answer[1], answer[2])


__all__ = ["LOG_LENGTH", "Pause", "Raised", "Settled", "Store", "new_task_ids", "output_in_use"]
