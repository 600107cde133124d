"""What a Redis that answers with an error means, and what then becomes of its connections."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import redis
from redis._parsers.base import BaseParser

from batchpipe.errors import StoreUnavailable
from batchpipe.store import Store
from batchpipe.store.refusals import PASSING, REFUSALS, Kind, in_words, refusal
from batchpipe.tasks.publishing import words_of_broker
from batchpipe.telemetry.logs import TroubleFilter
from batchpipe.worker.outlive_redis import outlive_redis

READ_ONLY = "READONLY You can't write against a read only replica."
#: What servers say, of several versions, and the code under which it is told.
ANSWERS = [
    (READ_ONLY, "redis_read_only"),
    (f"ERR Error running script (call to f_ab): @user_script:10: @user_script: 10: -{READ_ONLY}", "redis_read_only"),
    (f"{READ_ONLY} script: ab, on @user_script:10.", "redis_read_only"),
    ("UNBLOCKED force unblock from blocking operation, instance state changed", "redis_read_only"),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "redis_no_primary"),
    ("LOADING Redis is loading the dataset in memory", "redis_loading"),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "redis_busy"),
    ("UNKILLABLE Sorry the script already executed write commands against the dataset.", "redis_busy"),
    ("NOREPLICAS Not enough good replicas to write.", "redis_no_replicas"),
    ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", "redis_disk"),
    ("NOSCRIPT No matching script. Please use EVAL.", "redis_restarted"),
    ("OOM command not allowed when used memory > 'maxmemory'.", "redis_full"),
    ("ERR Error running script (call to f_ab): @user_script:3: -OOM command not allowed when used", "redis_full"),
    ("NOPERM this user has no permissions to run the 'evalsha' command", "redis_denied"),
    ("ERR The user executing the script can't run this command or subcommand script: ab", "redis_denied"),
    ("NOAUTH Authentication required.", "redis_login"),
    ("WRONGPASS invalid username-password pair or user is disabled.", "redis_login"),
    ("DENIED Redis is running in protected mode because protected mode is enabled.", "redis_login"),
    ("ERR max number of clients reached", "redis_clients"),
    ("MOVED 3999 127.0.0.1:6381", "redis_cluster"),
    ("ASK 3999 127.0.0.1:6381", "redis_cluster"),
    ("CROSSSLOT Keys in request don't hash to the same slot", "redis_cluster"),
    ("CLUSTERDOWN Hash slot not served", "redis_cluster"),
    ("TRYAGAIN Multiple keys request during rehashing of slot", "redis_cluster"),
    ("ERR unknown command 'EVALSHA', with args beginning with: '133a' '5' 'key'", "redis_sentinel"),
    ("ERR DB index is out of range", "redis_database"),
    ("ERR invalid DB index", "redis_database"),
]


@pytest.mark.parametrize(("answer", "code"), ANSWERS)
def test_each_answer_of_a_redis_that_refuses_has_a_code_and_one_line(answer: str, code: str) -> None:
    """Whichever class redis-py has for it, and out of a script, too."""
    error = BaseParser.parse_error(answer)
    found = refusal(error)
    assert found is not None
    assert found.code == code
    assert "\n" not in in_words(error)
    assert in_words(error).startswith("Redis")


def test_other_errors_of_redis_are_none_of_its_states() -> None:
    """They are told as they are."""
    for error in (redis.ResponseError("WRONGTYPE Operation against a key"), redis.DataError("x"), OSError("BUSY")):
        assert refusal(error) is None
        assert str(error) in in_words(error)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            redis.ConnectionError("Error 111 connecting to localhost:6379. Connection refused."),
            "Redis at localhost:6379 cannot be reached: Connection refused; ",
        ),
        (
            redis.ConnectionError("Error -2 connecting to no.such.host:6379. Name or service not known."),
            "Redis at no.such.host:6379 cannot be reached: Name or service not known; ",
        ),
        (redis.ConnectionError("Connection closed by server."), "Redis does not answer: Connection closed by server; "),
        (redis.TimeoutError("Timeout reading from socket"), "Redis does not answer: Timeout reading from socket; "),
        (redis.TimeoutError(), "Redis does not answer: TimeoutError; "),
    ],
)
def test_of_a_redis_that_is_not_there_it_is_said_what_to_start_or_set(error: redis.RedisError, says: str) -> None:
    """No raw exception: where nobody answered, why, and what to do."""
    assert in_words(error).startswith(says)
    assert in_words(error).endswith(
        "start it (redis-server), or set BATCHPIPE_REDIS_URL (in a site: REDIS_URL) to one that runs"
    )


def test_a_database_that_is_not_there_names_the_setting_with_its_number() -> None:
    """That of the broker where it is the broker's."""
    error = BaseParser.parse_error("ERR DB index is out of range")
    said = "Redis has no database of this number (by default 0 to 15): correct the number at the end of "
    assert in_words(error) == f"{said}BATCHPIPE_REDIS_URL (in a site: REDIS_URL)"
    assert words_of_broker(error) == f"the broker refused: {said}BATCHPIPE_BROKER_URL, else BATCHPIPE_REDIS_URL"


