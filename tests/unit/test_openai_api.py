"""The real Api on the real SDK: what goes wrong at the sandbox lands in the right error, and create is sent once."""

from __future__ import annotations

import io
import json
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.errors import NO_API, AmbiguousResult, BatchpipeError, Gone, Paused, Refused, SettingsError, Unavailable
from batchpipe.model.provider import Batch
from batchpipe.model.said_limits import Rate, said_batch_limit, said_rate
from batchpipe.provider import Api, Apis, parse_batch
from batchpipe.sandbox import Sandbox

KEY = "sk-secret-0123456789abcdef"
CREATE = "POST /v1/batches"
RETRIEVE = "GET /v1/batches/{id}"
CONTENT = "GET /v1/files/{id}/content"
ROW = {"custom_id": "r0", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}


def nothing() -> None:
    """A lease that is never lost."""


@pytest.fixture
def make_api() -> Iterator[Callable[..., Api]]:
    made: list[Api] = []

    def make(base_url: str, **options: Any) -> Api:
        account = Account(api_key=SecretStr(KEY)).model_copy(update={"base_url": base_url})  # also one that is none
        made.append(Api(account, **options))
        return made[-1]

    yield make
    for api in made:
        api._client.close()


@pytest.fixture
def api(sandbox: Sandbox, make_api: Callable[..., Api]) -> Api:
    return make_api(sandbox.base_url, control_seconds=5.0)


def upload(api: Api, data: bytes = json.dumps(ROW).encode() + b"\n") -> str:
    return api.upload(io.BytesIO(data), "batchpipe-job_x-0-1.jsonl", nothing)


def create(api: Api, file_id: str, **extra: Any) -> Batch:
    return api.create_batch(
        endpoint="/v1/chat/completions",
        completion_window="24h",
        input_file_id=file_id,
        metadata={"batchpipe_key": "job_x:0:1"},
        extra=extra,
    )


def refusal(call: Callable[[], object]) -> Any:
    """The error of a call; the key is in none of its words."""
    with pytest.raises(BatchpipeError) as caught:
        call()
    said = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY not in said
    return caught.value


# -- answers that are errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        pytest.param({"status": 401, "code": "invalid_api_key"}, Paused, "invalid_api_key", id="401"),
        pytest.param({"status": 403}, Paused, "http_403", id="403"),
        pytest.param({"status": 429, "code": "insufficient_quota"}, Paused, "insufficient_quota", id="no-quota"),
        pytest.param({"status": 400, "code": "billing_hard_limit_reached"}, Paused, "insufficient_quota", id="billing"),
        pytest.param({"status": 429}, Unavailable, "http_429", id="429"),
        pytest.param({"status": 408}, Unavailable, "http_408", id="408"),
        pytest.param({"status": 500}, Unavailable, "http_500", id="500"),
        pytest.param({"status": 503, "body": "<html>busy</html>"}, Unavailable, "http_503", id="503-page"),
        pytest.param({"status": 404}, Gone, "gone", id="404"),
        pytest.param({"status": 404, "body": "<html>no such host"}, Unavailable, "http_404_page", id="404-page"),
        pytest.param({"status": 404, "body": '"no"'}, Unavailable, "http_404_page", id="404-text"),
        pytest.param({"status": 400, "code": "invalid_value"}, Refused, "invalid_value", id="400"),
        pytest.param({"status": 422, "body": "{}"}, Refused, "http_422", id="422-empty"),
    ],
)
def test_each_status_lands_in_its_error(
    api: Api, sandbox: Sandbox, fault: dict[str, Any], kind: type[BatchpipeError], code: str
) -> None:
    """Split by what the caller does next; one request goes out for each call."""
    sandbox.faults.add("status", route=RETRIEVE, **fault)
    error = refusal(lambda: api.retrieve("batch_1"))
    assert (type(error), error.code) == (kind, code)
    assert sandbox.calls.count(RETRIEVE) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_kept(api: Api, sandbox: Sandbox, status: int) -> None:
    """The provider's own wish comes before ours."""
    sandbox.faults.add("status", route=RETRIEVE, status=status, retry_after=17)
    assert refusal(lambda: api.retrieve("batch_1")).after == 17


