"""``recover`` never takes over the jobs of another living Redis; whose a job is stands in what it has left in files."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from pydantic import SecretStr

from batchpipe.errors import Unavailable
from batchpipe.model.records import Stage, State
from batchpipe.pipeline.manifest import basics, note_workspace
from batchpipe.recover import Report, Skipped, lost_jobs, recover
from batchpipe.store import Connection, Store
from batchpipe.store.redis_label import label_of
from batchpipe.testing import FakeOpenAI, Pump
from tests.redis_server import new_redis

Rows = Callable[..., list[dict[str, object]]]


class Host:
    """Sites on one host: one home, one provider, and each a Redis of its own, by database, prefix or port."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder, self.url = folder, redis_url
        self.api = FakeOpenAI(autofinish=True)
        self._clients: list[redis.Redis] = []
        self._servers: list[socket.socket] = []

    def site(self, *, url: str | None = None, prefix: str, database: int = 0) -> Pump:
        """A site on the real Redis; ``url``: one that says it is elsewhere."""
        if url is None:
            url = f"{self.url.rpartition('/')[0]}/{database}"
            client = redis.Redis.from_url(url, decode_responses=True)
        else:
            client = new_redis()
        self._clients.append(client)
        given: dict[str, Any] = {"home": self.folder / "home", "redis_url": SecretStr(url), "prefix": prefix}
        return Pump(self.folder, api=self.api, store=Store(Connection(client, prefix=prefix)), max_rows=2, **given)

    def listen(self) -> str:
        """The URL of something that accepts connections."""
        self._servers.append(socket.create_server(("127.0.0.1", 0)))
        return f"redis://127.0.0.1:{self._servers[-1].getsockname()[1]}/0"

    def silence(self) -> None:
        for server in self._servers:
            server.close()

    def close(self) -> None:
        self.silence()
        for client in self._clients:
            client.close()


@pytest.fixture
def host(tmp_path: Path, redis_url: str) -> Iterator[Host]:
    made = Host(tmp_path, redis_url)
    yield made
    made.close()


def created(site: Pump, rows: list[dict[str, object]]) -> str:
    """A job whose batches all run."""
    job_id = site.submit(rows)
    site.api.autofinish = False
    while not site.job(job_id).shards or any(shard.stage != Stage.CREATED for shard in site.shards(job_id)):
        site.advance(max(min(delivery.at for delivery in site.waiting) - site.at, 0.0) + 0.001)
        assert site.step() is not None
    site.api.autofinish = True
    return job_id


def forget(site: Pump) -> None:
    """Its Redis loses what it has of this site, and no more."""
    site.store.connection.client.delete(*site.store.connection.client.keys(f"{site.store.connection.prefix}*"))
    site.waiting.clear()


def again(site: Pump, **options: Any) -> Report:
    return recover(site.job_runner, **options)


def left(report: Report) -> dict[str, str]:
    return {job.job: job.code for job in report.skipped}


def label(site: Pump) -> str:
    return label_of(site.settings)


def manifest_of(site: Pump, job_id: str) -> Path:
    return site.folder / job_id / "out" / ".batchpipe" / job_id / "manifest.json"


def assert_done(site: Pump, *jobs: str) -> None:
    site.run_until_idle()
    assert [site.job(job).stage for job in jobs] == [State.SUCCEEDED] * len(jobs)
    assert set(site.api.billed.values()) == {1}


# -- two sites -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", ["database", "prefix", "port"])
def test_jobs_of_another_redis_that_lives_are_left_alone(host: Host, chat_rows: Rows, prefix: str, apart: str) -> None:
    """Two sites share a home; the Redis of one is emptied. The other's jobs go on, and no row is paid for twice."""
    other: dict[str, dict[str, Any]] = {
        "database": {"prefix": prefix, "database": 1},
        "prefix": {"prefix": f"{{b}}{prefix}"},
        "port": {"prefix": prefix, "url": host.listen()},
    }
    ours, theirs = host.site(prefix=prefix), host.site(**other[apart])
    lost, lives = created(ours, chat_rows(2)), created(theirs, chat_rows(3, start=2))
    forget(ours)
    published = len(theirs.published)
    for dry_run in (True, False):
        report = again(ours, dry_run=dry_run)
        assert ([job.job for job in report.rebuilt], left(report)) == ([lost], {lives: "foreign"})
        assert (report.orphans, report.cancelled, report.gone, report.orphan_files) == ([], [], [], [])
        assert {batch.job for batch in report.foreign_batches} == {lives}
        assert report.lost == []
    [said] = report.skipped
    assert (said.redis, f"--of '{label(theirs)}'" in said.why) == (label(theirs), True)
    assert ours.store.jobs.account_of(lives) is None
    assert len(theirs.published) == published
    assert_done(ours, lost)
    assert_done(theirs, lives)
    assert host.api.billed == Counter(f"r{number}" for number in range(5))
    forget(theirs)
    forget(ours)