def test_settings_are_told_from_what_passes_by_itself() -> None:
    """A process that starts meanwhile waits for the latter only."""
    assert {"redis_read_only", "redis_loading", "redis_no_replicas", "redis_busy", "redis_disk"} <= PASSING
    assert PASSING.isdisjoint({"redis_login", "redis_denied", "redis_cluster", "redis_full"})
    assert REFUSALS["READONLY"].kind is REFUSALS["MASTERDOWN"].kind is Kind.CONNECTION


def test_a_denied_channel_is_called_so() -> None:
    """It is the part of an ACL that is forgotten first."""
    error = BaseParser.parse_error("NOPERM No permissions to access a channel")
    assert "lacks &channels" in in_words(error)


class Demoted:
    """A server that answers each command with ``answer``, and counts connections."""

    def __init__(self, answer: str) -> None:
        self.answer, self.connections = answer, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            while data := connection.recv(1 << 16):
                for line in data.split(b"\r\n"):
                    if line.upper() == b"PING":
                        connection.sendall(b"+PONG\r\n")
                    elif line.upper() in (b"HELLO", b"CLIENT", b"SELECT"):
                        connection.sendall(b"+OK\r\n")
                    elif line.upper() in (b"HGETALL", b"EVALSHA", b"SET"):
                        connection.sendall(f"-{self.answer}\r\n".encode())

    def close(self) -> None:
        self._server.close()


@contextmanager
def demoted(answer: str) -> Iterator[Demoted]:
    server = Demoted(answer)
    try:
        yield server
    finally:
        server.close()


def test_no_connection_to_a_demoted_primary_is_kept() -> None:
    """Each try is a new connection, and afterwards none waits in the pool: the next asks where the name leads to."""
    with demoted(READ_ONLY) as server:
        store = Store.connect(f"redis://127.0.0.1:{server.port}/0?protocol=2")
        with pytest.raises(StoreUnavailable) as caught:
            store.jobs.get("job_x")
        assert caught.value.code == "redis_read_only"
        assert server.connections == 4
        pool = store.connection.client.connection_pool
        assert all(connection._sock is None for connection in pool._available_connections)


def test_a_redis_that_is_full_keeps_its_connections() -> None:
    """Another one would say the same."""
    with demoted("OOM command not allowed when used memory > 'maxmemory'.") as server:
        store = Store.connect(f"redis://127.0.0.1:{server.port}/0?protocol=2")
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="full"):
                store.jobs.get("job_x")
        assert server.connections == 1


def test_any_error_that_redis_answers_is_one_of_the_connection_for_kombu() -> None:
    """Celery then connects again; else it ends its worker."""
    from kombu.transport import redis as transport

    outlive_redis()
    assert issubclass(redis.exceptions.ReadOnlyError, transport.Transport.connection_errors)


def _record(name: str, error: Exception) -> logging.LogRecord:
    info = (type(error), error, None)
    return logging.LogRecord(name, logging.ERROR, __file__, 1, "Message Error: %s\n%s", ("x", ["stack"]), info)


def test_trouble_of_the_broker_is_one_line_of_the_log() -> None:
    """Without a traceback; that of any other error stays."""
    record = _record("celery.beat", redis.exceptions.ReadOnlyError("You can't write"))
    assert TroubleFilter().filter(record)
    assert (record.getMessage(), record.exc_info) == ("Message Error: ReadOnlyError: You can't write", None)
    for name, error in (("celery.beat", ValueError("x")), ("shop", redis.ConnectionError("x"))):
        other = _record(name, error)
        assert TroubleFilter().filter(other)
        assert other.exc_info is not None


def test_a_channel_of_the_broker_that_was_closed_meanwhile_is_trouble_of_the_broker() -> None:
    """kombu raises AttributeError then: its channel has no connection any more. Ours stays a bug with a traceback."""

    def put(channel: Any) -> None:
        channel.connection.client  # noqa: B018

    in_kombu = FunctionType(put.__code__, {"__name__": "kombu.transport.redis"})
    kept = []
    for code in (in_kombu, put):
        try:
            code(SimpleNamespace(connection=None))
        except AttributeError:
            record = logging.LogRecord("celery.beat", logging.ERROR, "", 0, "Message Error: %s", ("x",), sys.exc_info())
        TroubleFilter().filter(record)
        kept.append(record.exc_info is not None)
    assert kept == [False, True]
