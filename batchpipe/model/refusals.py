"""Whether a refusal of the provider concerns the request itself, or the moment or the account; those are waited for.

This is decided by the HTTP status, the structured fields of the error, and which call it was: a tenant may write
anything into a row or its metadata, and an error may quote it. Words can only make this one job wait, if a provider
sends no code: by the beginning of the whole message, which quoted text cannot change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from batchpipe.errors import FILE_NOT_FOUND, Refused
from batchpipe.model.records import JobRecord, Move, Problem, ShardRecord, Stage, window_seconds
from batchpipe.model.retry import UNSEEN, RetryPolicy

#: The longest that a job that is being cancelled waits for a batch or file that its key does not see.
CANCELLED_PATIENCE_SECONDS = 3_600.0

#: Codes of trouble that a person can end: after that, `batchpipe resume ACCOUNT` looks again at once.
FOR_A_PERSON = frozenset({"batch_unseen", "file_quota", "account_full", "file_not_ready", FILE_NOT_FOUND})

#: Codes with which a shard is abandoned though its batch may have results.
LANDABLE = frozenset(
    {
        "batch_gone",
        "batch_stuck",
        "file_gone",
        "output_file_missing",
        "answers_missing",
        "file_damaged",
        "answer_unreadable",
    }
)

#: Codes, without case and punctuation, with which providers say that the account has no room.
_NO_ROOM = frozenset(
    {
        *("quotaexceeded", "filequotaexceeded", "storagequotaexceeded", "resourcequotaexceeded", "resourceexhausted"),
        *("toomanyfiles", "filelimitexceeded", "filelimitreached", "filecountexceeded", "maxfilesreached"),
        *("storagelimitexceeded", "storagelimitreached", "storagefull", "insufficientstorage", "limitexceeded"),
    }
)
#: Codes with which they say that too many batches are unfinished.
_BATCH_LIMIT = frozenset(
    {
        *("batchlimitexceeded", "batchlimitreached", "batchesexceeded", "batchquotaexceeded", "toomanybatches"),
        *("maxbatchesexceeded", "maxbatchesreached", "activebatchlimitexceeded", "concurrentbatchlimitexceeded"),
        *("toomanyactivebatches", "toomanyconcurrentbatches", "pendingbatchlimitexceeded", "toomanypendingbatches"),
    }
)
#: Codes with which they say that the input file cannot be used yet, or is not seen.
_FILE_STATE = frozenset(
    {
        *("filenotfound", "inputfilenotfound", "filenotready", "filenotprocessed", "filenotinprocessedstate"),
        *("invalidfilestate", "invalidfilestatus", "fileprocessing", "filepending", "gone"),
    }
)
#: A file in one of these states needs more time.
_UNFINISHED = frozenset({"pending", "uploaded", "uploading", "notrunning", "running", "processing", "importing"})
#: Statuses that concern the body of an upload, no matter who sends it: too large, or of a kind that is not accepted.
_BODY = frozenset({413, 414, 415})


#: How the messages of the refusals begin that come without a code.
_BATCH_LIMIT_WORDS = re.compile(
    r"(?:(?:the|your|you|have|account|organi[sz]ation|project|resource|reached|exceeded|maximum|max)\s+){0,6}"
    r"(?:too many|(?:limit|number|quota)\s+(?:of|for|on))\s+(?:[\d.,_']+\s+)?(?:[\w-]+\s+){0,2}?batch(?:es|\s+jobs)\b"
    r"(?!\s*(?:/|(?:[\w-]+\s+){0,2}(?:per|every|an|each)\s+(?:sec|min|hour|day)))",
    re.IGNORECASE,
)
_TOKEN_LIMIT_WORDS = re.compile(r"enqueued token limit reached\b", re.IGNORECASE)
_NO_FILE_WORDS = re.compile(r"cannot find file\b", re.IGNORECASE)


def says_token_limit(message: str | None) -> bool:
    """Whether a provider's message says that its queue is full."""
    return _TOKEN_LIMIT_WORDS.match(message or "") is not None


