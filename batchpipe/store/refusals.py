"""What an error from Redis means: trouble of the connection, trouble that passes, or a setting to correct.

Redis names its state in the first word of the error; in an error from a Lua script that word may come later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import redis
from redis import exceptions


class Kind(StrEnum):
    """What can cure it."""

    CONNECTION = "connection"  #: a new connection: the name or virtual address may lead to another server by now
    PASSES = "passes"  #: time
    SETTING = "setting"  #: a person


@dataclass(frozen=True)
class Refusal:
    """A state in which Redis refuses commands. ``said`` is one line: what is wrong and what to do."""

    kind: Kind
    code: str
    said: str


_CLUSTER = Refusal(
    Kind.SETTING,
    "redis_cluster",
    "Redis is a cluster, which is not supported: use a Redis or Valkey that is not (cluster-enabled no)",
)
_LOGIN = Refusal(
    Kind.SETTING,
    "redis_login",
    "Redis refuses the user or password: correct those in the URL (redis://USER:PASSWORD@...)",
)
_DATABASE = Refusal(
    Kind.SETTING,
    "redis_database",
    "Redis has no database of this number (by default 0 to 15): correct the number at the end of",
)
_BUSY = Refusal(
    Kind.PASSES, "redis_busy", "Redis is busy with a Lua script: it answers once that has ended (or SCRIPT KILL)"
)
#: First word of the error -> what it means.
REFUSALS: dict[str, Refusal] = {
    "READONLY": Refusal(
        Kind.CONNECTION,
        "redis_read_only",
        "Redis is read-only: this one is a replica; once the address leads to the primary, all goes on by itself",
    ),
    "UNBLOCKED": Refusal(Kind.CONNECTION, "redis_read_only", "Redis has just become a replica"),
    "MASTERDOWN": Refusal(
        Kind.CONNECTION,
        "redis_no_primary",
        "Redis is a replica that has lost its primary: let the address lead to the primary",
    ),
    "LOADING": Refusal(Kind.PASSES, "redis_loading", "Redis is loading its data from disk: it answers once it is done"),
    "BUSY": _BUSY,
    "UNKILLABLE": _BUSY,
    "NOREPLICAS": Refusal(
        Kind.PASSES,
        "redis_no_replicas",
        "Redis refuses writes because too few replicas are connected: start them, or lower min-replicas-to-write",
    ),
    "MISCONF": Refusal(
        Kind.PASSES,
        "redis_disk",
        "Redis cannot write to its disk and refuses writes: its log says why (disk full? rights of its folder?)",
    ),
    "NOSCRIPT": Refusal(Kind.PASSES, "redis_restarted", "Redis has forgotten our scripts: they are loaded again"),
    "OOM": Refusal(Kind.SETTING, "redis_full", "Redis is full: raise its maxmemory; until then it only answers reads"),
    "NOPERM": Refusal(
        Kind.SETTING,
        "redis_denied",
        "Redis does not allow it to this user: docs/deploy.md has the ACL that is needed",
    ),
    "NOAUTH": _LOGIN,
    "WRONGPASS": _LOGIN,
    "DENIED": Refusal(
        Kind.SETTING,
        "redis_login",
        "Redis is in protected mode and answers its own host only: set a password, or bind it to that address",
    ),
    "MAXCLIENTS": Refusal(Kind.PASSES, "redis_clients", "Redis has no connection left: raise its maxclients"),
    "SENTINEL": Refusal(
        Kind.SETTING,
        "redis_sentinel",
        "Redis is not there, but a Sentinel or a proxy without scripts: give the address of the Redis itself",
    ),
    "DBINDEX": _DATABASE,  # a word of ours: Redis' own is ERR
    **dict.fromkeys(("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN"), _CLUSTER),
}

#: redis-py removes the first word if it has a class for it.
_BY_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.MasterDownError, "MASTERDOWN"),  # before its base class ClusterDownError
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.AuthenticationError, "NOAUTH"),
    (exceptions.AuthenticationWrongNumberOfArgsError, "NOAUTH"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
)
_WORD = re.compile(rf"(?:^|[\s:]-|^ERR )({'|'.join(REFUSALS)})\b")
#: Errors that begin with a plain ERR, in the words of Redis 6.2 to 8 and Valkey.
_BY_TEXT = (
    ("user executing the script can't", "NOPERM"),
    ("max number of clients reached", "MAXCLIENTS"),
    ("without any password configured", "NOAUTH"),
    ("script attempted to access a non local key", "MOVED"),
    ("unknown command 'evalsha'", "SENTINEL"),
    ("unknown command 'script'", "SENTINEL"),
    ("db index is out of range", "DBINDEX"),
    ("invalid db index", "DBINDEX"),
)


#: Any error that Redis itself returned.
RedisAnswer = redis.ResponseError
#: The same, or no reply.
RedisTrouble = redis.RedisError
#: Codes of states that end by themselves: a process that starts waits for that.
PASSING = frozenset(found.code for found in REFUSALS.values() if found.kind is not Kind.SETTING)


#: No reply: no Redis of ours listens there, or nothing does.
_NO_ANSWER = (exceptions.ConnectionError, exceptions.TimeoutError)
#: redis-py's words for a failed connection; the address is host and port, or path, without the URL's password.
_NOBODY = re.compile(r"Error \S+ connecting to (?P<where>.+?)\. (?P<why>.+?)\.?$", re.DOTALL)


def unreachable(error: BaseException) -> str | None:
    """Where the connection failed, and why: `at HOST:PORT cannot be reached: Connection refused`. Else None."""
    found = _NOBODY.match(str(error))
    return f"at {found['where']} cannot be reached: {found['why']}" if found is not None else None


#: The settings that have its address: of the records, and of the broker.
OF_RECORDS = "BATCHPIPE_REDIS_URL (in a site: REDIS_URL)"
OF_BROKER = "BATCHPIPE_BROKER_URL, else BATCHPIPE_REDIS_URL"


def _unanswered(error: BaseException) -> str:
    """What to start or set, with the setting's name as the site spells it."""
    what = unreachable(error) or f"does not answer: {str(error).rstrip('.') or type(error).__name__}"
    return f"Redis {what}; start it (redis-server), or set {OF_RECORDS} to one that runs"


