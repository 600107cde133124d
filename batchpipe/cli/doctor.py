"""doctor: check settings, Redis, account and workers, and say what to fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from batchpipe.cli.common import emit_json, json_option, out, quiet_libraries, settings
from batchpipe.errors import (
    BatchpipeError,
    JobNotFound,
    Paused,
    RecordUnreadable,
    SettingsError,
    StoreUnavailable,
)
from batchpipe.model.records import JOB, JobRecord, Problem, ShardRecord, Stage
from batchpipe.model.views import telling

if TYPE_CHECKING:
    from batchpipe.client.client import Client
    from batchpipe.config.settings import Settings

#: Clocks may differ by so much.
CLOCK_SECONDS = 300.0
#: How many open records doctor reads, and how many jobs (and queues besides ours) it names.
MOST_RECORDS, MOST_JOBS, MOST_SAID = 1_000, 200, 3
#: Where the docs say what to do about a Redis that refuses.
_AT_REDIS = "docs/operations.md, Redis refuses"

_NO_KEY = "a worker needs the key, a process that only submits does not; without one: `batchpipe worker --sandbox`"
_NO_SANDBOX = "SANDBOX is set, and no sandbox runs: start `batchpipe worker --sandbox`, which brings one"


@dataclass(frozen=True)
class Finding:
    """The result of one check: ok, warn or fail; ``fix`` says what to do."""

    what: str
    verdict: str
    detail: str
    fix: str = ""


@click.command("doctor")
@click.option("--account", default="default", show_default=True, help="Account to check.")
@json_option
def doctor_command(account: str, as_json: bool) -> int:
    """Check settings, Redis, account and workers, and say what to fix. Exits 1 if something is broken."""
    findings = []
    for finding in _look(account):
        findings.append(finding)
        if not as_json:
            out(f"{finding.verdict:<5} {finding.what:<10} {finding.detail}")
            if finding.fix:
                out(f"{'':<17}-> {finding.fix}")
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    return int(any(finding.verdict == "fail" for finding in findings))


def _look(account: str) -> Iterator[Finding]:
    from batchpipe.client.client import Client

    quiet_libraries()
    try:
        chosen = settings()
    except SettingsError as error:
        yield Finding("settings", "fail", str(error), "correct this variable in the environment or in .env")
        return
    for line in chosen.unknown:
        name, _, why = line.partition(": ")
        yield Finding("settings", "warn", f"{name}: {why}", f"write the right name, or remove {name}")
    yield Finding("settings", "ok", f"home {chosen.home}, queue {chosen.queue}, prefix {chosen.prefix}")
    private = chosen.redis_url is None
    client: Client | None = None
    try:
        client = Client(chosen)
        client.store.ping()
    except BatchpipeError as error:
        fix = "install redis-server, or set BATCHPIPE_REDIS_URL" if private else "check BATCHPIPE_REDIS_URL"
        yield Finding("redis", "fail", str(error), fix)
        client = None
    if client is not None:
        yield from _unless_refused("redis", _redis(client, private))
        yield from _unless_refused("clock", _clock(client))
        yield from _unless_refused("records", _records(client))
    yield from _unless_refused("account", _account(client, account))
    yield from _site_app(chosen)
    if client is not None:
        yield from _unless_refused("jobs", _jobs_and_workers(client))


def _unless_refused(what: str, look: Iterator[Finding]) -> Iterator[Finding]:
    """A check that Redis may refuse."""
    try:
        yield from look
    except StoreUnavailable as error:
        yield Finding(what, "fail", str(error), _AT_REDIS)


def _jobs_and_workers(client: Client) -> Iterator[Finding]:
    jobs = _open_jobs(client)
    yield from _trouble(jobs)
    yield from _workers(client, [found.job for found in jobs])


def _site_app(chosen: Settings) -> Iterator[Finding]:
    """The site's own Celery app, if this command publishes through one."""
    from batchpipe.worker.checks import check_app
    from batchpipe.worker.setup import site_app

    app = site_app()
    if app is None:
        return
    found = check_app(app, chosen)
    if not found:
        yield Finding("celery", "ok", f"app {app.main}: its settings suit batchpipe")
    for wrong in found:
        yield Finding("celery", "fail" if wrong.fatal else "warn", f"{wrong.name}: {wrong.why}", wrong.line)


