"""The provider: files and batches, over the real SDK. The only importer of openai.

The SDK's own retries are off (Celery owns retrying, and a repeated create would pay twice); its errors become
ours; its answers are read as raw JSON, for it validates nothing and a wrong object would pass.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import msgspec
import orjson

from batchpipe.errors import BatchpipeError, Gone, Paused, Refused, SettingsError, Unanswered, Unavailable
from batchpipe.jobs import BatchError, Counts
from batchpipe.settings import Account, Settings

if TYPE_CHECKING:
    import openai

#: The provider's own words that mean "wait, then the same again".
_TOKEN_LIMIT = ("token_limit_exceeded", "enqueued token limit")
#: A 404 that is not the provider's: a proxy's page, or a server that does not know the route.
_NO_ROUTE = "http_404_page"
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")

#: A silence this long within a transfer means the connection is dead.
_SILENCE_SECONDS = 60.0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider said of a batch, made safe: any field may be absent but the id."""

    id: str
    status: str | None = None
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: float | None = None
    counts: Counts = Counts()
    errors: list[BatchError] = []
    metadata: dict[str, str] = {}
    usage: dict[str, int] = {}


class Api:
    """One account's Files and Batches. Safe between threads; never to be used across a fork (see ``api_for``)."""

    def __init__(self, account: Account, *, control_seconds: float = 30.0, transfer_seconds: float = 600.0) -> None:
        self._client = _client(account, control_seconds)
        self._expires = account.file_expires_seconds
        self._transfer = transfer_seconds
        self._control = control_seconds

    # -- files -----------------------------------------------------------------------------------------------------

    def upload(self, handle: IO[bytes], name: str, check: Callable[[], None]) -> str:
        """Stream a file to the provider and answer its id. ``check`` is called as it goes.

        Raises Unavailable, Paused, Refused.
        """
        try:
            return self._upload(handle, name, check, self._expires)
        except Refused as error:
            if not self._expires or "expires_after" not in str(error):
                raise
            self._expires = 0  # a compatible server that does not know it
            return self._upload(handle, name, check, 0)

    def _upload(self, handle: IO[bytes], name: str, check: Callable[[], None], expires: int) -> str:
        extra: dict[str, Any] = {}
        if expires:
            extra["expires_after"] = {"anchor": "created_at", "seconds": expires}
        handle.seek(0)
        body = cast(IO[bytes], _Watched(handle, self._watch(check, "upload")))
        with _translated():
            answer = self._client.files.with_raw_response.create(
                file=(name, body, "application/jsonl"),
                purpose="batch",
                timeout=self._transfer_timeout(answer=self._transfer),
                **extra,
            )
            return _identified(_json(answer.http_response.content), "file")["id"]  # type: ignore[no-any-return]

    def file_bytes(self, file_id: str) -> int | None:
        """The size the provider tells, None where it tells none. Raises Gone, Unavailable, Paused."""
        try:
            with _translated():
                answer = self._client.files.with_raw_response.retrieve(file_id)
                size = _json(answer.http_response.content).get("bytes")
        except Unavailable as error:
            if error.code != _NO_ROUTE:  # some servers only give the content
                raise
            return None
        return size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None

    def download(self, file_id: str, sink: BinaryIO, check: Callable[[], None]) -> int:
        """Stream a file into ``sink`` and answer the number of bytes. Raises Gone, Unavailable, Paused."""
        watch, total = self._watch(check, "download"), 0
        with (
            _translated(),
            self._client.files.with_streaming_response.content(
                file_id,
                # sizes are compared, so the bytes must come as they are
                extra_headers={"Accept-Encoding": "identity"},
                timeout=self._transfer_timeout(answer=_SILENCE_SECONDS),
            ) as answer,
        ):
            for block in answer.iter_bytes(1 << 16):
                watch()
                sink.write(block)
                total += len(block)
        return total

    def delete_file(self, file_id: str) -> None:
        """Raises Gone, Unavailable, Paused, Refused."""
        with _translated():
            self._client.files.with_raw_response.delete(file_id)

    # -- batches ---------------------------------------------------------------------------------------------------

    def create_batch(
        self,
        *,
        endpoint: str,
        completion_window: str,
        input_file_id: str,
        metadata: dict[str, str],
        extra: dict[str, Any],
    ) -> Snapshot:
        """The paid call: sent once. Raises Unanswered unless the answer is clear.

        A clear no is Unavailable (a 4xx that may pass, or code ``not_sent``: nothing left this host), Paused or
        Refused.
        """
        try:
            with _translated():
                answer = self._client.batches.with_raw_response.create(
                    endpoint=cast(Any, endpoint),
                    completion_window=cast(Any, completion_window),
                    input_file_id=input_file_id,
                    metadata=metadata,
                    extra_body=extra or None,
                )
                snapshot = parse_batch(_json(answer.http_response.content))
            if snapshot.input_file_id not in (None, input_file_id):
                raise Unavailable(f"the answer is about another batch, {snapshot.id}", code="nonsense")
            return snapshot
        except Unavailable as error:
            refused = error.status is not None and 400 <= error.status < 500 and error.status != 408
            if (refused and error.code != _NO_ROUTE) or error.code == "not_sent":
                raise
            raise Unanswered(f"no clear answer to the create call: {error}") from error

    def retrieve(self, batch_id: str) -> Snapshot:
        """Raises Gone, Unavailable (also when another object comes back), Paused, Refused."""
        with _translated():
            answer = self._client.batches.with_raw_response.retrieve(batch_id)
            return _same(parse_batch(_json(answer.http_response.content)), batch_id)

    def cancel_batch(self, batch_id: str) -> Snapshot:
        """Raises Refused where the batch has ended already (read it again), Gone, Unavailable, Paused."""
        try:
            with _translated():
                answer = self._client.batches.with_raw_response.cancel(batch_id)
                return _same(parse_batch(_json(answer.http_response.content)), batch_id)
        except Unavailable as error:
            if error.status != 409:
                raise
            raise Refused(error.message, code=error.code, status=409) from error

    def iter_batches(self, since: float) -> Iterator[Snapshot]:
        """The account's batches, newest first, until one is older than ``since`` (the provider's clock).

        Raises Gone or Refused where the provider cannot list; Unavailable, Paused.
        """
        after: str | None = None
        while True:
            with _translated():
                more: dict[str, Any] = {"after": after} if after else {}
                page = _json(self._client.batches.with_raw_response.list(limit=100, **more).http_response.content)
            data = page.get("data")
            if not isinstance(data, list):
                raise Unavailable("the provider's list of batches has no `data`", code="nonsense")
            found = [parse_batch(item) for item in data if isinstance(item, dict)]
            yield from found
            if not found or not page.get("has_more"):
                return
            if found[-1].created_at is not None and found[-1].created_at < since:
                return
            if found[-1].id == after:
                raise Unavailable("the provider's list of batches does not advance", code="nonsense")
            after = found[-1].id

    def close(self) -> None:
        """Close the connections; they open again at the next call."""
        self._client.close()

    def ping(self) -> None:
        """One cheap authorised call, for doctor. Raises Paused, Unavailable, Refused."""
        with _translated():
            self._client.batches.with_raw_response.list(limit=1)

    # -- time-outs -------------------------------------------------------------------------------------------------

    def _transfer_timeout(self, *, answer: float) -> Any:
        import httpx2

        silence = min(_SILENCE_SECONDS, self._transfer)
        return httpx2.Timeout(silence, connect=min(10.0, self._control), read=min(answer, self._transfer))

    def _watch(self, check: Callable[[], None], what: str) -> Callable[[], None]:
        """Sockets time out by silence only; this ends a transfer that drips."""
        ends = time.monotonic() + self._transfer

        def watch() -> None:
            check()
            if time.monotonic() > ends:
                raise Unavailable(f"the {what} took longer than {self._transfer:.0f} s", code="transfer_timeout")

        return watch


