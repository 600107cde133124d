"""Reads of the records, and the connection; nothing here takes part in the protocol of leases."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, cast

import redis
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.retry import Retry

from batchpipe.config.site import current_site
from batchpipe.errors import JobNotFound, RecordUnreadable, SettingsError, StoreUnavailable
from batchpipe.model.records import JOB, JobRecord, Problem, Stage, State
from batchpipe.store.records import R, bounded_problem, decode, unreadable
from batchpipe.store.refusals import REFUSALS, Kind, in_words, refusal
from batchpipe.store.scripts import source

logger = logging.getLogger(__name__)

#: Errors that another connection may cure. With none of them Redis has changed anything.
_OF_THE_CONNECTION = (redis.ConnectionError, redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)


@dataclass(frozen=True)
class Pause:
    """Why an account is paused, and for how many more seconds."""

    seconds: float
    code: str
    message: str


@dataclass(frozen=True)
class Clock:
    """Our time, and how it relates to Redis' clock. Seconds; 0 if there is nothing to report.

    When Redis' clock is set back, our time goes on from where it was, slower by a twentieth until that clock has
    caught up. A leap forward is only noted: it looks like a time in which nobody called.
    """

    now: float
    ahead: float = 0.0  #: how far we are ahead of Redis' clock
    back_at: float = 0.0  #: when Redis' clock was last set back
    back_by: float = 0.0
    leap_at: float = 0.0  #: when time last leapt forward, in our time after it
    leap_by: float = 0.0
    host: float | None = None  #: the time of this host

    @property
    def slack(self) -> float:
        """How much our time may be ahead of the provider's clock, which we cannot read, in seconds.

        As much as Redis' clock was set back, or is ahead of this host's.
        """
        return max(self.ahead, self.now - self.host if self.host is not None else 0.0)

    def words(self) -> str:
        """What to say while it is ahead; else ""."""
        if not self.ahead:
            return ""
        back = f" by {self.back_by:.0f} s" if self.back_by else ""
        return (
            f"Redis' clock was set back{back}: batchpipe's time goes on from where it was, {self.ahead:.0f} s ahead; "
            "look after the clock (NTP) of the machine that Redis runs on"
        )


@dataclass(frozen=True)
class Survey:
    """Numbers about all jobs; times in seconds of Redis' clock."""

    now: float
    unfinished: int  #: shards and jobs that have a due time
    overdue: int  #: how many of these are overdue
    lag: float  #: how long past due the most overdue one is
    swept: float | None  #: when a sweep was last completed
    jobs: dict[str, int]  #: by state; ended ones only as long as their records are kept
    ahead: float  #: how much our time is ahead of Redis' clock, which was set back


@dataclass(frozen=True)
class Census:
    """The unfinished shards."""

    stages: dict[str, int]
    oldest: float  #: seconds since the oldest of them was planned
    troubled: int  #: those that make no progress just now, for a reason that status shows