def test_a_wrong_key_pauses_the_account(make_api: Callable[..., Api]) -> None:
    """Every other call would be refused, too."""
    with Sandbox(api_keys=("another",)) as sandbox:
        error = refusal(make_api(sandbox.base_url).ping)
    assert isinstance(error, Paused)


# -- answers that make no sense ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "malformed"}, id="cut"),
        pytest.param({"kind": "status", "status": 200, "body": "<html>hello</html>"}, id="page"),
        pytest.param({"kind": "status", "status": 200, "body": ""}, id="empty"),
        pytest.param({"kind": "replace", "json": [1]}, id="list"),
        pytest.param({"kind": "replace", "json": {"object": "batch"}}, id="no-id"),
        pytest.param({"kind": "replace", "json": {"id": "batch_other", "status": "completed"}}, id="another-id"),
    ],
)
def test_nonsense_is_no_answer(api: Api, sandbox: Sandbox, fault: dict[str, Any]) -> None:
    """Reading it again may help; taking it for true would lose rows."""
    sandbox.faults.add(fault.pop("kind"), route=RETRIEVE, **fault)
    error = refusal(lambda: api.retrieve("batch_1"))
    assert (type(error), error.code) == (Unavailable, "nonsense")


def test_a_key_that_a_gateway_echoes_is_masked(api: Api, sandbox: Sandbox) -> None:
    """Not only in the message: the cause would print it, too."""
    sandbox.faults.add("status", route=RETRIEVE, status=401, message=f"Incorrect API key provided: Bearer {KEY}")
    assert "Bearer ***" in str(refusal(lambda: api.retrieve("batch_1")))


@pytest.mark.parametrize(
    "fault", [{"status": 405}, {"status": 400}, {"status": 501}, {"status": 404, "body": "<html>"}]
)
def test_a_server_that_only_gives_the_content_of_files_tells_no_size(
    api: Api, sandbox: Sandbox, fault: dict[str, Any]
) -> None:
    """The size is but a check; results must not wait for it for ever."""
    sandbox.faults.add("status", route="GET /v1/files/{id}", **fault)
    assert api.file_bytes("file-1") is None


def test_a_server_that_does_not_know_expiry_gets_the_file_without(api: Api, sandbox: Sandbox) -> None:
    """Compatible servers differ."""
    sandbox.faults.add("status", route="POST /v1/files", status=400, message="unknown field expires_after", times=1)
    file_id = upload(api)
    assert sandbox.files.get(file_id).expires_at is not None  # the sandbox' own
    assert sandbox.calls.count("POST /v1/files") == 2


@pytest.mark.parametrize("key", ["sk-\xe9", "sk-\n"])
def test_a_key_that_cannot_be_sent_is_said_at_once(key: str) -> None:
    """Cut from a page with a smart quote, say."""
    with pytest.raises(SettingsError, match="characters that no key has") as caught:
        Api(Account(api_key=SecretStr(key)))
    assert key not in str(caught.value)


@pytest.mark.parametrize("page", [{"object": "list"}, {"data": None}, {"data": [{}], "has_more": True}])
def test_a_nonsensical_list_is_not_an_empty_one(api: Api, sandbox: Sandbox, page: Any) -> None:
    """An empty list would let create call again."""
    sandbox.faults.add("replace", route="GET /v1/batches", json=page)
    assert isinstance(refusal(lambda: list(api.iter_batches(0.0))), Unavailable)


