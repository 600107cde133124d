"""Everything that can go wrong, split by what the caller does next.

BatchpipeError
├── TransientError         expected trouble that passes: retry by countdown, no try is counted
│   ├── Unavailable        the provider did not answer, or answered 5xx, 429 or nonsense
│   ├── Paused             the account cannot be used now (401, 403, no quota): says why
│   ├── OnHold             the job sends nothing more until a person decides
│   ├── StorageTrouble     disk full, remote storage down, an input that is not on this host
│   └── StoreUnavailable   Redis did not answer
├── AmbiguousResult        a paid call was sent and got no clear answer: never call again before looking
├── PermanentError         trying again cannot help
│   ├── InvalidInput       wrong rows of the user: says line, field and what to do
│   ├── Refused            the provider said no, in its own words
│   ├── Gone               the provider does not know the batch or file (any more)
│   ├── JobNotFound
│   └── OutputInUse
├── RecordUnreadable       a record that this version does not understand: lists skip it
├── SettingsError          a person must fix the settings; says which and how
└── LeaseLost              another worker has this now: stop, write nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from batchpipe.masking import without_secrets

#: The longest message: it is for a person, and is kept in records and logs.
MOST_MESSAGE = 4_000
#: Codes come from providers, too.
MOST_CODE = 100


def shortened(text: str, most: int) -> str:
    """A text of at most ``most`` characters, with its end replaced by ``...`` if it was longer."""
    return text if len(text) <= most else text[: most - 4] + " ..."


class BatchpipeError(Exception):
    """Base of all errors of batchpipe. ``code`` is for programs, the message for people; its URLs are masked."""

    code = "error"
    #: ids of batches that an answer to the paid call names; True: the answer is about that one, False: only mentions it
    named: Mapping[str, bool] = MappingProxyType({})

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(shortened(without_secrets(message), MOST_MESSAGE) or (self.__doc__ or "").strip())
        if code:
            self.code = shortened(code, MOST_CODE)

    @property
    def message(self) -> str:
        return str(self)


class TransientError(BatchpipeError):
    """Expected trouble that passes by itself. ``after`` is the pause in seconds that was asked for, if any."""

    code = "try_later"

    def __init__(self, message: str = "", *, code: str | None = None, after: float | None = None) -> None:
        super().__init__(message, code=code)
        self.after = after


class Unavailable(TransientError):
    """The provider did not answer properly; ``status`` is its HTTP status, if there was one."""

    code = "provider_unavailable"

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        after: float | None = None,
        status: int | None = None,
        limits: Mapping[str, str] | None = None,
    ) -> None:
        """``limits``: headers of a 429 that say how often this call may be made."""
        super().__init__(message, code=code, after=after)
        self.status = status
        self.limits = limits or {}


class Paused(TransientError):
    """The account cannot be used now."""

    code = "account_paused"


class OnHold(TransientError):
    """The job sends nothing more until a person decides."""

    code = "on_hold"


class StorageTrouble(TransientError):
    """A file could not be read or written just now. Not ``passes``: until a person repairs something."""

    code = "storage_trouble"
    passes = True


#: Codes that decide what follows, under one name for all providers: the account is out of money; the provider's queue
#: is full; too many of its batches are unfinished; it does not find the input file of a batch; nothing of the call left
#: this host.
NO_QUOTA, TOKEN_LIMIT, BATCH_LIMIT, FILE_NOT_FOUND, NOT_SENT = (
    "insufficient_quota",
    "token_limit_exceeded",
    "batch_limit_exceeded",
    "file_not_found",
    "not_sent",
)
#: Code of a 404 that does not come from the provider: a proxy's page, or a server that does not know the route.
NO_ROUTE = "http_404_page"
#: Code of the provider's own 404 for a route that all such servers have: the base URL is most likely wrong.
NO_API = "no_api"
#: Code of a StorageTrouble for a file that is not where it was.
FILE_MISSING = "file_missing"
#: Code for rows, and for waiting work, with files that are gone from the workspace.
WORKSPACE_GONE = "workspace_gone"
#: Code for what waits because nobody can tell whether an unanswered create call made a batch.
CREATE_UNKNOWN = "create_unknown"


class StoreUnavailable(TransientError):
    """Redis did not answer."""

    code = "redis_unavailable"


class AmbiguousResult(BatchpipeError):
    """A batch may or may not have been created: no clear answer came."""

    code = "unanswered"


class PermanentError(BatchpipeError):
    """Trying again cannot help."""

    code = "refused"


class InvalidInput(PermanentError):
    """The input is not what the provider accepts. ``line`` counts from 1; ``file`` is its path or URL, where an input
    has several.
    """

    code = "invalid_input"

    def __init__(
        self,
        message: str,
        *,
        line: int | None = None,
        field: str | None = None,
        code: str | None = None,
        file: str | None = None,
    ) -> None:
        place = f"{file}: " if file else ""
        where = f"line {line}: " if line is not None else ""
        what = f"{field}: " if field else ""
        super().__init__(f"{place}{where}{what}{message}", code=code)
        self.line = line
        self.field = field
        self.file = file

    def at(self, line: int, file: str | None = None) -> InvalidInput:
        """The same error, with the line that it is about, and its file."""
        found = InvalidInput(f"line {line}: {self.message}", code=self.code)
        found.line, found.field = line, self.field
        return found.within(file)

    def within(self, file: str | None) -> InvalidInput:
        """The same error, with the file that it is about; itself for None."""
        if file is None or self.file is not None or self.message.startswith(file):
            return self
        found = InvalidInput(f"{file}: {self.message}", code=self.code)
        found.line, found.field, found.file = self.line, self.field, file
        return found


class Refused(PermanentError):
    """The provider said no. ``status`` is the HTTP status; ``code`` and ``param`` are the provider's own."""

    def __init__(
        self, message: str, *, code: str | None = None, status: int | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.param = shortened(param, MOST_CODE) if param else param


class Gone(Refused):
    """The provider does not know this batch or file (any more)."""

    code = "gone"


class JobNotFound(PermanentError):
    """No job with this id (``job``) is known here."""

    code = "job_not_found"

    def __init__(self, message: str = "", *, code: str | None = None, job: str | None = None) -> None:
        super().__init__(message, code=code)
        self.job = job


class OutputInUse(PermanentError):
    """The output belongs to another job that has not ended."""

    code = "output_in_use"


class SettingsError(BatchpipeError):
    """A setting is missing or wrong."""

    code = "settings"


class RecordUnreadable(BatchpipeError):
    """A record in Redis that this version does not understand."""

    code = "record_unreadable"


class LeaseLost(BatchpipeError):
    """The lease on this record ended; another worker may have it."""

    code = "lease_lost"