def _redis(client: Client, private: bool) -> Iterator[Finding]:
    facts = client.store.connection.server_facts()
    kind = "private" if private else "given by BATCHPIPE_REDIS_URL"
    version = facts["version"]
    if private and not client.durable:
        fix = "install redis-server (or valkey), or set BATCHPIPE_REDIS_URL"
        yield Finding("redis", "warn", "built-in stand-in: forgets all when it stops; for sandbox runs only", fix)
        return
    yield Finding("redis", "ok", f"{kind}, version {version or 'not told'}")
    if version and int(version.split(".")[0]) < 6:
        yield Finding("redis", "fail", f"version {version} is too old", "upgrade to Redis 6.2 or newer, or Valkey")
    try:
        client.store.connection.check_writing()
    except StoreUnavailable as error:
        yield Finding("redis", "fail", str(error), _AT_REDIS)
    if facts["appendonly"] == "no":
        fix = "CONFIG SET appendonly yes (and in redis.conf), with appendfsync everysec or always"
        yield Finding("redis", "warn", "no append-only file: a restart forgets what was paid for", fix)
    elif facts["appendonly"] == "yes":
        sync = facts["appendfsync"]
        note = "" if sync == "always" else "; a crash of Redis may lose its last second"
        yield Finding("redis", "ok", f"append-only file on, appendfsync {sync}{note}")
    policy = facts["maxmemory-policy"]
    if policy and policy != "noeviction":
        fix = "CONFIG SET maxmemory-policy noeviction (and in redis.conf)"
        yield Finding("redis", "fail", f"maxmemory-policy {policy}: Redis may throw records away", fix)


def _clock(client: Client) -> Iterator[Finding]:
    """Whether Redis' clock was set back."""
    clock = client.store.connection.clock()
    apart = clock.now - client.store.connection.host_time()
    if not clock.ahead and abs(apart) > CLOCK_SECONDS:
        differ = f"Redis' clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the one of this host"
        yield Finding("clock", "warn", differ, "set both by NTP: one of them is not the provider's time")
    if told := clock.words():
        fix = "nothing is lost; times that are shown, and runs of schedules, are ahead until its clock has caught up"
        yield Finding("clock", "warn", told, fix)


def _records(client: Client) -> Iterator[Finding]:
    """Whether Redis knows what this host has submitted to it."""
    from batchpipe.recover import lost_jobs

    if not (lost := lost_jobs(client.settings, client.store)):
        yield Finding("records", "ok", "the unfinished jobs of this host are known to this Redis")
        return
    jobs = "1 unfinished job of this host is" if len(lost) == 1 else f"{len(lost)} unfinished jobs of this host are"
    yield Finding("records", "fail", f"{jobs} unknown to this Redis", "batchpipe recover --dry-run")


def _account(client: Client | None, name: str) -> Iterator[Finding]:
    from batchpipe.pipeline.runner import NO_QUOTA
    from batchpipe.provider import Apis

    try:
        api = Apis(settings())(name)
        api.ping()
        yield Finding("account", "ok", f"{name}: the provider answers and takes the key of this process")
        pause = client.store.accounts.pause_of(name) if client is not None else None
        if client is not None and pause is not None and pause.code != NO_QUOTA and client.resume(name).paused:
            yield Finding("account", "ok", f"{name}: its pause is lifted")
        yield from _capabilities(name)
    except SettingsError as error:
        yield Finding("account", "fail", str(error), _NO_KEY if error.code == "no_api_key" else "correct this setting")
    except Paused as error:
        yield Finding(
            "account", "fail", f"{name}: the provider refuses the key: {error}", "check key, organization and quota"
        )
    except BatchpipeError as error:
        fix = _NO_SANDBOX if settings().sandbox and name == "default" else "check base_url and the network"
        yield Finding("account", "fail", f"{name}: {error}", fix)
    if client is not None and (pause := client.store.accounts.pause_of(name)) is not None:
        detail = f"{name}: paused for {pause.seconds:.0f} s more ({pause.code}): {pause.message}"
        yield Finding("account", "warn", detail, f"fix the cause; then: batchpipe resume {name}")


def _capabilities(name: str) -> Iterator[Finding]:
    """Declared properties of the provider that weaken our guarantees."""
    account = settings().account(name)
    if account.lists_batches and not account.echoes_metadata:
        detail = f"{name}: its list shows no metadata: the sweep cannot find strays, recover goes by file names"
        yield Finding("account", "warn", detail, "docs/guarantees.md")
    elif not account.lists_batches and account.resend_unanswered:
        detail = f"{name}: cannot list batches, and RESEND_UNANSWERED is on: rows may be paid twice"
        yield Finding("account", "warn", detail, "docs/guarantees.md")
    elif not account.lists_batches:
        detail = f"{name}: cannot list batches: a create call without an answer waits for you"
        yield Finding("account", "warn", detail, "docs/guarantees.md")