def test_a_list_that_does_not_advance_is_noticed(api: Api, sandbox: Sandbox) -> None:
    """It would go on for ever."""
    page = {"data": [{"id": "batch_1", "created_at": 5}], "has_more": True}
    sandbox.faults.add("replace", route="GET /v1/batches", json=page)
    assert isinstance(refusal(lambda: list(api.iter_batches(0.0))), Unavailable)
    assert sandbox.calls.count("GET /v1/batches") == 2


def test_any_field_of_a_batch_but_its_id_may_be_missing_or_odd() -> None:
    """The SDK validates nothing, so we do."""
    odd = {
        "id": "batch_1",
        "status": 7,
        "output_file_id": "",
        "created_at": True,
        "request_counts": {"total": "3", "completed": -1, "failed": None},
        "errors": {"data": [None, {"code": 5, "line": "x", "message": "m"}]},
        "metadata": {"a": 1, "b": "c"},
        "usage": {"total_tokens": 4, "input_tokens_details": {}},
    }
    found = parse_batch(odd)
    assert (found.status, found.output_file_id, found.created_at, found.counts.total) == (None, None, None, None)
    assert (found.metadata, found.usage, found.errors[0].message) == ({"b": "c"}, {"total_tokens": 4}, "m")
    assert parse_batch({"id": "batch_1"}) == Batch(id="batch_1")


# -- the wire ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_dropped_connection_is_no_answer(api: Api, sandbox: Sandbox, kind: str) -> None:
    """Asked again later, and not by the SDK."""
    sandbox.faults.add(kind, route=RETRIEVE)
    error = refusal(lambda: api.retrieve("batch_1"))
    assert (type(error), error.code) == (Unavailable, "provider_unavailable")
    assert sandbox.calls.count(RETRIEVE) == 1


def test_silence_is_no_answer(sandbox: Sandbox, make_api: Callable[..., Api]) -> None:
    """A control call has a short time-out."""
    sandbox.faults.add("delay", route=RETRIEVE, seconds=1.0)
    api = make_api(sandbox.base_url, control_seconds=0.1)
    assert isinstance(refusal(lambda: api.retrieve("batch_1")), Unavailable)


