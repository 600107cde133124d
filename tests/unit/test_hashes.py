"""Within a script hashes are read once and written once (store/scripts/hashes.lua). To the script, and to everybody
after it, that is the same as if each command went to Redis.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchpipe.store import scripts
from tests.redis_server import new_redis
from tests.unit.test_scripts import FOLDER

JOB, SHARD, OTHER = KEYS = ("{t}:job:a", "{t}:shard:a:0", "{t}:other")
#: Runs the commands of ARGV[1] and answers what each of them did; `strict`: an error ends it.
PROGRAM = """
local answers = {}
for place, command in ipairs(cjson.decode(ARGV[1])) do
  local way = table.remove(command, 1)
  local fine, answer
  if way == 'strict' then fine, answer = true, redis.call(unpack(command))
  elseif way == 'pcall' then fine, answer = true, redis.pcall(unpack(command))
  else fine, answer = pcall(redis.call, unpack(command)) end
  if not fine or type(answer) == 'table' and answer.err then answer = 'error' end
  if answer == nil or command[1] == 'HSET' or command[1] == 'HDEL' then answer = 'nothing' end
  answers[place] = answer
end
return cjson.encode(answers)
"""
TAIL = scripts.source("claim").splitlines()[-1]
CACHE = re.sub(r"^ *--.*", "", (FOLDER / "hashes.lua").read_text(), flags=re.MULTILINE)
CACHED = f"{CACHE}local function script() {PROGRAM} end\n{TAIL}"
#: Commands whose answer has no order.
UNORDERED = {"HKEYS", "HVALS"}

Command = list[Any]
State = dict[str, Any]

fields = st.sampled_from(["stage", "tries", "of_mine", "7", 7, 3])
values = st.one_of(
    st.integers(-3, 10**12), st.sampled_from([0.5, "", "x", "12", "007", "-0", "1.5", "9007199254740993", "a b"])
)
keys = st.sampled_from(KEYS)


def commands() -> st.SearchStrategy[list[Command]]:
    """One command each, or a few that belong together."""

    def several(name: str, more: st.SearchStrategy[list[Any]], way: str = "call") -> st.SearchStrategy[list[Command]]:
        return st.tuples(keys, more).map(lambda given: [[way, name, given[0], *given[1]]])

    def one(name: str, *args: st.SearchStrategy[Any], way: str = "call") -> st.SearchStrategy[list[Command]]:
        return st.tuples(keys, *args).map(lambda given: [[way, name, *given]])

    pairs = st.lists(st.tuples(fields, values), min_size=1, max_size=3).map(lambda found: [x for p in found for x in p])
    some = st.lists(fields, min_size=1, max_size=4)
    by = st.one_of(st.integers(-5, 5), st.sampled_from(["3", "x", "1.5", "-0"]))
    listed = [
        several("HSET", pairs),
        several("HDEL", some),
        several("HMGET", some),
        several("HMGET", some, way="pcall"),
        one("HSET", fields, values, way="pcall"),
        one("HGET", fields),
        one("HSETNX", fields, values),
        one("HEXISTS", fields),
        one("HINCRBY", fields, by),
        one("HINCRBYFLOAT", fields, by),
        one("EXPIRE", st.just(1000)),
        *(one(name) for name in ("HGETALL", "HLEN", "HKEYS", "HVALS", "EXISTS", "EXISTS", "DEL", "PERSIST")),
        st.just([["call", "UNLINK", *KEYS]]),
        st.just([["call", "ZADD", "{t}:zset", 1, "m"]]),
        # what is deleted may come back as something else
        keys.map(
            lambda key: [["call", *c] for c in (["DEL", key], ["ZADD", key, 1, "m"], ["EXISTS", key], ["DEL", key])]
        ),
    ]
    return st.lists(st.one_of(listed), min_size=1, max_size=25).map(lambda found: [c for part in found for c in part])


def state_of(client: redis.Redis, *, times: bool) -> State:
    state: State = {}
    for key in cast(list[str], sorted(client.keys("*"))):
        hash_ = client.type(key) == "hash"
        state[key] = (
            client.hgetall(key) if hash_ else client.zrange(key, 0, -1, withscores=True),
            times and client.ttl(key) > 0,
        )
    return state


def ran(
    client: redis.Redis, text: str, before: dict[str, dict[str, str]], sent: list[Command], *, times: bool = True
) -> tuple[Any, State]:
    """The answers, or 'raised', and what is left."""
    client.flushall()
    for key, mapping in before.items():
        client.hset(key, mapping=cast(Any, mapping))
    try:
        answers = json.loads(client.eval(text, 0, json.dumps(sent)))
    except redis.ResponseError:
        answers = "raised"
    else:
        for place, (_, name, *_) in enumerate(sent):
            if name in UNORDERED and isinstance(answers[place], list):
                answers[place] = sorted(answers[place])
            elif name == "HGETALL":
                flat = iter(answers[place])
                answers[place] = dict(zip(flat, flat, strict=True))
    return answers, state_of(client, times=times)


befores = st.dictionaries(
    keys, st.dictionaries(st.sampled_from(["stage", "tries", "of_mine", "7"]), st.sampled_from(["1", "x"]), min_size=1)
)
many = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def client() -> Any:
    return new_redis()


@many
@given(before=befores, sent=commands())
@example(before={}, sent=[["call", "HGETALL", JOB], ["call", "HGET", JOB, "stage"], ["call", "EXISTS", JOB]])
@example(before={}, sent=[["call", "HSET", JOB, "stage", "x"], ["pcall", "HMGET", JOB, "stage"]])
@example(before={OTHER: {"stage": "1"}}, sent=[["call", "HSET", OTHER, "tries", "1"], ["call", "UNLINK", *KEYS]])
def test_a_script_sees_and_leaves_what_it_would_without_the_cache(
    client: redis.Redis, before: dict[str, dict[str, str]], sent: list[Command]
) -> None:
    """Only a hash that is emptied and filled again differs: it keeps its expiry."""
    times = not any(name == "HDEL" for _, name, *_ in sent)
    assert ran(client, CACHED, before, sent, times=times) == ran(client, PROGRAM, before, sent, times=times)


@many
@given(before=befores, sent=commands())
def test_a_script_that_raises_after_a_write_leaves_what_it_did_up_to_there(
    client: redis.Redis, before: dict[str, dict[str, str]], sent: list[Command]
) -> None:
    sent = [["call", "ZADD", "{t}:zset", 1, "m"], *sent, ["strict", "HGET", "{t}:zset", "stage"]]
    times = not any(name == "HDEL" for _, name, *_ in sent)
    found = ran(client, CACHED, before, sent, times=times)
    assert found == ran(client, PROGRAM, before, sent, times=times)
    assert found[0] == "raised"


@pytest.mark.parametrize("new", [new_redis, partial(fakeredis.FakeRedis, decode_responses=True)])
def test_a_script_that_raises_when_it_has_changed_hashes_only_leaves_nothing(new: Callable[[], Any]) -> None:
    sent = [["call", "HSET", JOB, "stage", "x"], ["call", "HINCRBY", OTHER, "n", 1], ["strict", "HGET", "z", "stage"]]
    client = new()
    client.zadd("z", {"m": 1})
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.eval(CACHED, 0, json.dumps(sent))
    assert client.keys("*") == ["z"]
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.eval(CACHED, 0, json.dumps([["call", "ZADD", "y", 1, "m"], *sent]))
    assert (client.hgetall(JOB), client.hgetall(OTHER)) == ({"stage": "x"}, {"n": "1"})


def test_a_key_of_another_type_keeps_no_other_hash_from_being_written(client: redis.Redis) -> None:
    client.flushall()
    client.zadd(JOB, {"m": 1})
    sent = [["call", "ZADD", "y", 1, "m"], *(["call", "HSET", key, "stage", "x"] for key in KEYS)]
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.eval(CACHED, 0, json.dumps(sent))
    assert (client.hgetall(SHARD), client.hgetall(OTHER)) == ({"stage": "x"}, {"stage": "x"})
    assert json.loads(client.eval(CACHED, 0, json.dumps([["strict", "EXISTS", JOB]]))) == [1]


def test_what_is_no_text_and_no_number_is_no_value(client: redis.Redis) -> None:
    """Not a field to remove, either."""
    client.flushall()
    client.hset(JOB, "stage", "x")
    for value in (False, True):
        with pytest.raises(redis.ResponseError):
            client.eval(CACHED, 0, json.dumps([["strict", "HSET", JOB, "stage", value]]))
    assert client.hgetall(JOB) == {"stage": "x"}


def test_no_script_asks_how_many_fields_were_new_or_there() -> None:
    """HSET and HDEL answer nothing."""
    for path in FOLDER.glob("*.lua"):
        assert not re.search(r"(=|\breturn|\bif|\band|\bor|\bnot|[(,{]) *redis\.call\('(HSET|HDEL)'", path.read_text())
