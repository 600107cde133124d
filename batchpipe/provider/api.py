"""One account's Files and Batches, and the one client of this process for each account."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.config.site import default_site
from batchpipe.errors import (
    NO_ROUTE,
    NOT_SENT,
    TOKEN_LIMIT,
    AmbiguousResult,
    BatchpipeError,
    Gone,
    Paused,
    Refused,
    SettingsError,
    Unavailable,
)
from batchpipe.model.least_rate import SILENCE_SECONDS, LeastRate
from batchpipe.model.provider import Batch, BatchPage, Provider, Resumable, StoredFile
from batchpipe.provider.create_answer import PartialBody, RawAnswer, batch_made_by, batches_named_in
from batchpipe.provider.errors import translated
from batchpipe.provider.lists import newest_first, page_of_batches
from batchpipe.provider.parse import identified, json_object, parse_batch, parse_file, same, text
from batchpipe.provider.sdk import sdk_client
from batchpipe.provider.transfers import WRONG, Watched, range_headers, receive
from batchpipe.provider.transport import Count, http_client, uncounted

if TYPE_CHECKING:
    import openai


class Api(Provider):
    """One account's Files and Batches over HTTP; what each call promises is in ``model.provider``.

    Safe between threads, never across a fork (see ``Apis``).
    """

    def __init__(
        self,
        account: Account,
        *,
        control_seconds: float = 30.0,
        transfer_seconds: float = 600.0,
        transfer_rate: float = 1_000.0,
        count: Count = uncounted,
        name: str = "default",
    ) -> None:
        """``count`` is called for each call with the account's ``name``, route, HTTP status or ``error``, seconds."""
        self._count = partial(count, name)
        self._client = sdk_client(account, control_seconds, http_client(self, self._count, follow_redirects=False))
        self._key = account.api_key.get_secret_value() if account.api_key else ""
        self._identity = identity_of(account)
        self._lists_batches = account.lists_batches
        self._expires = account.file_expires_seconds
        self._purpose = account.purpose
        self._transfer = transfer_seconds
        self._rate = transfer_rate
        self._control = control_seconds

    @cached_property
    def _follower(self) -> openai.OpenAI:
        """For downloads, which some providers redirect to a store. Other calls are not: they might be made twice."""
        return self._client.with_options(http_client=http_client(self, self._count, follow_redirects=True))

    @property
    def identity(self) -> str:
        return self._identity

    def with_header(self, name: str, value: str) -> Api:
        """The same over the same connections, with one more header in each call but downloads."""
        made = copy.copy(self)
        made._client = self._client.with_options(default_headers={name: value})
        return made

    # -- files -----------------------------------------------------------------------------------------------------

    def upload(self, handle: IO[bytes], name: str, check: Callable[[], None]) -> str:
        """Stream a file to the provider and return its id. ``check`` is called as it goes.

        Raises Unavailable, Paused, Refused.
        """
        try:
            return self._upload(handle, name, check, self._expires)
        except Refused as error:
            if not self._expires or "expires_after" not in str(error):
                raise
            file_id = self._upload(handle, name, check, 0)
            self._expires = 0  # it worked without: this server does not know the option
            return file_id

    def _upload(self, handle: IO[bytes], name: str, check: Callable[[], None], expires: int) -> str:
        extra: dict[str, Any] = {}
        if expires:
            extra["expires_after"] = {"anchor": "created_at", "seconds": expires}
        handle.seek(0)
        body = cast(IO[bytes], Watched(handle, self._watch(check, "upload")))
        with translated(self._key):
            answer = self._client.files.with_raw_response.create(
                file=(name, body, "application/jsonl"),
                purpose=cast(Any, self._purpose),
                timeout=self._transfer_timeout(answer=self._transfer),
                **extra,
            )
            return identified(json_object(answer.http_response.content), "file")["id"]  # type: ignore[no-any-return]

    def file_bytes(self, file_id: str) -> int | None:
        try:
            fields = self._file(file_id)
        except Gone:  # some servers only have the content
            return None
        if fields is None:
            return None
        if fields.get("id", file_id) != file_id or ("id" not in fields and "bytes" not in fields):
            raise Unavailable(f"asked for file {file_id}, the provider answered about another", code="nonsense")
        size = fields.get("bytes")
        return size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None

    def file_status(self, file_id: str) -> str | None:
        """The provider's status of a file (``processed``, ``pending``), None if it has none.

        Raises Gone if this key does not see the file; Unavailable, Paused.
        """
        fields = self._file(file_id)
        return None if fields is None else text(fields.get("status"))

    def _file(self, file_id: str) -> dict[str, Any] | None:
        """The provider's object of a file, None if it has only the content. Raises Gone, Unavailable, Paused."""
        try:
            with translated(self._key):
                answer = self._client.files.with_raw_response.retrieve(file_id)
                return json_object(answer.http_response.content)
        except Gone:
            raise
        except Refused:
            return None
        except Unavailable as error:
            if error.code != NO_ROUTE and error.status != 501:
                raise
            return None

    def download(self, file_id: str, sink: BinaryIO | Resumable, check: Callable[[], None]) -> int:
        """Stream a file into ``sink`` and return the number of bytes, including those that were there.

        Bytes that a resumable sink has are not fetched again, if the provider supports ``Range``.
        Raises Gone, Unavailable, Paused, Refused.
        """
        wanted = range_headers(sink)
        try:
            return self._stream(file_id, sink, check, wanted)
        except (Refused, Unavailable) as error:
            # 416: the bytes that are there are not a part of the file
            if not wanted or not (error.status == 416 or error.code == WRONG):
                raise
        return self._stream(file_id, sink, check, {})

    def _stream(
        self, file_id: str, sink: BinaryIO | Resumable, check: Callable[[], None], wanted: dict[str, str]
    ) -> int:
        watch, follower = self._watch(check, "download"), self._follower
        with (
            _redirected(),
            translated(self._key),
            follower.files.with_streaming_response.content(
                file_id,
                # sizes are compared, so the bytes must come uncompressed
                extra_headers={"Accept-Encoding": "identity", **wanted},
                timeout=self._transfer_timeout(answer=SILENCE_SECONDS),
            ) as answer,
        ):
            total = receive(sink, answer.status_code, answer.headers, ranged=bool(wanted))
            for block in answer.iter_bytes():  # as they come: waiting for a full block would hide a slow transfer
                watch(len(block))
                sink.write(block)
                total += len(block)
        return total

    def file_name(self, file_id: str) -> str | None:
        with translated(self._key):
            answer = self._client.files.with_raw_response.retrieve(file_id)
            fields = json_object(answer.http_response.content)
            return text(fields.get("filename")) if fields.get("id", file_id) == file_id else None

    def delete_file(self, file_id: str) -> None:
        """Raises Gone, Unavailable, Paused, Refused."""
        with translated(self._key):
            self._client.files.with_raw_response.delete(file_id)

    def iter_files(self, since: float) -> Iterator[StoredFile]:
        call = self._client.files.with_raw_response.list
        yield from newest_first(call, "files", parse_file, since, self._key, limit=1_000, purpose=self._purpose)

    # -- batches ---------------------------------------------------------------------------------------------------

    def create_batch(
        self,
        *,
        endpoint: str,
        completion_window: str,
        input_file_id: str,
        metadata: dict[str, str],
        extra: dict[str, Any],
    ) -> Batch:
        """The paid call: sent once. Raises AmbiguousResult unless the answer is clear.

        A clear refusal is Unavailable (a 4xx that may pass, or code ``not_sent``: nothing left this host), Paused or
        Refused. Each has in ``named`` the ids of batches that its answer names: these must be read before any further
        call.
        """
        came: list[RawAnswer] = []
        try:
            with translated(self._key):
                came.append(self._create(endpoint, completion_window, input_file_id, metadata, extra, came))
            batch = batch_made_by(came[-1], metadata.get("batchpipe_key"))
            if batch is None:
                raise Unavailable(f"HTTP {came[-1].status}, and no batch in it", code="nonsense")
            return batch
        except (Unavailable, Paused, Refused) as error:
            names = batches_named_in(came[-1]) if came else {}
            if not _is_clear_no(error):
                about = f" (it names {', '.join(names)})" if names else ""
                unanswered = AmbiguousResult(f"no clear answer to the create call: {error}{about}")
                unanswered.named = names
                raise unanswered from error
            error.named = names
            raise

    def _create(
        self,
        endpoint: str,
        completion_window: str,
        input_file_id: str,
        metadata: dict[str, str],
        extra: dict[str, Any],
        came: list[RawAnswer],
    ) -> RawAnswer:
        """The answer. If it is an error, or breaks off, what has come is added to ``came`` first."""
        import openai

        try:
            with self._client.batches.with_streaming_response.create(
                endpoint=cast(Any, endpoint),
                completion_window=cast(Any, completion_window),
                input_file_id=input_file_id,
                metadata=metadata,
                extra_body=extra or None,
            ) as answer:
                status, location = answer.status_code, answer.headers.get("location", "")
                body = PartialBody(self._control)
                try:
                    body.read(answer.iter_bytes())
                except BaseException:
                    came.append(RawAnswer(status, bytes(body.parts), location, whole=False))
                    raise
                return RawAnswer(status, bytes(body.parts), location)
        except openai.APIStatusError as error:
            response = error.response
            came.append(RawAnswer(error.status_code, response.content, response.headers.get("location", "")))
            raise

    def retrieve(self, batch_id: str) -> Batch:
        """Raises Gone, Unavailable (also when another object comes back), Paused, Refused."""
        with translated(self._key):
            answer = self._client.batches.with_raw_response.retrieve(batch_id)
            return same(parse_batch(json_object(answer.http_response.content)), batch_id)

    def cancel_batch(self, batch_id: str) -> Batch:
        try:
            with translated(self._key):
                answer = self._client.batches.with_raw_response.cancel(batch_id)
                return same(parse_batch(json_object(answer.http_response.content)), batch_id)
        except Unavailable as error:
            if error.status != 409:
                raise
            raise Refused(error.message, code=error.code, status=409) from error

    def iter_batches(self, since: float) -> Iterator[Batch]:
        call = self._client.batches.with_raw_response.list
        yield from newest_first(call, "batches", parse_batch, since, self._key, limit=100)

    def batch_page(self, after: str | None = None) -> BatchPage:
        call, more = self._client.batches.with_raw_response.list, {"after": after} if after else {}
        batches, goes_on = page_of_batches(call, self._key, limit=100, **more)
        return BatchPage(batches=batches, more=goes_on)

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._client.close()
        if "_follower" in self.__dict__:
            self._follower.close()

    def ping(self) -> None:
        """One cheap authorised call, for doctor. Raises Paused, Unavailable, Refused."""
        listed = self._client.batches if self._lists_batches else self._client.files
        with translated(self._key):
            listed.with_raw_response.list(limit=1)

    def model_names(self, *, seconds: float, most: int) -> list[str]:
        """The first names of models that the server lists; one call, which may take so many seconds. Raises Paused,
        Unavailable, Refused.
        """
        with translated(self._key):
            answer = self._client.with_options(timeout=seconds).models.with_raw_response.list()
            found = json_object(answer.http_response.content).get("data")
        names = (text(model.get("id")) for model in found if isinstance(model, dict)) if isinstance(found, list) else ()
        return list(islice((name for name in names if name), most))

    # -- time-outs -------------------------------------------------------------------------------------------------

    def _transfer_timeout(self, *, answer: float) -> Any:
        import httpx2

        silence = min(SILENCE_SECONDS, self._transfer)
        return httpx2.Timeout(silence, connect=min(10.0, self._control), read=min(answer, self._transfer))

    def _watch(self, check: Callable[[], None], what: str) -> LeastRate:
        return LeastRate(what, self._rate, check, window=min(SILENCE_SECONDS, self._transfer))