def test_a_refused_connection_sent_nothing(make_api: Callable[..., Api]) -> None:
    """So even a create is clear: not sent."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        api = make_api(f"http://user:secret-word@127.0.0.1:{port}/v1")
        for call in (lambda: api.retrieve("batch_1"), lambda: create(api, "file-1"), lambda: upload(api)):
            error = refusal(call)
            assert (type(error), error.code) == (Unavailable, "not_sent")
            assert str(error) == f"the provider cannot be reached at 127.0.0.1:{port}: Connection refused"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "127.0.0.1:1/v1", "http://[::1/v1"])
def test_an_address_that_cannot_work_is_a_matter_of_settings(make_api: Callable[..., Api], url: str) -> None:
    """A human must change it."""
    assert isinstance(refusal(lambda: make_api(url).ping()), SettingsError)


def test_a_base_url_without_its_v1_is_asked_after(sandbox: Sandbox, make_api: Callable[..., Api]) -> None:
    """A server answers the first call with no more than "Invalid URL"."""
    api = make_api(sandbox.base_url.removesuffix("/v1"))
    for call in (api.ping, lambda: upload(api), lambda: create(api, "file-1")):
        error = refusal(call)
        assert (error.code, str(error).endswith("; does BASE_URL lack its /v1?")) == (NO_API, True)
    assert "BASE_URL" not in str(refusal(lambda: api.retrieve("batch_1")))


def test_the_names_of_models_are_listed_up_to_a_number(sandbox: Sandbox, make_api: Callable[..., Api]) -> None:
    """A server may list anything."""
    api = make_api(sandbox.base_url)
    assert "gpt-4o-mini" in api.model_names(seconds=5.0, most=100)
    assert len(api.model_names(seconds=5.0, most=2)) == 2
    for body in ('{"data": null}', '{"data": [1, {"id": 7}, {"id": ""}]}', "[]"):
        sandbox.faults.add("status", route="GET /v1/models", status=200, body=body, times=1)
        with suppress(Unavailable):
            assert api.model_names(seconds=5.0, most=100) == []


# -- create, the paid call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "status", "status": 500}, id="500"),
        pytest.param({"kind": "status", "status": 503, "processed": True}, id="503-done"),
        pytest.param({"kind": "status", "status": 408}, id="408"),
        pytest.param({"kind": "status", "status": 502, "body": "<html>"}, id="502-page"),
        pytest.param({"kind": "status", "status": 404, "body": "<html>"}, id="404-page"),
        pytest.param({"kind": "drop_before"}, id="dropped-before"),
        pytest.param({"kind": "drop_after"}, id="dropped-after"),
        pytest.param({"kind": "delay_after", "seconds": 2.0}, id="timeout"),
        pytest.param({"kind": "malformed"}, id="malformed"),
        pytest.param({"kind": "status", "status": 200, "body": ""}, id="empty"),
        pytest.param({"kind": "replace", "json": {"status": "validating"}}, id="no-id"),
        pytest.param({"kind": "replace", "json": {"id": "b", "input_file_id": "file-other"}}, id="another-batch"),
        pytest.param({"kind": "status", "status": 409}, id="409"),
        pytest.param({"kind": "truncate", "route": CREATE, "bytes": 9}, id="cut-short"),
    ],
)
def test_a_create_without_a_clear_answer_is_unanswered_and_sent_once(
    sandbox: Sandbox, make_api: Callable[..., Api], fault: dict[str, Any]
) -> None:
    """Nobody repeats it but the pipeline, after it has looked."""
    file_id = upload(make_api(sandbox.base_url))
    api = make_api(sandbox.base_url, control_seconds=0.7)
    sandbox.faults.add(fault["kind"], **{"route": CREATE, **{k: v for k, v in fault.items() if k != "kind"}})
    assert isinstance(refusal(lambda: create(api, file_id)), AmbiguousResult)
    assert sandbox.calls.count(CREATE) == 1


def test_a_batch_with_another_input_file_is_the_answer_to_the_call(api: Api, sandbox: Sandbox) -> None:
    """Some gateways rewrite the ids of files; what a 200 to our call names is what it made."""
    file_id = upload(api)
    said = {"id": "batch_gw", "object": "batch", "status": "validating", "input_file_id": "file-other"}
    sandbox.faults.add("replace", route=CREATE, json=said)
    assert create(api, file_id).id == "batch_gw"


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        pytest.param({"kind": "replace", "json": {"id": "b7"}}, {"b7": True}, id="only-an-id"),
        pytest.param({"kind": "status", "status": 500, "body": '{"id":"b7","object":"batch"}'}, {"b7": True}, id="500"),
        pytest.param({"kind": "status", "status": 200, "body": '{"id":"b7","obj'}, {"b7": True}, id="half"),
        pytest.param({"kind": "status", "status": 409, "body": "batch_a1 exists"}, {"batch_a1": False}, id="409"),
        pytest.param({"kind": "status", "status": 400, "body": '{"batch_id":"b7"}'}, {"b7": False}, id="400"),
        pytest.param({"kind": "status", "status": 500, "body": '{"id":"req_1"}'}, {}, id="500-of-its-own"),
        pytest.param({"kind": "status", "status": 400, "body": '{"code":"batch_expired"}'}, {}, id="code"),
    ],
)
def test_an_id_that_an_unclear_answer_names_is_not_lost(
    api: Api, sandbox: Sandbox, fault: dict[str, Any], named: dict[str, bool]
) -> None:
    """Nobody calls again before it is read."""
    file_id = upload(api)
    sandbox.faults.add(fault["kind"], **{"route": CREATE, **{k: v for k, v in fault.items() if k != "kind"}})
    assert dict(refusal(lambda: create(api, file_id)).named) == named


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"status": 429, "retry_after": 3}, Unavailable),
        ({"status": 429, "code": "insufficient_quota"}, Paused),
        ({"status": 401}, Paused),
        ({"status": 400}, Refused),
        ({"status": 404}, Gone),
    ],
)
def test_a_create_that_is_clearly_refused_is_no_mystery(
    api: Api, sandbox: Sandbox, fault: dict[str, Any], kind: type[BatchpipeError]
) -> None:
    """No batch was made, so there is nothing to look for."""
    file_id = upload(api)
    sandbox.faults.add("status", route=CREATE, **fault)
    assert type(refusal(lambda: create(api, file_id))) is kind
    assert sandbox.calls.count(CREATE) == 1
    assert list(api.iter_batches(0.0)) == []


def test_a_full_queue_at_create_passes(api: Api, sandbox: Sandbox) -> None:
    """Refused at the door: later, the same again."""
    file_id = upload(api)
    sandbox.faults.add("token_limit", shape="create")
    error = refusal(lambda: create(api, file_id))
    assert (type(error), error.code) == (Unavailable, "token_limit_exceeded")


def test_a_full_queue_is_known_by_its_words_too(api: Api, sandbox: Sandbox) -> None:
    """Not every server sends the code."""
    file_id = upload(api)
    sandbox.faults.add("status", route=CREATE, status=400, message="Enqueued token limit reached for gpt-4o-mini.")
    assert refusal(lambda: create(api, file_id)).code == "token_limit_exceeded"


def test_one_batch_too_many_is_known_by_its_words(make_api: Callable[..., Api]) -> None:
    """And is no question of the request."""
    with Sandbox(batches_in_flight=1, rows_per_second=0.01) as strict:
        api = make_api(strict.base_url)
        file_id = upload(api)
        create(api, file_id)
        error = refusal(lambda: create(api, file_id))
    assert (type(error), error.code) == (Unavailable, "batch_limit_exceeded")
    assert said_batch_limit(error.message) == 1


def test_a_429_says_how_often_its_call_may_be_made(make_api: Callable[..., Api], sandbox: Sandbox) -> None:
    """In words, or in headers; those of tokens, which are of direct calls, are not read."""
    with Sandbox(uploads_per_minute=1, creations_per_hour=1, rows_per_second=0.01) as strict:
        api = make_api(strict.base_url)
        file_id = upload(api)
        create(api, file_id)
        found = [refusal(lambda: upload(api)), refusal(lambda: create(api, file_id))]
    assert [said_rate(error.message, {}) for error in found] == [Rate(1, 60), Rate(1, 3_600)]
    assert [said_rate("", error.limits) for error in found] == [Rate(1, 60), Rate(1, 3_600)]
    headers = {"X-RateLimit-Limit-Requests": "500", "X-RateLimit-Reset-Requests": "7m", "X-RateLimit-Limit-Tokens": "9"}
    sandbox.faults.add("status", route=CREATE, status=429, headers=headers, retry_after=12)
    api = make_api(sandbox.base_url)
    error = refusal(lambda: create(api, upload(api)))
    assert (said_rate(error.message, error.limits), error.after) == (Rate(500, 3_600), 12.0)
    assert "x-ratelimit-limit-tokens" not in error.limits


def test_extra_arguments_reach_the_provider(api: Api, sandbox: Sandbox) -> None:
    """Whatever the SDK knows of them."""
    expires = {"anchor": "created_at", "seconds": 3600}
    error = refusal(lambda: create(api, upload(api), output_expires_after={"anchor": "no", "seconds": 3600}))
    assert isinstance(error, Refused)
    assert create(api, upload(api), output_expires_after=expires).id


# -- transfers -----------------------------------------------------------------------------------------------------


class Counted(io.BytesIO):
    """A file that knows the largest block it was asked for."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        self.largest = max(self.largest, len(block))
        return block