def test_a_job_of_another_redis_that_was_not_prepared_is_not_submitted_again(
    host: Host, chat_rows: Rows, prefix: str
) -> None:
    ours, theirs = host.site(prefix=prefix, url=host.listen()), host.site(prefix=prefix, url=host.listen())
    job = theirs.job(theirs.submit(chat_rows(2)))
    note_workspace(theirs.settings, job, record=basics(job))
    assert left(again(ours)) == {job.id: "foreign"}
    assert ours.store.connection.client.keys("*") == []


def test_uploads_of_another_redis_are_no_orphans(host: Host, chat_rows: Rows, prefix: str) -> None:
    """A dry run reports what nobody knows; whose these are is known."""
    ours, theirs = host.site(prefix=prefix, url=host.listen()), host.site(prefix=prefix, url=host.listen())
    job = created(theirs, chat_rows(2))
    host.api._add(f"batchpipe-{job}-0-1.jsonl", b"{}\n", "batch")
    report = again(ours, dry_run=True)
    assert (report.orphan_files, report.orphans, left(report)) == ([], [], {job: "foreign"})


def test_a_manifest_without_a_label_counts_as_ours(host: Host, chat_rows: Rows, prefix: str) -> None:
    """It is of a time before there were labels; so are lines of the host's list."""
    theirs, ours = host.site(prefix=prefix, url=host.listen()), host.site(prefix=prefix, url=host.listen())
    job = created(theirs, chat_rows(2))
    path = manifest_of(theirs, job)
    manifest = orjson.loads(path.read_bytes())
    assert manifest.pop("redis") == label(theirs)
    path.write_bytes(orjson.dumps(manifest))
    noted = host.folder / "home" / "workspaces.jsonl"
    lines = [orjson.loads(line) for line in noted.read_bytes().splitlines()]
    noted.write_bytes(b"".join(orjson.dumps({k: v for k, v in line.items() if k != "redis"}) for line in lines) + b"\n")
    assert [found.job for found in again(ours).rebuilt] == [job]


# -- a new Redis in the place of the old ---------------------------------------------------------------------------


def test_a_new_redis_takes_over_the_jobs_of_one_that_a_person_names(host: Host, chat_rows: Rows, prefix: str) -> None:
    """Also with a second call, where an account could not be read at first. From then on they are its own."""
    old, new = host.site(prefix=prefix, url="redis://127.0.0.1:9/0"), host.site(prefix=prefix, url=host.listen())
    jobs = [created(old, chat_rows(2)), created(old, chat_rows(2, start=2))]
    gone = [label(old)]
    assert left(again(new)) == dict.fromkeys(jobs, "foreign")
    first = again(new, jobs=jobs[:1], of=gone)
    assert [job.job for job in first.rebuilt] == jobs[:1]
    host.api.fail_next("iter_batches", Unavailable("HTTP 503", status=503))
    assert left(again(new, of=gone))[jobs[1]] == "account_unread"
    assert [job.job for job in again(new, of=gone).rebuilt] == jobs[1:]
    manifest = orjson.loads(manifest_of(new, jobs[0]).read_bytes())
    assert (manifest["redis"], manifest["taken"]) == (label(new), [label(old)])
    forget(new)
    (host.folder / "home" / "workspaces.jsonl").unlink()
    report = again(new, folders=[str(host.folder / job) for job in jobs])
    assert {job.job for job in report.rebuilt} == set(jobs)
    assert_done(new, *jobs)


def test_what_was_taken_over_is_not_taken_back(host: Host, chat_rows: Rows, prefix: str) -> None:
    """The old Redis is there again, empty: its successor works on the job."""
    old, new = host.site(prefix=prefix, url=host.listen()), host.site(prefix=prefix, url=host.listen())
    job = created(old, chat_rows(2))
    assert left(again(new)) == {job: "foreign"}
    forget(old)
    assert [found.job for found in again(new, of=[label(old)]).rebuilt] == [job]
    assert left(again(old)) == {job: "foreign"}
    assert_done(new, job)