@dataclass(frozen=True)
class _Open:
    """A job that is not done, and its open records: its shards, or the job itself."""

    job: JobRecord
    records: list[JobRecord | ShardRecord]

    @property
    def problem(self) -> str | None:
        """Why it makes no progress just now, as `status` says it."""
        if self.job.state.ended:  # its trouble is over: only its receivers may not have been notified
            return telling(self.job)
        found = (record.trouble.message for record in self.records if record.trouble is not None)
        held = self.job.hold.message if self.job.hold is not None else None
        return held or next(found, None)


def _open_jobs(client: Client) -> list[_Open]:
    """The records that are due first, no more than can be read in a moment."""
    indexes: dict[str, list[int]] = {}
    for job_id, index in client.store.due.unfinished(MOST_RECORDS):
        indexes.setdefault(job_id, []).append(index)
    found = []
    for job_id, open_ones in list(indexes.items())[:MOST_JOBS]:
        shards = client.store.shards.at([(job_id, index) for index in open_ones if index != JOB])
        with suppress(JobNotFound):
            try:
                job = client.store.jobs.get(job_id)
                itself = [job] if JOB in open_ones else []
            except RecordUnreadable as error:
                problem = Problem(code=error.code, message=error.message)
                job = JobRecord(id=job_id, queue=client.settings.queue, trouble=problem)
                itself = [job]
            if job.closed:  # it ended between the two reads
                continue
            unfinished = (shard for shard in shards if shard is not None and shard.stage != Stage.COLLECTED)
            found.append(_Open(job, [*itself, *unfinished]))
    return found


def _trouble(jobs: list[_Open]) -> Iterator[Finding]:
    said = [f"{found.job.id}: {problem}" for found in jobs if (problem := found.problem)]
    if said:
        more = f"; and {len(said) - MOST_SAID} more" if len(said) > MOST_SAID else ""
        detail = f"{_jobs(len(said))} in trouble: {'; '.join(said[:MOST_SAID])}{more}"
        job = next(found.job.id for found in jobs if found.problem)
        yield Finding("jobs", "warn", detail, f"look closer: batchpipe status {job if len(said) == 1 else 'JOB'}")


def _workers(client: Client, jobs: list[JobRecord]) -> Iterator[Finding]:
    """Whether a worker listens on our queue, and on those of waiting jobs; a `run` brings a worker of its own."""
    from batchpipe.client.listeners import how_to_start
    from batchpipe.tasks.chain import broker_refusal, queues_of_workers

    if (said := broker_refusal()) is not None:
        yield Finding("broker", "fail", said, _AT_REDIS)
        return
    ours, waiting = client.settings.queue, _by_queue(client, jobs)
    others = [queue for queue in waiting if queue != ours]
    listening, answers = client.store.queues.listening(), None
    for queue in (ours, *others[:MOST_SAID]):
        found = listening.get(queue)
        if not found and answers is None and (answers := queues_of_workers()) is None:
            yield Finding("workers", "fail", "the broker does not answer", "check BATCHPIPE_BROKER_URL")
            return
        if found := found or (answers or {}).get(queue):
            yield Finding("workers", "ok", f"{len(found)} on queue {queue}: {', '.join(sorted(found))}")
            continue
        detail, here = f"no worker listens on queue {queue}", waiting.get(queue, [])
        if here:
            detail += f", and {_jobs(len(here))} {'waits' if len(here) == 1 else 'wait'}"
        yield Finding("workers", "fail" if here else "warn", detail, how_to_start(client.settings, queue, here))


def _by_queue(client: Client, jobs: list[JobRecord]) -> dict[str, list[JobRecord]]:
    """The jobs of each queue, except those of a `run` with a worker that may just be starting."""
    from batchpipe.client.listeners import STARTING_SECONDS

    began = client.store.now() - STARTING_SECONDS
    found: dict[str, list[JobRecord]] = {}
    for job in sorted(jobs, key=lambda job: (job.input_here, job.queue)):
        if not (job.input_here and job.created_at > began):
            found.setdefault(job.queue, []).append(job)
    return found


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
