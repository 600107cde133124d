"""What is told to people and programs: that a job ended, that it needs somebody, that an account is paused. Pure.

The bodies name no prompt, answer or key. They are JSON objects as Standard Webhooks has them (``type``, ``timestamp``,
``data``), a text for Slack, and a subject and text for mail.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from batchpipe.errors import CREATE_UNKNOWN, WORKSPACE_GONE, shortened
from batchpipe.model.records import JobRecord, Problem
from batchpipe.model.retry import RetryPolicy
from batchpipe.model.stalls import LATE, SILENT
from batchpipe.model.views import job_view

#: Tries go on for a day; the first pauses are short, for receivers that are restarted.
DELIVERY = RetryPolicy(first=5.0, longest=7_200.0, factor=3.0, jitter=0.1)
GIVE_UP_SECONDS = 86_400.0
#: The same trouble of one job, or pause of one account, is told once in so many seconds.
TOLD_AGAIN_SECONDS = 21_600.0
#: Bytes of a key that signs, at least.
SHORTEST_KEY = 16
#: Bytes of a body.
MOST_BODY = 16_384

#: Events of a job's log that need somebody. Each has a ``message``: that is what people read.
TROUBLE = frozenset(
    {"cancelled_elsewhere", "overdue", LATE, SILENT, WORKSPACE_GONE, CREATE_UNKNOWN, "not_notified"},
)


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of news for one target. ``id`` is the same however often it is recorded or sent."""

    id: str
    once: str = ""  #: the same for all news of which one is told in ``TOLD_AGAIN_SECONDS``; not stored
    type: str
    target: str  #: a name in the settings, or a URL
    account: str
    job: str = ""
    body: str = ""  #: JSON
    created_at: float = 0.0
    due_at: float = 0.0  #: the next try
    tries: int = 0
    error: str = ""  #: why the last try failed
    dead: bool = False  #: not tried any more


def news_id(kind: str, *about: str) -> str:
    """An id that the same news always has, for receivers that are told twice."""
    return f"msg_{hashlib.sha256('/'.join((kind, *about)).encode()).hexdigest()[:32]}"


def _document(kind: str, at: float, data: Mapping[str, Any]) -> str:
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return orjson.dumps({"type": kind, "timestamp": when, "data": data}).decode()


def job_ended(job: JobRecord, target: str, now: float) -> Notification:
    """A job has ended, however: ``data`` is the job as ``status --json`` shows it, without shards."""
    data = job_view(job)
    body = _document("job.ended", now, data)
    if len(body) > MOST_BODY:  # a user's tags may be long
        body = _document("job.ended", now, {**data, "tags": {}})
    ended = f"{job.ended_at or 0:.3f}"  # a job that was landed again ends again
    return Notification(
        id=news_id("job.ended", job.id, ended, target),
        type="job.ended",
        target=target,
        account=job.account,
        job=job.id,
        body=body,
    )


def job_trouble(job: JobRecord, target: str, event: str, message: str, now: float) -> Notification:
    """A job needs somebody: ``data`` has ``id``, ``name``, ``account``, ``code`` (the event) and ``message``."""
    message = shortened(message, 1_000)
    data = {"id": job.id, "name": job.name, "account": job.account, "code": event, "message": message}
    return Notification(
        id=news_id("job.trouble", job.id, event, f"{now:.3f}", target),
        once=news_id("job.trouble", job.id, event, target),
        type="job.trouble",
        target=target,
        account=job.account,
        job=job.id,
        body=_document("job.trouble", now, data),
    )


def account_paused(account: str, target: str, problem: Problem, seconds: float, now: float) -> Notification:
    """An account is paused: ``data`` has ``account``, ``code``, ``message`` and ``seconds``."""
    code, message = problem.code, shortened(problem.message, 1_000)
    data = {"account": account, "code": code, "message": message, "seconds": round(seconds)}
    return Notification(
        id=news_id("account.paused", account, code, f"{now:.3f}", target),
        once=news_id("account.paused", account, code, target),
        type="account.paused",
        target=target,
        account=account,
        body=_document("account.paused", now, data),
    )


def signing_key(secret: str) -> bytes:
    """Raises ValueError for a secret that is not ``whsec_`` and base64, or so short that it could be guessed."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith("whsec_") or len(key) < SHORTEST_KEY:
        raise ValueError(f"is no secret: write whsec_ and at least {SHORTEST_KEY} bytes in base64")
    return key


def signed_headers(note: Notification, key: bytes, now: float) -> dict[str, str]:
    """The headers of Standard Webhooks: ``v1,`` and the HMAC-SHA256 of id, time and body."""
    stamp = str(int(now))
    digest = hmac.new(key, f"{note.id}.{stamp}.{note.body}".encode(), hashlib.sha256).digest()
    return {
        "webhook-id": note.id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def in_words(note: Notification) -> tuple[str, str]:
    """A subject and a text for people."""
    data = orjson.loads(note.body)["data"]
    if note.type == "account.paused":
        subject = f"batchpipe: account {data['account']} is paused ({data['code']})"
        return subject, f"{data['message']}\n\nFix the cause, then: batchpipe resume {data['account']}"
    name = data.get("name") or data.get("id") or note.job
    if note.type == "job.trouble":
        subject = f"batchpipe: job {name} needs you ({data['code']})"
        return subject, f"{data['message']}\n\nDetails: batchpipe status {data['id']}"
    rows = data.get("rows") or {}
    counts = ", ".join(f"{rows[key]:,} {key}" for key in ("ok", "failed", "missing") if rows.get(key))
    subject = f"batchpipe: job {name} {data['state']}"
    error = data.get("error")
    lines = [
        f"{counts or 'no rows'} of {rows['total']:,}" if rows.get("total") else counts or "no rows",
        *([f"{error['code']}: {error['message']}"] if error else []),
        f"results: {data.get('output_file') or data.get('output') or '-'}",
    ]
    return subject, "\n".join(lines)


def slack_body(note: Notification) -> bytes:
    """What Slack's incoming webhooks take."""
    subject, text = in_words(note)
    escaped = f"*{subject}*\n{text}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return orjson.dumps({"text": escaped})