def test_a_job_that_was_not_prepared_moves_to_the_new_redis_too(host: Host, chat_rows: Rows, prefix: str) -> None:
    """And can be lost by that one as well."""
    old, new = host.site(prefix=prefix, url="redis://127.0.0.1:9/0"), host.site(prefix=prefix, url=host.listen())
    job = old.job(old.submit(chat_rows(2)))
    note_workspace(old.settings, job, record=basics(job))
    assert [found.job for found in again(new, of=[label(old)]).rebuilt] == [job.id]
    new.store.connection.client.flushall()
    assert [found.job for found in again(new).rebuilt] == [job.id]
    assert_done(new, job.id)


def test_each_redis_that_is_gone_is_named(host: Host, chat_rows: Rows, prefix: str) -> None:
    """One that does not answer may be down for a moment only, and then both would send its rows."""
    silent, other = (host.site(prefix=name, url="redis://127.0.0.1:9/0") for name in (prefix, "{other}:"))
    ours = host.site(prefix=prefix, url=host.listen())
    jobs = [created(site, chat_rows(1, start=start)) for start, site in enumerate((silent, other, ours))]
    assert left(again(ours)) == {jobs[0]: "foreign", jobs[1]: "foreign", jobs[2]: "known"}
    report = again(ours, of=[label(silent)])
    assert ([job.job for job in report.rebuilt], left(report)[jobs[1]]) == (jobs[:1], "foreign")
    assert [job.job for job in again(ours, of=["any"]).rebuilt] == jobs[1:2]
    assert_done(ours, *jobs)


# -- some jobs only ------------------------------------------------------------------------------------------------


def test_only_the_jobs_that_are_named_are_rebuilt(host: Host, chat_rows: Rows, prefix: str) -> None:
    """What belongs to the others is not reported as if nobody knew it."""
    site = host.site(prefix=prefix, url=host.listen())
    jobs = [created(site, chat_rows(2, start=start)) for start in (0, 2)]
    forget(site)
    report = again(site, dry_run=True, jobs=[jobs[0], "job_x"])
    assert [job.job for job in report.rebuilt] == jobs[:1]
    assert report.skipped == [Skipped("job_x", "not_found", "nothing of it was found: name the folder of its output")]
    assert (report.orphans, report.orphan_files) == ([], [])
    assert [job.job for job in again(site, jobs=jobs[1:]).rebuilt] == jobs[1:]
    assert left(again(site, jobs=jobs[1:])) == {jobs[1]: "known"}


# -- the loss is noticed -------------------------------------------------------------------------------------------


def test_unfinished_jobs_that_redis_does_not_know_are_noticed(host: Host, chat_rows: Rows, prefix: str) -> None:
    """Those of this host and this Redis, that have not ended and were not for a sandbox."""
    ours, theirs = host.site(prefix=prefix, url=host.listen()), host.site(prefix=prefix, url=host.listen())
    ours.submit(chat_rows(1))
    ours.run_until_idle()
    lost, sandbox = created(ours, chat_rows(1, start=1)), created(ours, chat_rows(1, start=2))
    created(theirs, chat_rows(1, start=3))
    path = manifest_of(ours, sandbox)
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "account": "sandbox"}))
    fresh = ours.job(ours.submit(chat_rows(1, start=4)))
    note_workspace(ours.settings, fresh, record=basics(fresh))
    assert lost_jobs(ours.settings, ours.store) == []
    forget(ours)
    assert lost_jobs(ours.settings, ours.store) == [fresh.id, lost]
    again(ours)
    assert lost_jobs(ours.settings, ours.store) == []
    ours.advance(40 * 86_400)
    forget(ours)
    assert lost_jobs(ours.settings, ours.store) == []


def test_a_message_of_a_job_that_redis_does_not_know_is_warned_of_once(
    host: Host, chat_rows: Rows, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis may have lost it, or workers of another installation share the queue."""
    site = host.site(prefix=prefix, url=host.listen())
    running, fresh = created(site, chat_rows(3)), site.submit(chat_rows(1))
    site.store.connection.client.flushall()
    caplog.set_level(logging.INFO)
    while site.waiting:
        site.advance(700)
        site.step()
    lines = [line for line in caplog.records if line.levelno == logging.WARNING]
    assert sorted((line.job, line.event) for line in lines) == sorted(  # type: ignore[attr-defined]
        [(running, "job_unknown"), (fresh, "job_unknown")]
    )
    assert "`batchpipe recover --dry-run`" in lines[0].getMessage()
    assert "BATCHPIPE_QUEUE" in lines[0].getMessage()