def refusal(error: BaseException) -> Refusal | None:
    """The state that an error of redis-py reports; None if no reply came, or for another error."""
    if not isinstance(error, redis.RedisError):
        return None
    text = str(error)
    if (found := _WORD.search(text)) is not None:
        return REFUSALS[found[1]]
    by_text = next((word for part, word in _BY_TEXT if part in text.lower()), None)
    by_class = next((word for kind, word in _BY_CLASS if isinstance(error, kind)), None)
    word = by_class or by_text
    return REFUSALS[word] if word else None


def in_words(error: BaseException, setting: str = OF_RECORDS) -> str:
    """One line for people; if something is denied, it names the command, key or channel, as Redis does. ``setting``:
    the one that has the address of this Redis.
    """
    found = refusal(error)
    if found is _DATABASE:
        return f"{found.said} {setting}"
    if found is None and isinstance(error, _NO_ANSWER):
        return _unanswered(error)
    if found is None and isinstance(error, redis.ResponseError):
        return f"Redis answers: {error}"
    if found is None:
        return f"{'Redis: ' if isinstance(error, redis.RedisError) else ''}{type(error).__name__}: {error}"
    if found.code == "redis_denied" and "channel" in str(error).lower():
        return f"Redis: the user lacks &channels ({error}): docs/deploy.md has the ACL that is needed"
    return f"{found.said} ({error})" if found.code == "redis_denied" else found.said


def is_of_record(error: redis.RedisError) -> bool:
    """Whether the error says that a key holds no record, or one that a script cannot handle."""
    text = str(error)
    return isinstance(error, redis.ResponseError) and (
        "WRONGTYPE" in text or (refusal(error) is None and ("user_script" in text or "Error running script" in text))
    )
