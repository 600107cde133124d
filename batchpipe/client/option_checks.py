"""Checks every option of ``submit`` before anything is recorded.

What no worker could ever do is refused here, in one line that names the option. Lengths are limited, because the
options are stored in Redis and appear in logs and on pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import orjson

from batchpipe.config.account import Account
from batchpipe.config.environment import PREFIX
from batchpipe.config.settings import Settings
from batchpipe.errors import InvalidInput, shortened
from batchpipe.masking import has_secret_before_host, without_secrets
from batchpipe.model.records import JobRecord, window_seconds
from batchpipe.storage import local_path
from batchpipe.storage.backends import check_scheme, scheme
from batchpipe.storage.outgoing import check_host

#: The provider accepts 16 pairs; three are ours.
MAX_METADATA = 13
#: Each round has files of its own that merge reads together.
MAX_ATTEMPTS = 100
#: Of a job, either way.
MAX_PRIORITY = 100
#: Far beyond what any provider accepts, but still a number that Redis, JSON and a file system can hold.
MAX_ROWS, MAX_BYTES = 10_000_000, 1_000_000_000_000
#: Characters in texts that people write: a name, an idempotency key, a path or URL.
MAX_NAME, MAX_KEY, MAX_PLACE = 300, 512, 4_096
#: Targets of notifications.
MAX_TARGETS = 10
#: Bytes of JSON.
MAX_JSON = {"tags": 4_096, "extra": 16_384, "on_done": 16_384}
#: Bytes of one part of a path, in every common file system.
_MAX_PART = 255

_RESERVED = frozenset({"endpoint", "completion_window", "input_file_id", "metadata"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: The name is a Redis list or an AMQP queue; commas separate the queues of a worker.
_QUEUE = re.compile(r"[!-+\--~]{1,200}")
_ACCOUNT = re.compile(r"[a-z0-9_.-]{1,64}")
_WINDOW = re.compile(r"[1-9]\d{0,4}[smhd]")
_ENDPOINT = re.compile(r"/[!-~]{1,199}")
_TASK = re.compile(r"[!-~]{1,255}")
#: Schemes that can only be read.
_READ_ONLY = frozenset({"http", "https", "data", "github", "git"})


def check_options(job: JobRecord) -> None:
    """Raises InvalidInput that names the option."""
    for name in ("endpoint", "completion_window", "account", "queue"):
        if not isinstance(getattr(job, name), str):
            raise InvalidInput(f"must be text, not {type(getattr(job, name)).__name__}", field=name)
    _check_words(job)
    for name, most in (("max_rows", MAX_ROWS), ("max_bytes", MAX_BYTES), ("attempts", MAX_ATTEMPTS)):
        if getattr(job, name) < 1:
            raise InvalidInput("must be at least 1", field=name)
        if getattr(job, name) > most:
            raise InvalidInput(f"must be at most {most}", field=name)
    if abs(job.priority) > MAX_PRIORITY:
        raise InvalidInput(f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}", field="priority")
    _check_metadata(job.metadata)
    if taken := sorted(_RESERVED & job.extra.keys()):
        raise InvalidInput(f"{taken[0]} has an option of its own", field="extra")
    for name in ("extra", "tags"):
        _check_json(getattr(job, name), name)


def check_window(job: JobRecord, account: Account) -> None:
    """Raises InvalidInput for a completion window that the account's provider does not take, as its settings say."""
    window, name = job.completion_window, job.account.upper()
    shortest, longest = account.shortest_window, account.longest_window
    if shortest is not None and window_seconds(window) < window_seconds(shortest):
        refused, most, setting = "shorter", f"at least {shortest}", "SHORTEST_WINDOW"
    elif longest is not None and window_seconds(window) > window_seconds(longest):
        refused, most, setting = "longer", f"at most {longest}", "LONGEST_WINDOW"
    else:
        return
    only = f"only {longest}" if shortest == longest else most
    raise InvalidInput(
        f"{window} is {refused} than the provider of account {job.account} takes: {only} "
        f"({PREFIX}ACCOUNTS__{name}__{setting}{f', of its profile {account.profile}' if account.profile else ''})",
        field="completion_window",
    )


def check_targets(job: JobRecord, settings: Settings) -> None:
    """Raises InvalidInput for a target of notifications that cannot be told. A name that the settings of this process
    do not have may be in those of the workers, unless this process has targets.
    """
    if len(job.notify) > MAX_TARGETS:
        raise InvalidInput(f"has {len(job.notify)} targets; at most {MAX_TARGETS}", field="notify")
    for target in job.notify:
        if "://" in target:
            if len(target) > 2_000 or without_secrets(target) != target or has_secret_before_host(target):
                message = (
                    f"{without_secrets(target)[:200]} has a secret in it, or is too long; name a target of the settings"
                )
                raise InvalidInput(message, field="notify")
            check_host(target, settings.allowed_hosts)
        elif not _ACCOUNT.fullmatch(target.lower()):
            raise InvalidInput(f"{_quoted(target)} is neither a URL nor the name of a target", field="notify")
        elif settings.targets and target.lower() not in settings.targets:
            known = ", ".join(sorted(settings.targets))
            raise InvalidInput(
                f"there is no target {_quoted(target)} in the settings; known are: {known}", field="notify"
            )


