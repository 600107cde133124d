"""doctor: check settings, Redis, account and workers, and say what to fix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from batchpipe.cli.house import emit_json, json_option, quiet_libraries, settings
from batchpipe.errors import BatchpipeError, Paused, SettingsError

if TYPE_CHECKING:
    from batchpipe.client import Client
    from batchpipe.settings import Settings


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ok, warn or fail; ``fix`` says what to do."""

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
            click.echo(f"{finding.verdict:<5} {finding.what:<10} {finding.detail}")
            if finding.fix:
                click.echo(f"{'':<17}-> {finding.fix}")
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    return int(any(finding.verdict == "fail" for finding in findings))


def _look(account: str) -> Iterator[Finding]:
    from batchpipe.client import Client

    quiet_libraries()
    try:
        chosen = settings()
    except SettingsError as error:
        yield Finding("settings", "fail", str(error), "mend this variable in the environment or in .env")
        return
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
        yield from _redis(client, private)
    yield from _account(client, account)
    yield from _site_app(chosen)
    if client is not None:
        yield from _workers(client)


def _site_app(chosen: Settings) -> Iterator[Finding]:
    """The site's own Celery app, where this command publishes through one."""
    from batchpipe.celery_site import check_app, site_app

    app = site_app()
    if app is None:
        return
    found = check_app(app, chosen)
    if not found:
        yield Finding("celery", "ok", f"app {app.main}: its settings suit batchpipe")
    for wrong in found:
        yield Finding("celery", "fail" if wrong.fatal else "warn", f"{wrong.name}: {wrong.why}", wrong.line)


def _redis(client: Client, private: bool) -> Iterator[Finding]:
    facts = client.store.server_facts()
    kind = "private" if private else "given by BATCHPIPE_REDIS_URL"
    version = facts["version"]
    if private and not client.durable:
        fix = "install redis-server (or valkey), or set BATCHPIPE_REDIS_URL"
        yield Finding("redis", "warn", "built-in stand-in: forgets all when it stops; for sandbox runs only", fix)
        return
    yield Finding("redis", "ok", f"{kind}, version {version or 'not told'}")
    if version and int(version.split(".")[0]) < 6:
        yield Finding("redis", "fail", f"version {version} is too old", "upgrade to Redis 6.2 or newer, or Valkey")
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


def _account(client: Client | None, name: str) -> Iterator[Finding]:
    from batchpipe.openai_api import Apis
    from batchpipe.turns import NO_QUOTA

    try:
        api = Apis(settings())(name)
        api.ping()
        yield Finding("account", "ok", f"{name}: the provider answers and takes the key")
        pause = client.store.paused(name) if client is not None else None
        if client is not None and pause is not None and pause.code != NO_QUOTA and client.resume(name)[0]:
            yield Finding("account", "ok", f"{name}: its pause is lifted")
        yield from _capabilities(name)
    except SettingsError as error:
        yield Finding("account", "fail", str(error), "a worker needs the key; a process that only submits does not")
    except Paused as error:
        yield Finding(
            "account", "fail", f"{name}: the provider refuses the key: {error}", "check key, organization and quota"
        )
    except BatchpipeError as error:
        yield Finding("account", "fail", f"{name}: {error}", "check base_url and the network")
    if client is not None and (pause := client.store.paused(name)) is not None:
        detail = f"{name}: paused for {pause.seconds:.0f} s more ({pause.code}): {pause.message}"
        yield Finding("account", "warn", detail, f"mend the cause; then: batchpipe resume {name}")


def _capabilities(name: str) -> Iterator[Finding]:
    """What is declared of the provider, where it weakens what we promise."""
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


def _workers(client: Client) -> Iterator[Finding]:
    from batchpipe.tasks import workers_of_queue

    found = workers_of_queue(client.settings.queue)
    if found is None:
        yield Finding("workers", "fail", "the broker does not answer", "check BATCHPIPE_BROKER_URL")
    elif not found:
        fix = "start one: batchpipe worker (`batchpipe run` brings its own)"
        yield Finding("workers", "warn", f"no worker listens on queue {client.settings.queue}", fix)
    else:
        yield Finding("workers", "ok", f"{len(found)} on queue {client.settings.queue}: {', '.join(sorted(found))}")
