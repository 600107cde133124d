"""The connection to Redis: commands and scripts, what their errors mean, the names of keys, and our time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self, cast

import redis
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from batchpipe.errors import RecordUnreadable, SettingsError, StoreUnavailable
from batchpipe.model.records import JOB
from batchpipe.model.stats import Clock
from batchpipe.store.records import unreadable
from batchpipe.store.refusals import REFUSALS, Kind, in_words, is_of_record, refusal
from batchpipe.store.scripts import source

#: How long a reading of the clock is moved on by this host's clock, before Redis is asked again. Seconds.
READING_SECONDS = 1.0
#: A reading that took longer is used once: nobody knows from which part of that time it is. Seconds.
SLOW_SECONDS = 0.05

#: Errors that another connection may cure. With none of them Redis has changed anything.
_OF_THE_CONNECTION = (redis.ConnectionError, redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)


class Connection:
    """One Redis and the prefix of all keys.

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
        self._read: tuple[Clock, float, float] | None = None  #: the last reading of the clock, when, and the skew then

    @classmethod
    def connect(
        cls, url: str, *, prefix: str = "{batchpipe}:", lease_seconds: float = 60.0, ttl_seconds: int = 30 * 86_400
    ) -> Self:
        """Over ``redis://``, ``rediss://`` or ``unix://``. No connection is made before the first use.

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
        connection = cls(client, prefix=prefix, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds)
        connection._url = url
        return connection

    # -- keys ----------------------------------------------------------------------------------------------------

    def job_key(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    def key(self, job_id: str, index: int) -> str:
        return self.job_key(job_id) if index == JOB else f"{self.prefix}shard:{job_id}:{index}"

    def keys(self, job_id: str, index: int) -> list[str]:
        """What most scripts are given: the record, its job, and the due set."""
        return [self.key(job_id, index), self.job_key(job_id), f"{self.prefix}due"]

    @staticmethod
    def member(job_id: str, index: int) -> str:
        """How the due set and other values name a record."""
        return f"{job_id}/{index}"

    # -- commands and scripts ------------------------------------------------------------------------------------

    def run(self, name: str, keys: Sequence[str], *args: Any) -> list[Any]:
        """Run a script: it is given these keys and the clock's, the skew and these arguments. Returns its answer.

        Raises StoreUnavailable, RecordUnreadable.
        """
        script = self._script(name)
        try:
            return cast(list[Any], script(keys=[*keys, self.clock_key], args=[f"{self.skew():.6f}", *args]))
        except redis.RedisError as error:
            if is_of_record(error) and keys:
                raise unreadable(keys[0].removeprefix(self.prefix), str(error)) from error
            raise self._failed(error) from error

    def _script(self, name: str) -> Any:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self.client.register_script(source(name))
        return script

    def run_many(self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run a script once for each (keys, arguments), sent together. Returns the answer to each; for a record that
        cannot be read, RecordUnreadable. Raises StoreUnavailable: then some may have run.
        """
        if len(calls) == 1:  # in one round trip: a pipeline asks first whether Redis has the script
            try:
                return [self.run(name, calls[0][0], *calls[0][1])]
            except RecordUnreadable as error:
                return [error]
        script, pipe = self._script(name), self.pipeline()
        for keys, args in calls:
            script(keys=[*keys, self.clock_key], args=[f"{self.skew():.6f}", *args], client=pipe)
        answers = self.execute(pipe, raise_on_error=False)
        for number, (answer, (keys, _)) in enumerate(zip(answers, calls, strict=True)):
            if isinstance(answer, redis.RedisError):
                if not is_of_record(answer):
                    raise self._failed(answer) from answer
                answers[number] = unreadable(keys[0].removeprefix(self.prefix), str(answer))
        return answers

    def call(self, command: str, *args: Any, **options: Any) -> Any:
        """Send a command, by the name of its method in redis-py. Raises StoreUnavailable."""
        try:
            return getattr(self.client, command)(*args, **options)
        except redis.RedisError as error:
            raise self._failed(error) from error

    def pipeline(self) -> Pipeline:
        """Commands that are sent together, but not as a transaction: see ``execute``."""
        return self.client.pipeline(transaction=False)

    def execute(self, pipe: Pipeline, *, raise_on_error: bool = True) -> list[Any]:
        """The answers to the commands of a pipeline. Raises StoreUnavailable."""
        try:
            return pipe.execute(raise_on_error=raise_on_error)
        except redis.RedisError as error:
            raise self._failed(error) from error

    def hashes(self, keys: Sequence[str], names: Sequence[str] = ()) -> list[Any]:
        """These hashes, or these fields of them, read in one go; for a key that is not a hash, Redis' error."""
        if not keys:
            return []
        pipe = self.pipeline()
        for key in keys:
            pipe.hmget(key, list(names)) if names else pipe.hgetall(key)
        answers = self.execute(pipe, raise_on_error=False)
        for answer in answers:
            if isinstance(answer, redis.RedisError) and not is_of_record(answer):
                raise self._failed(answer) from answer
        if not names:
            return answers
        return [
            {name: value for name, value in zip(names, answer, strict=True) if value is not None}
            if isinstance(answer, list)
            else answer
            for answer in answers
        ]

    def _failed(self, error: redis.RedisError) -> StoreUnavailable:
        """The error to raise. After a failover the other connections lead to the old primary, too: they are dropped.

        Connections in use get the same error, and drop themselves.
        """
        if (found := refusal(error)) is not None and found.kind is Kind.CONNECTION:
            self.client.connection_pool.disconnect(inuse_connections=False)
        return unavailable(error)

    # -- time ----------------------------------------------------------------------------------------------------

    @property
    def clock_key(self) -> str:
        return f"{self.prefix}clock"

    def clock(self) -> Clock:
        """The time of all records, which never goes back though Redis' clock may; and what is known about that."""
        now, ahead, back_at, back_by, leap_at, leap_by = map(float, self.run("read_clock", []))
        return Clock(now, ahead, back_at, back_by, leap_at, leap_by, self.host_time())

    def recent_clock(self) -> Clock:
        """The same, for steps that ask several times a second: the last reading, moved on by the time since, if that is
        less than ``READING_SECONDS``.
        """
        began, skew, known = _host_clock(), self.skew(), self._read
        if known is not None and skew == known[2] and 0 <= began - known[1] < READING_SECONDS:
            return dataclasses.replace(known[0], now=known[0].now + began - known[1], host=self.host_time())
        clock = self.clock()
        self._read = (clock, began, skew) if _host_clock() - began < SLOW_SECONDS else None
        return clock

    def now(self) -> float:
        """The time of all records: Redis' clock in unix seconds, with the exceptions that ``clock`` describes, exact to
        some milliseconds.
        """
        return self.recent_clock().now

    # -- the server ----------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """One short try, because the caller waits. Raises StoreUnavailable."""
        if self._url is None:
            self.call("ping")
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
        self.call("lpushx", f"{self.prefix}check", "")

    def server_facts(self) -> dict[str, str]:
        """version, appendonly, appendfsync, maxmemory-policy, cluster ("1"): "" if the server does not say."""
        facts = {"version": "", "appendonly": "", "appendfsync": "", "maxmemory-policy": "", "cluster": ""}
        # a hosted Redis often forbids INFO or CONFIG, and fakeredis lacks both
        facts["version"] = str(self._fact(self.client.info, "server").get("redis_version", ""))
        facts["cluster"] = str(self._fact(self.client.info, "cluster").get("cluster_enabled", ""))
        for name in ("appendonly", "appendfsync", "maxmemory-policy"):
            facts[name] = str(self._fact(self.client.config_get, name).get(name, ""))
        return facts

    def _fact(self, command: Callable[[str], Any], name: str) -> Any:
        try:
            return command(name)
        except redis.ResponseError as error:
            found = refusal(error)
            if found is None or found.code == "redis_denied":
                return {}
            raise self._failed(error) from error
        except redis.RedisError as error:
            raise self._failed(error) from error


def _refuse_others(probe: redis.Redis) -> None:
    """Raises StoreUnavailable for a Cluster or a Sentinel, which also answer PING."""
    for section, mark, word in (("cluster", "cluster_enabled", "MOVED"), ("sentinel", "sentinel_masters", "SENTINEL")):
        if probe.info(section).get(mark):
            raise StoreUnavailable(REFUSALS[word].said, code=REFUSALS[word].code)


def _host_clock() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def unavailable(error: redis.RedisError) -> StoreUnavailable:
    """An error of Redis in our words, without the address, which may hold the password."""
    if (found := refusal(error)) is None:
        return StoreUnavailable(in_words(error))
    return StoreUnavailable(in_words(error), code=found.code)