def test_an_upload_is_streamed_and_exact(api: Api, sandbox: Sandbox) -> None:
    """Never the whole file in memory; name, purpose and expiry are told."""
    handle, checks = Counted(b"0123456789abcdef" * 65_536 * 3), list[int]()
    file_id = api.upload(handle, "batchpipe-job_x-0-1.jsonl", lambda: checks.append(1))
    record = sandbox.files.get(file_id).public(0.0)
    assert sandbox.files.content(file_id) == handle.getvalue()
    assert (record["filename"], record["purpose"]) == ("batchpipe-job_x-0-1.jsonl", "batch")
    assert record["expires_at"] - record["created_at"] == 1_209_600
    assert handle.largest <= 1 << 20
    assert len(checks) >= 3


def test_an_account_may_keep_its_uploads(sandbox: Sandbox, make_api: Callable[..., Api]) -> None:
    """Some servers do not know of expiry."""
    api = Api(Account(api_key=SecretStr(KEY), base_url=sandbox.base_url, file_expires_seconds=0))
    try:
        record = sandbox.files.get(upload(api)).public(0.0)
        assert record["expires_at"] - record["created_at"] != Account().file_expires_seconds  # the provider's own
    finally:
        api._client.close()


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "malformed"])
def test_an_upload_without_an_answer_may_be_repeated(api: Api, sandbox: Sandbox, kind: str) -> None:
    """It costs nothing."""
    sandbox.faults.add(kind, route="POST /v1/files", times=1)
    assert isinstance(refusal(lambda: upload(api)), Unavailable)
    assert upload(api)