class Records:
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
        self.host_time: Callable[[], float] = time.time
        self._url: str | None = None
        self._scripts: dict[str, Any] = {}

    @classmethod
    def connect(
        cls, url: str, *, prefix: str = "{batchpipe}:", lease_seconds: float = 60.0, ttl_seconds: int = 30 * 86_400
    ) -> Self:
        """A store over ``redis://``, ``rediss://`` or ``unix://``. No connection is made before the first use.

        Raises SettingsError for anything else.
        """
        options: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
        try:
            client = redis.Redis.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",  # one record that is not UTF-8 must not prevent reading the others
                socket_timeout=10,
                socket_connect_timeout=5,
                health_check_interval=25,
                # The scripts may be repeated, and a short interruption must not fail a turn. A Redis that hangs is
                # tried once: redis-py also retries the connect within a command, and 16 times 10 s hold up a view.
                # Each try is a new connection and resolves the name again, which a failover may have changed.
                retry=Retry(EqualJitterBackoff(base=0.05, cap=1.0), 3, supported_errors=_OF_THE_CONNECTION),
                **options,
            )
        except ValueError as error:  # it may quote the URL, and so the password
            raise SettingsError(
                "BATCHPIPE_REDIS_URL is no Redis URL: write redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH"
            ) from error
        store = cls(client, prefix=prefix, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds)
        store._url = url
        return store

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
            return cast(list[Any], script(keys=[*keys, self._clock_key], args=[f"{self.skew():.6f}", *args]))
        except redis.RedisError as error:
            if is_of_record(error) and keys:
                raise unreadable(keys[0].removeprefix(self.prefix), str(error)) from error
            raise self._failed(error) from error

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def _clock_key(self) -> str:
        return f"{self.prefix}clock"

    def clock(self) -> Clock:
        """The time of all records, which never goes back though Redis' clock may; and what is known about that."""
        now, ahead, back_at, back_by, leap_at, leap_by = map(float, self._run("now", []))
        return Clock(now, ahead, back_at, back_by, leap_at, leap_by, self.host_time())

    def now(self) -> float:
        """The time of all records: Redis' clock in unix seconds, with the exceptions that ``clock`` describes."""
        return self.clock().now

    def get_job(self, job_id: str) -> JobRecord:
        """The job with this id, or the one that the id is an alias of. Raises JobNotFound, RecordUnreadable."""
        fields = self._call(self.client.hgetall, self._job_key(job_id))
        if not fields and (first := self._call(self.client.get, f"{self.prefix}alias:{job_id}")):
            fields = self._call(self.client.hgetall, self._job_key(first))
        if not fields:
            raise JobNotFound(f"no job {job_id} is known here", job=job_id)
        return decode(JobRecord, fields)

    def account_of(self, job_id: str) -> str | None:
        """The name of the account a job uses, or None for an unknown job."""
        return cast("str | None", self._call(self.client.hget, self._job_key(job_id), "account"))

    # -- accounts --------------------------------------------------------------------------------------------------

    def pause(self, account: str, seconds: float, problem: Problem) -> None:
        """Pause this account for so long, with the reason."""
        self._run("pause", [f"{self.prefix}pause:{account}"], seconds, *bounded_problem(problem))

    def paused(self, account: str) -> Pause | None:
        found = self._run("paused", [f"{self.prefix}pause:{account}"])
        return Pause(float(found[0]), found[1], found[2]) if found else None

    def resume(self, account: str) -> bool:
        """End a pause. True if there was one."""
        return bool(self._call(self.client.delete, f"{self.prefix}pause:{account}"))

    def creating_accounts(self, since: float) -> list[str]:
        """Names of the accounts with a create call since then."""
        return cast(
            "list[str]", self._call(self.client.zrangebyscore, f"{self.prefix}accounts", f"{since:.6f}", "+inf")
        )

    def listings(self, account: str) -> tuple[float, float]:
        """When a listing of the account's batches last began, and when the last complete one began; 0: never."""
        begun, done = self._call(self.client.hmget, f"{self.prefix}listed:{account}", "begun", "done")
        return float(begun or 0), float(done or 0)

    def note_listing(self, account: str, **times: float) -> None:
        """Note ``begun`` or ``done``."""
        fields = {name: f"{at:.6f}" for name, at in times.items()}
        self._call(self.client.hset, f"{self.prefix}listed:{account}", mapping=fields)

    def take_rate_token(self, account: str, *, per_second: float, burst: float) -> float:
        """Take one look at the provider from the account's budget. Returns 0, or the seconds until there is one."""
        return float(cast(Any, self._run("look", [f"{self.prefix}looks:{account}"], per_second, burst)))

    # -- what is seen ----------------------------------------------------------------------------------------------

    def add_counts(self, counts: Mapping[str, float]) -> None:
        """Add to the counts of all processes. A repeated call counts twice: these counts are only for people."""
        if not counts:
            return
        pipe = self.client.pipeline(transaction=False)
        for field, amount in counts.items():
            pipe.hincrbyfloat(f"{self.prefix}metrics", field, amount)
        self._call(pipe.execute)

    def read_counts(self) -> dict[str, float]:
        counts = dict[str, float]()
        for name, value in self._call(self.client.hgetall, f"{self.prefix}metrics").items():
            with suppress(ValueError):  # written by hand
                counts[name] = float(value)
        return counts

    def note_sweep(self) -> None:
        """Note that a sweep is complete."""
        self._run("swept", [f"{self.prefix}swept"])

    def stats(self) -> Survey:
        """A few numbers about all jobs, at the cost of a few reads, however many there are."""
        clock = self.clock()
        now = clock.now
        kept = f"{now - self.ttl_seconds:.6f}"  # the lists still name jobs with expired records
        pipe = self.client.pipeline(transaction=False)
        pipe.zcard(f"{self.prefix}due")
        pipe.zcount(f"{self.prefix}due", "-inf", f"{now:.6f}")
        pipe.zrange(f"{self.prefix}due", 0, 0, withscores=True)
        pipe.get(f"{self.prefix}swept")
        states = [state for state in State if state is not State.CANCELLING]
        for state in states:
            pipe.zcount(f"{self.prefix}jobs:{state.value}", kept if state.ended else "-inf", "+inf")
        unfinished, overdue, first, swept, *jobs = self._call(pipe.execute)
        return Survey(
            now=now,
            unfinished=unfinished,
            overdue=overdue,
            lag=max(now - first[0][1], 0.0) if first else 0.0,
            swept=float(swept) if swept else None,
            jobs={state.value: count for state, count in zip(states, jobs, strict=True)},
            ahead=clock.ahead,
        )

    def count_open_shards(self, *, chunk: int = 500, most: int = 100_000) -> Census:
        """Count the unfinished shards by stage: within Redis, a chunk at a time, so that it delays nobody for long.

        About 1 ms a chunk. Work goes on between two chunks, so a few shards may be missed or counted twice.
        """
        stages: dict[str, int] = {stage.value: 0 for stage in Stage if stage is not Stage.COLLECTED}
        oldest, troubled = 0.0, 0
        for start in range(0, most, chunk):
            answer = self._run("count_open_shards", [f"{self.prefix}due"], self.prefix, start, start + chunk - 1)
            read, age, trouble = int(answer[0]), float(answer[1]), int(answer[2])
            oldest, troubled = max(oldest, age), troubled + trouble
            for name, count in zip(answer[3::2], answer[4::2], strict=True):
                if name in stages:
                    stages[name] += int(count)
            if read < chunk:
                break
        return Census(stages, oldest, troubled)

    # -- the server ------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """One short try, because the caller waits. Raises StoreUnavailable."""
        if self._url is None:
            self._call(self.client.ping)
            return
        try:
            with redis.Redis.from_url(
                self._url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)
            ) as probe:
                probe.ping()
                with suppress(redis.ResponseError):  # a hosted Redis may forbid INFO
                    _refuse_others(probe)
        except redis.RedisError as error:
            raise unavailable(error) from error

    def check_writing(self) -> None:
        """Try a write that changes nothing. Raises StoreUnavailable if Redis would refuse a record just now."""
        self._call(self.client.lpushx, f"{self.prefix}check", "")

    def server_facts(self) -> dict[str, str]:
        """version, appendonly, appendfsync, maxmemory-policy, cluster ("1"): "" if the server does not tell."""
        facts = {"version": "", "appendonly": "", "appendfsync": "", "maxmemory-policy": "", "cluster": ""}
        # a hosted Redis often forbids INFO or CONFIG, and fakeredis lacks both
        facts["version"] = str(self._told(self.client.info, "server").get("redis_version", ""))
        facts["cluster"] = str(self._told(self.client.info, "cluster").get("cluster_enabled", ""))
        for name in ("appendonly", "appendfsync", "maxmemory-policy"):
            facts[name] = str(self._told(self.client.config_get, name).get(name, ""))
        return facts

    def _told(self, command: Callable[[str], Any], name: str) -> Any:
        try:
            return command(name)
        except redis.ResponseError as error:
            found = refusal(error)
            if found is None or found.code == "redis_denied":
                return {}
            raise self._failed(error) from error
        except redis.RedisError as error:
            raise self._failed(error) from error

    def job_of_key(self, key: str) -> str | None:
        """The id of the job that was submitted under this idempotency key, if it is still known."""
        job_id = self._call(self.client.get, f"{self.prefix}key:{key}")
        return job_id if job_id and self._call(self.client.exists, self._job_key(job_id)) else None

    def _call(self, command: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except redis.RedisError as error:
            raise self._failed(error) from error

    def _failed(self, error: redis.RedisError) -> StoreUnavailable:
        """The error to raise. After a failover the other connections lead to the old primary, too: they are dropped.

        Connections in use get the same error, and drop themselves.
        """
        if (found := refusal(error)) is not None and found.kind is Kind.CONNECTION:
            self.client.connection_pool.disconnect(inuse_connections=False)
        return unavailable(error)


def is_of_record(error: redis.RedisError) -> bool:
    """Whether the error says that a key holds no record, or one that a script cannot handle."""
    text = str(error)
    return isinstance(error, redis.ResponseError) and (
        "WRONGTYPE" in text or (refusal(error) is None and ("user_script" in text or "Error running script" in text))
    )


def decoded(kind: type[R], found: Any, what: str) -> R | None:
    """A record from its hash, None if there is none. Raises RecordUnreadable."""
    if isinstance(found, redis.RedisError):
        raise unreadable(what, str(found))
    return decode(kind, found) if found else None


def name_once(error: RecordUnreadable) -> str:
    """Log that a record is skipped, once in this process; returns the message."""
    if current_site().is_news("record_unreadable", error.message):
        logger.warning("%s", error.message, extra={"event": "record_unreadable"})
    return error.message


def _refuse_others(probe: redis.Redis) -> None:
    """Raises StoreUnavailable for a Cluster or a Sentinel, which also answer PING."""
    for section, mark, word in (("cluster", "cluster_enabled", "MOVED"), ("sentinel", "sentinel_masters", "SENTINEL")):
        if probe.info(section).get(mark):
            raise StoreUnavailable(REFUSALS[word].said, code=REFUSALS[word].code)


def unavailable(error: redis.RedisError) -> StoreUnavailable:
    """An error of Redis in our words, without the address, which may hold the password."""
    if (found := refusal(error)) is None:
        return StoreUnavailable(in_words(error))
    return StoreUnavailable(in_words(error), code=found.code)