def warm_up() -> None:
    """Import the SDK now: half a second that the first upload need not wait for."""
    import openai  # noqa: F401


class Apis:
    """The Api of each account, by name: one per process, for connections must not cross a fork, and a client
    costs 20 ms to build."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._built: dict[tuple[int, str], Api] = {}

    def __call__(self, name: str) -> Api:
        """Raises SettingsError where the account or its key is missing."""
        key = (os.getpid(), name)
        found = self._built.get(key)
        if found is None:
            api = Api(
                self._settings.account(name),
                control_seconds=self._settings.control_timeout_seconds,
                transfer_seconds=self._settings.transfer_timeout_seconds,
            )
            found = self._built.setdefault(key, api)  # two threads may build; one wins
        return found


class _Watched:
    """A binary file whose reads are watched; the SDK streams from it and asks its length."""

    def __init__(self, handle: IO[bytes], watch: Callable[[], None]) -> None:
        self._handle = handle
        self._watch = watch

    def read(self, size: int = -1) -> bytes:
        self._watch()
        return self._handle.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(1 << 16), b"")


def _client(account: Account, control_seconds: float) -> openai.OpenAI:
    import httpx2
    import openai

    key = account.api_key.get_secret_value() if account.api_key else ""
    timeout = httpx2.Timeout(control_seconds, connect=min(10.0, control_seconds))
    client: openai.OpenAI
    try:
        if account.kind == "azure" and not account.base_url:
            client = openai.AzureOpenAI(
                api_key=key,
                azure_endpoint=account.azure_endpoint or "",
                api_version=account.api_version,
                max_retries=0,
                timeout=timeout,
            )
        else:
            url = account.base_url or "https://api.openai.com/v1"
            client = openai.OpenAI(api_key=key, base_url=url, max_retries=0, timeout=timeout)
    except (openai.OpenAIError, ValueError, httpx2.InvalidURL) as error:
        raise SettingsError(f"the provider's address is not usable: {error}") from None
    # the SDK would fill these from the environment, which belongs to the account `default` alone
    client.organization = account.organization
    client.project = account.project
    return client


@contextmanager
def _translated() -> Iterator[None]:
    """Turn everything the SDK and its transport raise into our errors."""
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
    except (openai.OpenAIError, msgspec.MsgspecError) as error:
        raise Unavailable(f"the provider's answer makes no sense: {error}", code="nonsense") from error


def _of_transport(cause: BaseException) -> BatchpipeError:
    import httpx2

    if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.InvalidURL | httpx2.LocalProtocolError):
        return SettingsError(f"the account's base_url or key is not usable: {cause}")
    text = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return Unavailable(f"the provider cannot be reached: {text}", code="not_sent")
    return Unavailable(f"the provider did not answer: {text}")


def _of_status(error: openai.APIStatusError) -> BatchpipeError:
    status, after = error.status_code, _retry_after(error.response.headers.get("retry-after"))
    body = error.body if isinstance(error.body, dict) else None
    code = str(error.code) if error.code else None
    words = body.get("message") if body else None
    message = words if isinstance(words, str) else str(error)[:500]
    lower = f"{code} {message}".lower()
    if any(mark in lower for mark in _QUOTA):
        return Paused(message, code="insufficient_quota", after=after)
    if status in (401, 403):
        return Paused(message, code=code or f"http_{status}", after=after)
    if any(mark in lower for mark in _TOKEN_LIMIT):
        return Unavailable(message, code="token_limit_exceeded", after=after, status=status)
    if status == 400 and "cannot find file" in lower:
        return Unavailable(message, code="file_not_found", after=after, status=status)
    if status in (408, 409, 425, 429) or status >= 500:
        return Unavailable(f"HTTP {status}: {message}", code=code or f"http_{status}", after=after, status=status)
    if status == 404:
        # a proxy's page is no proof that a paid batch is gone; the provider answers in JSON
        if _is_json_object(error.response):
            return Gone(message, code=code, status=status)
        return Unavailable(f"HTTP 404 without the provider's own words: {message[:200]}", code=_NO_ROUTE, status=404)
    return Refused(message, code=code or f"http_{status}", status=status)


def _is_json_object(response: Any) -> bool:
    try:
        return isinstance(orjson.loads(response.content), dict)
    except Exception as error:
        if isinstance(error, orjson.JSONDecodeError | RuntimeError):  # RuntimeError: the body was not read
            return False
        raise


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, in either of its two forms."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), 86_400.0) if seconds == seconds else None


def _json(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise Unavailable(f"the provider's answer is not JSON: {content[:100]!r}", code="nonsense") from None
    if not isinstance(value, dict):
        raise Unavailable("the provider's answer is not a JSON object", code="nonsense")
    return value


def _identified(value: dict[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(value.get("id"), str) or not value["id"]:
        raise Unavailable(f"the provider's {what} has no id", code="nonsense")
    return value


def parse_batch(value: dict[str, Any]) -> Snapshot:
    """A batch object, whatever shape it came in. Raises Unavailable if it has no id."""
    _identified(value, "batch")
    counts = value.get("request_counts")
    metadata = value.get("metadata")
    return Snapshot(
        id=value["id"],
        status=(_text(value.get("status")) or "").lower() or None,  # some shout
        input_file_id=_text(value.get("input_file_id")),
        output_file_id=_text(value.get("output_file_id")),
        error_file_id=_text(value.get("error_file_id")),
        created_at=_number(value.get("created_at")),
        counts=Counts(**{name: _count(counts.get(name)) for name in ("total", "completed", "failed")})
        if isinstance(counts, dict)
        else Counts(),
        errors=_errors(value.get("errors")),
        metadata={k: v for k, v in metadata.items() if isinstance(v, str)} if isinstance(metadata, dict) else {},
        usage=_usage(value.get("usage")),
    )


def _errors(value: Any) -> list[BatchError]:
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, list):
        return []
    return [
        BatchError(
            code=_text(item.get("code")),
            message=_text(item.get("message")),
            line=_count(item.get("line")),
            param=_text(item.get("param")),
        )
        for item in data[:1_000]
        if isinstance(item, dict)
    ]


def _usage(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(v, int) and not isinstance(v, bool)}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _same(snapshot: Snapshot, batch_id: str) -> Snapshot:
    if snapshot.id != batch_id:
        raise Unavailable(f"asked for batch {batch_id}, the provider answered with {snapshot.id}", code="nonsense")
    return snapshot