@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_a_download_is_exact(api: Api, size: int) -> None:
    """An empty file, too."""
    file_id, sink = upload(api, b"x" * size), io.BytesIO()
    assert api.download(file_id, sink, nothing) == size
    assert sink.getvalue() == b"x" * size


def test_a_download_that_breaks_off_is_no_file(api: Api, sandbox: Sandbox) -> None:
    """The connection ends before the promised length."""
    file_id = upload(api, b"x" * 200_000)
    sandbox.faults.add("truncate")
    assert isinstance(refusal(lambda: api.download(file_id, io.BytesIO(), nothing)), Unavailable)


def test_a_download_that_looks_whole_tells_its_true_length(api: Api, sandbox: Sandbox) -> None:
    """Only the comparison with the file's size shows that it was cut."""
    file_id = upload(api, b"x" * 1_000)
    sandbox.faults.add("truncate", mode="clean", bytes=10)
    assert api.download(file_id, io.BytesIO(), nothing) == 10
    assert api.file_bytes(file_id) == 1_000


@pytest.mark.parametrize("stated", [None, "12", True, -1])
def test_a_size_that_is_none_is_not_compared(api: Api, sandbox: Sandbox, stated: Any) -> None:
    """Some servers tell no size."""
    sandbox.faults.add("replace", route="GET /v1/files/{id}", json={"id": "file-1", "bytes": stated})
    assert api.file_bytes("file-1") is None


def test_a_page_instead_of_a_file_is_not_gone(api: Api, sandbox: Sandbox) -> None:
    """A proxy's 404 would make paid rows missing for ever."""
    sandbox.faults.add("status", route=CONTENT, status=404, body="<html>", times=1)
    assert type(refusal(lambda: api.download("file-1", io.BytesIO(), nothing))) is Unavailable
    assert type(refusal(lambda: api.download("file-1", io.BytesIO(), nothing))) is Gone


# -- clients -------------------------------------------------------------------------------------------------------


def test_each_account_has_one_client() -> None:
    """A client costs 20 ms and a connection."""
    account = Account(api_key=SecretStr(KEY), base_url="http://127.0.0.1:1/v1")
    apis = Apis(Settings(_env_file=None, accounts={"a": account, "b": account}))
    assert apis("a") is apis("a") is not apis("b")
    with pytest.raises(SettingsError):
        apis("unknown")
    for name in ("a", "b"):
        apis(name)._client.close()
