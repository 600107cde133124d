"""Converts all errors of the SDK and its transport to ours: split by what the caller does next."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from batchpipe.config.environment import transport_environment
from batchpipe.config.limits import out_of_time
from batchpipe.errors import (
    BATCH_LIMIT,
    FILE_NOT_FOUND,
    NO_API,
    NO_QUOTA,
    NO_ROUTE,
    NOT_SENT,
    TOKEN_LIMIT,
    BatchpipeError,
    Gone,
    Paused,
    Refused,
    SettingsError,
    Unavailable,
)
from batchpipe.model.bodies import QUOTA_CODES
from batchpipe.model.refusals import says_batch_limit, says_no_file, says_token_limit
from batchpipe.model.said_limits import LIMIT_HEADERS
from batchpipe.provider.error_details import ErrorDetails, error_details

if TYPE_CHECKING:
    import openai


#: The operating system's numbers of errors.
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")


def _is_of_tls(name: str) -> bool:
    return name.upper().startswith("SSL_")


@contextmanager
def translated(secret: str = "") -> Iterator[None]:
    """Turn everything the SDK and its transport raise into our errors, without the account's key.

    Providers mask a key that they echo; gateways in front of them often do not.
    """
    try:
        with _translated():
            yield
    except BatchpipeError as error:
        if secret and any(secret in str(part) for part in (error, error.__cause__)):
            error.args = (str(error).replace(secret, "***"),)
            raise error from None  # the cause has it, too
        raise


@contextmanager
def _translated() -> Iterator[None]:
    import httpx2
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _of_status(error) from error
    except openai.APIConnectionError as error:
        raise _of_transport(error.__cause__ or error) from error
    except (httpx2.HTTPError, httpx2.StreamError, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _of_transport(error) from error
    except (openai.OpenAIError, msgspec.MsgspecError, httpx2.InvalidURL, ValueError) as error:
        raise Unavailable(f"the provider's answer makes no sense: {error}", code="nonsense") from error


def _of_transport(cause: BaseException) -> BatchpipeError:
    import httpx2

    if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.InvalidURL | httpx2.LocalProtocolError):
        return SettingsError(f"the account's base_url or key is not usable: {cause}")
    if isinstance(cause, out_of_time()):  # the SDK takes any error within a call for the end of its connection
        return Unavailable("the worker's time limit (task_soft_time_limit) ended the call", code="time_limit")
    text = _ERRNO.sub("", str(cause)) or type(cause).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text and (names := [*filter(_is_of_tls, transport_environment())]):
        text += f"; are the certificates right that {' and '.join(names)} name?"
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return Unavailable(f"the provider cannot be reached{_where(cause)}: {text}", code=NOT_SENT)
    return Unavailable(f"the provider did not answer: {text}")


def _where(cause: BaseException) -> str:
    """The host and port that was called, without anything else of the address."""
    try:
        url = cause.request.url  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):  # the call had none yet
        return ""
    return f" at {url.host}" + (f":{url.port}" if url.port else "")


def _of_status(error: openai.APIStatusError) -> BatchpipeError:
    status, after = error.status_code, _retry_after(error.response.headers.get("retry-after"))
    answer = _details(error)
    code, param = answer.code, answer.param
    words, hint = answer.message or f"HTTP {status} without a word", _hint(error)
    message = f"{words}{hint}"
    if status < 400:
        return Unavailable(f"HTTP {status} is no answer", code=f"http_{status}", status=status)
    if status < 500 and status != 408 and not QUOTA_CODES.isdisjoint(answer.codes):
        return Paused(message, code=NO_QUOTA, after=after)
    if status in (401, 402, 403):
        return Paused(message, code=code or f"http_{status}", after=after)
    if TOKEN_LIMIT in answer.codes or (status in (400, 429) and says_token_limit(message)):
        return Unavailable(message, code=TOKEN_LIMIT, after=after, status=status)
    if status in (400, 429) and says_batch_limit(answer.codes, message):
        return Unavailable(message, code=BATCH_LIMIT, after=after, status=status)
    if status == 400 and says_no_file(message):
        return Unavailable(message, code=FILE_NOT_FOUND, after=after, status=status)
    if status in (408, 409, 425, 429) or status >= 500:
        code, limits = code or f"http_{status}", _limits(error.response.headers) if status == 429 else None
        return Unavailable(f"HTTP {status}: {message}", code=code, after=after, status=status, limits=limits)
    if status == 404:
        # a proxy's page does not prove that a paid batch is gone; the provider answers in JSON
        if _is_json_object(error.response):
            return Gone(message, code=NO_API if hint else code, status=status, param=param)
        return Unavailable(f"HTTP 404 without the provider's own words: {words[:200]}{hint}", code=NO_ROUTE, status=404)
    return Refused(message, code=code or f"http_{status}", status=status, param=param)


def _hint(error: openai.APIStatusError) -> str:
    """What is most likely wrong if a server does not know a route of ours that all such servers have."""
    is_bare = error.request.url.path in ("/files", "/batches")
    return "; does BASE_URL lack its /v1?" if is_bare and error.status_code in (404, 405) else ""


def _limits(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name][:100] for name in LIMIT_HEADERS if name in headers}


def _details(error: openai.APIStatusError) -> ErrorDetails:
    try:
        return error_details(error.response.content)
    except RuntimeError:  # the body was streamed and not read
        return ErrorDetails()


def _is_json_object(response: Any) -> bool:
    try:
        return isinstance(orjson.loads(response.content), dict)
    except (orjson.JSONDecodeError, RuntimeError):  # RuntimeError: the body was streamed and not read
        return False


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, in either of its two forms."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), 86_400.0) if seconds == seconds else None