class Apis:
    """The Api of each account, by name: one per process, because connections must not cross a fork, and a client
    takes 20 ms to build."""

    def __init__(self, settings: Settings, count: Count = uncounted) -> None:
        self._settings = settings
        self._count = count
        self._built: dict[tuple[int, str], Api] = {}

    def __call__(self, name: str) -> Api:
        """Raises SettingsError if the account or its key is missing, or no client can be made of them."""
        key = (os.getpid(), name)
        found = self._built.get(key)
        if found is not None:
            return found
        account = self._settings.account(name)
        with default_site().lock:
            if key not in self._built:
                self._built[key] = self._build(name, account)
            return self._built[key]

    def _build(self, name: str, account: Account) -> Api:
        try:
            return Api(
                account,
                control_seconds=self._settings.control_timeout_seconds,
                transfer_seconds=self._settings.transfer_timeout_seconds,
                transfer_rate=self._settings.transfer_bytes_per_second,
                count=self._count,
                name=name,
            )
        except SettingsError:
            raise
        except Exception as error:  # whatever the error is, a person must see and correct it
            secret = account.api_key.get_secret_value() if account.api_key else ""
            words = str(error).replace(secret, "***") if secret else str(error)
            message = f"account {name!r}: no client can be made: {type(error).__name__}: {words}"
            raise SettingsError(message) from None


def identity_of(account: Account) -> str:
    """A digest of the key and of whatever else decides which batches it sees; too short to tell anything of the key."""
    secret = account.api_key.get_secret_value() if account.api_key else ""
    where = (account.kind, account.base_url, account.azure_endpoint, account.organization, account.project)
    return hashlib.blake2b(repr((secret, *where)).encode(), digest_size=4).hexdigest()


def _is_clear_no(error: BatchpipeError) -> bool:
    """This call made nothing. A conflict only says that something was made: perhaps by us, if a proxy repeated it."""
    if not isinstance(error, Unavailable):
        return True
    if error.code in (NOT_SENT, TOKEN_LIMIT) and (error.status or 400) < 500:
        return True
    refused = error.status is not None and 400 <= error.status < 500 and error.status not in (408, 409)
    return refused and error.code != NO_ROUTE


@contextmanager
def _redirected() -> Iterator[None]:
    """Errors about an address mean the one that we were redirected to, not the one of the settings."""
    try:
        yield
    except SettingsError as error:
        raise Unavailable(
            f"the provider redirects to where nothing can be fetched: {error}", code="nonsense"
        ) from error