def check_signature(plain: Mapping[str, Any]) -> None:
    """Raises InvalidInput for an ``on_done`` that no worker could send."""
    if not isinstance(plain.get("task"), str) or not _TASK.fullmatch(plain["task"]):
        raise InvalidInput("is not a Celery signature: it names no task", field="on_done")
    for name, kind in (("args", list), ("kwargs", dict), ("options", dict)):
        if not isinstance(plain.get(name) or kind(), kind):
            raise InvalidInput(f"is not a Celery signature: its {name} is no {kind.__name__}", field="on_done")
    queue = (plain.get("options") or {}).get("queue")
    if queue is not None and not (isinstance(queue, str) and _QUEUE.fullmatch(queue)):
        raise InvalidInput(f"its queue {_quoted(str(queue))} is not the name of a queue", field="on_done")
    _check_json(plain, "on_done")


def check_place(place: str, field: str) -> None:
    """Raises InvalidInput for a path or URL that no worker can open, or that holds a secret."""
    if not place.strip():
        raise InvalidInput("must not be empty", field=field)
    if len(place) > MAX_PLACE:
        raise InvalidInput(f"has {len(place)} characters; at most {MAX_PLACE}", field=field)
    try:
        place.encode()
    except UnicodeEncodeError:
        raise InvalidInput("is not Unicode text: rename the file or folder", field=field) from None
    if _CONTROL.search(place):
        raise InvalidInput(f"{_quoted(place)} has control characters in it", field=field)
    path = local_path(place)
    if path is not None and (long := [part for part in path.split("/") if len(part.encode()) > _MAX_PART]):
        raise InvalidInput(f"{_quoted(long[0])} is too long for the name of a file", field=field)
    if has_secret_before_host(place):
        message = f"{place}: has a password or token in it; give that to the storage by its own settings or environment"
        raise InvalidInput(message, field=field)


def check_output(place: str) -> None:
    """Raises InvalidInput for an output that cannot be written to, as far as this host can tell; SettingsError if a
    package for its storage is missing.
    """
    path = local_path(place)
    if path is None:
        if scheme(place) in _READ_ONLY:
            message = f"{place}: {scheme(place)}:// can only be read; give a folder, or a bucket's URL"
            raise InvalidInput(message, field="output")
        if without_secrets(place) != place:  # it appears in records, in job.json and on pages
            message = f"{place} has a secret in it; give that to the storage by its own settings or environment"
            raise InvalidInput(message, field="output")
        try:
            check_scheme(place)
        except InvalidInput as error:
            raise InvalidInput(error.message, field="output", code=error.code) from None
        return
    above = path
    while above and not os.path.lexists(above) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    if os.path.exists(above) and not os.path.isdir(above):
        hint = "is a file" if above == path else f"leads through {above}, which is a file"
        raise InvalidInput(f"{path}: {hint}; give a folder for the results", field="output")


def _check_words(job: JobRecord) -> None:
    def refuse(field: str, message: str) -> None:
        raise InvalidInput(f"{_quoted(getattr(job, field))} {message}", field=field)

    if job.endpoint and not job.endpoint.startswith("/"):
        refuse("endpoint", "is not a path such as /v1/chat/completions")
    if job.endpoint and not _ENDPOINT.fullmatch(job.endpoint):
        refuse("endpoint", "is no path of at most 200 plain characters")
    if not job.completion_window:
        raise InvalidInput("must not be empty", field="completion_window")
    if not _WINDOW.fullmatch(job.completion_window):
        refuse("completion_window", "is no time such as 24h or 7d")
    if not job.account:
        raise InvalidInput("must not be empty", field="account")
    if not _ACCOUNT.fullmatch(job.account):
        refuse("account", "is no name of an account: letters, digits, dots, dashes and underscores, at most 64")
    if not _QUEUE.fullmatch(job.queue):
        refuse("queue", "is no name of a queue: at most 200 plain characters, no spaces and no commas")
    for field, most in (("name", MAX_NAME), ("key", MAX_KEY)):
        value = getattr(job, field)
        if value is None:
            continue
        if len(value) > most:
            raise InvalidInput(f"has {len(value)} characters; at most {most}", field=field)
        if _CONTROL.search(value):
            refuse(field, "has control characters in it")


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if len(metadata) > MAX_METADATA:
        raise InvalidInput(f"has {len(metadata)} pairs; at most {MAX_METADATA} (three more are ours)", field="metadata")
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidInput(f"{name!r}: keys and values must be strings", field="metadata")
        if not name:
            raise InvalidInput("has a key that is empty", field="metadata")
        if name.startswith("batchpipe_"):
            raise InvalidInput(f"{name!r}: names that begin with batchpipe_ are ours", field="metadata")
        if len(name) > 64 or len(value) > 512:
            raise InvalidInput(f"{name[:64]!r}: at most 64 characters for a key, 512 for a value", field="metadata")


def _check_json(value: Any, field: str) -> None:
    try:
        size = len(orjson.dumps(value))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"is not JSON: {error}", field=field) from None
    if size > MAX_JSON[field]:
        raise InvalidInput(f"has {size} bytes as JSON; at most {MAX_JSON[field]}", field=field)


def _quoted(text: str) -> str:
    """A wrong value as shown in a message: short, and on one line."""
    return repr(shortened(text, 80))