def says_batch_limit(codes: Iterable[str | None], message: str | None) -> bool:
    """Whether a refusal says that too many batches of the account are unfinished, by its code or its words."""
    if any(_plain(code) in _BATCH_LIMIT for code in codes):
        return True
    return _BATCH_LIMIT_WORDS.match(message or "") is not None


def says_no_file(message: str | None) -> bool:
    """Whether a provider's message says that it does not find a file."""
    return _NO_FILE_WORDS.match(message or "") is not None


def _plain(code: str | None) -> str:
    return re.sub(r"[^a-z]", "", (code or "").lower())


def is_no_room(error: Refused) -> bool:
    """The account may not hold another file, batch or byte just now."""
    return _plain(error.code) in _NO_ROOM or error.status == 507


def upload_may_pass(error: Refused) -> bool:
    """Whether a refused upload concerns the account or the moment: the rows have not been read by then.

    A refusal is final if it names the body: its size or kind, or the parameter that it came in.
    """
    if is_no_room(error):
        return True
    return error.status not in _BODY and error.param in (None, "", "id")


def is_about_input_file(error: Refused, file_id: str | None) -> bool:
    """Whether a refused create concerns the state of its input file, which passes, and not the request.

    A create names nothing in its path, so a 404 can only be about the file.
    """
    if error.status == 404 or error.param == "input_file_id" or _plain(error.code) in _FILE_STATE:
        return True
    if error.param:
        return False
    if says_no_file(error.message) or (file_id and file_id in error.message):
        return True
    return "not in the state" in error.message.lower()


def is_unfinished(status: str | None) -> bool:
    """Whether the provider still works on a file with this status."""
    return _plain(status) in _UNFINISHED


def wait_out(
    shard: ShardRecord, stage: Stage, problem: Problem, *, now: float, longest: float, policy: RetryPolicy, advice: str
) -> Move:
    """Retry later, with the pauses of ``policy``, until ``longest`` seconds after the first refusal.

    After that, raises Refused with the same code and what to do.
    """
    since = shard.refused_at if shard.refused_at is not None else now
    left = since + longest - now
    if left <= 0:
        message = f"{problem.message} (waited for {in_words(longest)}; {advice}; then: batchpipe retry {shard.job})"
        raise Refused(message, code=problem.code)
    after = min(policy.pause(shard.backoff), left)
    said = Problem(code=problem.code, message=f"{problem.message} (tried again for {in_words(left)} more; {advice})")
    changes: dict[str, Any] = {"refused_at": since, "backoff": shard.backoff + 1, "trouble": said}
    events = [] if shard.refused_at is not None else [("refused_for_now", {"message": said.message})]
    return Move(stage=stage, after=after, changes=changes, events=events)


def believed_at(job: JobRecord, shard: ShardRecord, born: float | None, *, now: float, patience: float) -> float:
    """When to believe a 404 about something created at ``born``: until then the key may be the cause, as keys change.

    Not before the end of the window, nor ``patience`` seconds after the first 404. A cancelled job waits an hour.
    """
    since = shard.unseen_at if shard.unseen_at is not None else now
    if job.cancel:
        return since + min(patience, CANCELLED_PATIENCE_SECONDS)
    return max((born or since) + window_seconds(job.completion_window), since + patience)


def unseen(
    job: JobRecord, shard: ShardRecord, stage: Stage, what: str, error: Refused, *, now: float, ends: float
) -> Move:
    """The account's key does not see ``what``: reported the first time, looked for with pauses that double."""
    since = shard.unseen_at if shard.unseen_at is not None else now
    after = UNSEEN.pause(shard.unfound)
    message = (
        f"the key of account {job.account!r} does not see {what} ({error.message}): was the key, the project or the "
        f"base_url changed? Correct it, then: batchpipe resume {job.account}; it is looked for until it is seen, "
        f"for {in_words(max(ends - now, 0.0))} at least"
    )
    problem = Problem(code="batch_unseen", message=message)
    changes: dict[str, Any] = {"unseen_at": since, "unfound": shard.unfound + 1, "trouble": problem}
    events = [] if shard.unseen_at is not None else [("batch_unseen", {"message": message})]
    return Move(stage=stage, after=after, changes=changes, events=events)


def in_words(seconds: float) -> str:
    """A span of time for people: 40 s, 12 min, 6 h, 3 d."""
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
