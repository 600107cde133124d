"""doctor: check settings, Redis, account and workers, and say what to fix."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from batchpipe.cli.common import emit_json, out, quiet_libraries, settings
from batchpipe.cli.options import json_option
from batchpipe.errors import (
    BatchpipeError,
    Paused,
    SettingsError,
    StoreUnavailable,
)
from batchpipe.masking import one_line, without_secrets

if TYPE_CHECKING:
    from batchpipe.client.client import Client
    from batchpipe.client.health import OpenJob
    from batchpipe.config.settings import Settings
    from batchpipe.model.records import JobRecord

#: Clocks may differ by so much.
CLOCK_SECONDS = 300.0
#: A notification that has waited for so long is stuck.
STUCK_SECONDS = 300.0
#: How many jobs in trouble, and queues besides ours, are named.
MOST_SAID = 3
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
        yield Finding(
            "settings",
            "fail",
            str(error),
            "correct it where it is set: the environment, .env, or for a schedule batchpipe.toml",
        )
        return
    for line in chosen.unknown:
        name, _, why = line.partition(": ")
        yield Finding("settings", "warn", f"{name}: {why}", "correct it, or remove it")
    yield Finding("settings", "ok", f"home {chosen.home}, queue {chosen.queue}, prefix {chosen.prefix}")
    private = chosen.redis_url is None
    client: Client | None = None
    try:
        client = Client(chosen)
        client.ping()
    except BatchpipeError as error:
        fix = "install redis-server, or set BATCHPIPE_REDIS_URL" if private else "check BATCHPIPE_REDIS_URL"
        yield Finding("redis", "fail", str(error), fix)
        client = None
    if client is not None:
        yield from _unless_refused("redis", _redis(client, private))
        yield from _unless_refused("clock", _clock(client))
        yield from _unless_refused("records", _records(client))
        yield from _unless_refused("told", _notifications(client))
    yield from _unless_refused("account", _account(client, account))
    if client is not None:
        yield from _unless_refused("webhooks", _webhooks(client, account.lower()))
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
    jobs = client.health().open_jobs()
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
    facts = client.health().server()
    kind = "private" if private else "given by BATCHPIPE_REDIS_URL"
    version = facts["version"]
    if private and not client.durable:
        fix = "install redis-server (or valkey), or set BATCHPIPE_REDIS_URL"
        yield Finding("redis", "warn", "built-in stand-in: forgets all when it stops; for sandbox runs only", fix)
        return
    yield Finding("redis", "ok", f"{kind}, version {version or 'unknown'}")
    if version and int(version.split(".")[0]) < 6:
        yield Finding("redis", "fail", f"version {version} is too old", "upgrade to Redis 6.2 or newer, or Valkey")
    try:
        client.health().check_writing()
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
    apart = client.health().seconds_apart()
    if abs(apart) > CLOCK_SECONDS:
        differ = f"Redis' clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the one of this host"
        yield Finding("clock", "warn", differ, "set both by NTP: one of them is not the provider's time")
    if warning := client.clock().words():
        fix = "nothing is lost; times that are shown, and runs of schedules, are ahead until its clock has caught up"
        yield Finding("clock", "warn", warning, fix)


def _records(client: Client) -> Iterator[Finding]:
    """Whether Redis knows what this host has submitted to it."""
    if not (lost := client.health().lost_jobs()):
        yield Finding("records", "ok", "the unfinished jobs of this host are known to this Redis")
        return
    jobs = "1 unfinished job of this host is" if len(lost) == 1 else f"{len(lost)} unfinished jobs of this host are"
    yield Finding("records", "fail", f"{jobs} unknown to this Redis", "batchpipe recover --dry-run")


def _notifications(client: Client) -> Iterator[Finding]:
    """Whether notifications are stuck."""
    told = client.notifications()
    found = told.counts()
    waiting, given_up = found
    for setting, name in told.unknown_targets():
        detail = f"{setting} names {name!r}, and there is no such target in the settings here"
        yield Finding(
            "told", "warn", detail, f"correct it, or set BATCHPIPE_TARGETS__{name.upper()}__URL; docs/notifications.md"
        )
    if stuck := told.stuck(STUCK_SECONDS):
        why = f"{stuck[0].id} to {without_secrets(stuck[0].target)}: {one_line(told.why(stuck[0]))[:200]}"
        detail = f"notifications wait for more than {_ago(STUCK_SECONDS)}: {len(stuck)}; {why}"
        yield Finding("told", "warn", detail, "batchpipe notifications lists them and says why")
    if found.full:
        detail = f"{waiting} notifications wait, so no further ones are recorded, nor told to anybody"
        yield Finding("told", "fail", detail, "batchpipe notifications says why they wait")
    if given_up:
        detail = f"{given_up} notifications were given up, {waiting} are tried again"
        yield Finding("told", "warn", detail, "batchpipe notifications --dead, then --resend all")


def _account(client: Client | None, name: str) -> Iterator[Finding]:
    from batchpipe.provider import Apis

    try:
        api = Apis(settings())(name)
        api.ping()
        yield Finding("account", "ok", f"{name}: the provider answers and takes the key of this process")
        if client is not None and client.key_works(name):
            yield Finding("account", "ok", f"{name}: no longer paused")
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
    if client is not None and (pause := client.pause_of(name)) is not None:
        detail = f"{name}: paused for {pause.seconds:.0f} s more ({pause.code}): {pause.message}"
        yield Finding("account", "warn", detail, f"fix the cause; then: batchpipe resume {name}")


def _webhooks(client: Client, name: str) -> Iterator[Finding]:
    """Whether webhooks are received for this account; nothing where nobody has set them up."""
    try:
        secrets = settings().webhook_secrets().get(name, ())
    except SettingsError as error:
        yield Finding("webhooks", "fail", str(error), "docs/webhooks.md")
        return
    state = client.webhook_state(name)
    if state.seen is None:
        if secrets:
            detail = f"{name}: a secret is set, and none has come yet"
            yield Finding(
                "webhooks", "warn", detail, "is a receiver reached at the URL that the provider has? docs/webhooks.md"
            )
        return
    ago = f"{name}: the last one came {_ago(client.now() - state.seen)} ago"
    if state.trusted:
        yield Finding("webhooks", "ok", f"{ago}; ends are awaited from them, looks are a safety net")
    elif state.ours is None:
        fix = "are secret and key of the same project at the provider? docs/webhooks.md"
        yield Finding("webhooks", "warn", f"{ago}, and none was about a batch of ours", fix)
    else:
        detail = f"{ago}, the last about a batch of ours {_ago(client.now() - state.ours)} ago; ends are looked for"
        yield Finding("webhooks", "ok", detail)


def _ago(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7_200
        else f"{seconds / 3_600:.0f} h"
    )


def _capabilities(name: str) -> Iterator[Finding]:
    """Declared properties of the provider that weaken our guarantees."""
    account = settings().account(name)
    if account.lists_batches and not account.echoes_metadata:
        detail = f"{name}: its list shows no metadata: the sweep cannot find orphans, recover goes by file names"
        yield Finding("account", "warn", detail, "docs/guarantees.md")
    elif not account.lists_batches and account.resend_unanswered:
        detail = f"{name}: cannot list batches, and RESEND_UNANSWERED is on: rows may be paid twice"
        yield Finding("account", "warn", detail, "docs/guarantees.md")
    elif not account.lists_batches:
        detail = f"{name}: cannot list batches: a create call without an answer waits for you"
        yield Finding("account", "warn", detail, "docs/guarantees.md")

    yield from _unknown_server(name)


def _unknown_server(name: str) -> Iterator[Finding]:
    """A server of which nobody has said what it can do: neither a profile nor a probe."""
    chosen = settings()
    account = chosen.account(name)
    told = account.profile is not None or account.kind == "azure" or chosen.is_openai(name) or chosen.is_sandbox(name)
    if not told and not account.was_probed():
        detail = f"{name}: no profile is set for this server, and it was never probed: it is taken to be like OpenAI's"
        yield Finding(
            "account", "warn", detail, f"batchpipe probe {name} --write .env: a dozen tiny rows; docs/providers.md"
        )


def _trouble(jobs: list[OpenJob]) -> Iterator[Finding]:
    said = [f"{found.job.id}: {problem}" for found in jobs if (problem := found.problem)]
    if said:
        more = f"; and {len(said) - MOST_SAID} more" if len(said) > MOST_SAID else ""
        detail = f"{_jobs(len(said))} in trouble: {'; '.join(said[:MOST_SAID])}{more}"
        job = next(found.job.id for found in jobs if found.problem)
        yield Finding("jobs", "warn", detail, f"details: batchpipe status {job if len(said) == 1 else 'JOB'}")


def _workers(client: Client, jobs: list[JobRecord]) -> Iterator[Finding]:
    """Whether a worker listens on our queue, and on those of waiting jobs; a `run` brings a worker of its own."""
    from batchpipe.tasks.inspection import broker_refusal

    if (said := broker_refusal()) is not None:
        yield Finding("broker", "fail", said, _AT_REDIS)
        return
    health, ours = client.health(), client.settings.queue
    waiting = health.by_queue(jobs)
    others = [queue for queue in waiting if queue != ours]
    for queue, found in health.workers([ours, *others[:MOST_SAID]]):
        yield _listeners(client, queue, found, waiting.get(queue, []))


def _listeners(client: Client, queue: str, workers: Collection[str] | None, waiting: list[JobRecord]) -> Finding:
    from batchpipe.client.listeners import how_to_start

    if workers is None:
        return Finding("workers", "fail", "the broker does not answer", "check BATCHPIPE_BROKER_URL")
    if workers:
        return Finding("workers", "ok", f"{len(workers)} on queue {queue}: {', '.join(sorted(workers))}")
    detail = f"no worker listens on queue {queue}"
    if waiting:
        detail += f", and {_jobs(len(waiting))} {'waits' if len(waiting) == 1 else 'wait'}"
    return Finding("workers", "fail" if waiting else "warn", detail, how_to_start(client.settings, queue, waiting))


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
