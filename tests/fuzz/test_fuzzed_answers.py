"""The real Api and SDK against a server that answers anything at all: what comes is sound, or one of our errors.

Over 11,000 bad answers at TEST_SCALE=1; FUZZ_RANDOM (see ``shapes``) asks for others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import AmbiguousResult, BatchpipeError, Gone, Paused, Refused, Unavailable
from batchpipe.model.provider import Batch
from batchpipe.model.records import Problem, ShardRecord
from batchpipe.provider import Api
from batchpipe.store.records import decode, encode_changes, encode_record
from tests.fuzz.shapes import BATCH, DELETED, FILE, LIST, answers, broken, encoded, fuzzed
from tests.fuzz.wire import Answer, Request, Wire
from tests.size import SCALE

pytestmark = [pytest.mark.scaled, pytest.mark.timeout(600)]

KEY = "sk-fuzz-0123456789abcdef"
#: The SDK follows so many redirects at most; no call asks more often than that.
MOST_REQUESTS = 25


class Provider:
    """The real Api, and the server that it asks. ``answers`` go out in turn, over and over."""

    def __init__(self) -> None:
        self.wire = Wire()
        account = Account(api_key=SecretStr(KEY), base_url=f"{self.wire.url}/v1")
        self.api = Api(account, control_seconds=10.0, transfer_seconds=10.0)
        self.asked: list[Request] = []
        self.said: list[Answer] = []
        self.runaway = False
        self._answers: list[Answer] = []
        self._most = MOST_REQUESTS
        self.wire.answer = self._answer

    def will_say(self, *answers: Answer, most: int = MOST_REQUESTS) -> None:
        self.asked, self.said, self._answers, self._most = [], [], list(answers), most

    def _answer(self, request: Request) -> Answer:
        self.asked.append(request)
        if len(self.asked) > self._most:
            self.runaway = True
            return Answer(raw=b"")
        self.said.append(self._answers[(len(self.asked) - 1) % len(self._answers)])
        return self.said[-1]

    def close(self) -> None:
        self.api.close()
        self.wire.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()
    assert provider.wire.broken == []


def nothing() -> None:
    """A lease that is never lost."""


# -- what is sound -------------------------------------------------------------------------------------------------


def can_be_written(text: Any) -> bool:
    return isinstance(text, str) and text.encode(errors="replace").decode() == text


def assert_sound_text(text: Any) -> None:
    assert can_be_written(text)


def assert_sound_snapshot(snapshot: Batch) -> None:
    """Its fields are what they say, and a record takes them and gives them back."""
    again = msgspec.json.decode(msgspec.json.encode(snapshot), type=Batch)
    assert again == snapshot
    assert snapshot.id
    changes = {
        "batch_id": snapshot.id,
        "status": snapshot.status,
        "counts": snapshot.counts,
        "errors": snapshot.errors,
        "output_file_id": snapshot.output_file_id,
        "error_file_id": snapshot.error_file_id,
    }
    record = decode(ShardRecord, encode_record(ShardRecord(job="job_x", index=0).evolve(**changes)))
    assert {name: getattr(record, name) for name in changes} == changes


def assert_sound_error(error: BatchpipeError) -> None:
    """It can be recorded and told, names no endless pause, and does not tell the key."""
    assert_sound_text(error.code)
    assert error.code
    assert_sound_text(error.message)
    problem = Problem(code=error.code, message=error.message)
    for part in encode_changes({"trouble": problem}):
        part.encode()
    orjson.dumps({"code": error.code, "message": error.message})
    assert KEY not in error.message
    after, status = getattr(error, "after", None), getattr(error, "status", None)
    assert after is None or (isinstance(after, float) and math.isfinite(after) and 0 <= after <= 86_400)
    assert status is None or isinstance(status, int)


def assert_sound_id(value: Any) -> None:
    assert_sound_text(value)
    assert value


def assert_sound_size(value: Any) -> None:
    assert value is None or (type(value) is int and value >= 0)


def assert_sound_list(found: list[Batch]) -> None:
    for snapshot in found:
        assert_sound_snapshot(snapshot)


def assert_nothing(value: Any) -> None:
    assert value is None


# -- one call, one answer ------------------------------------------------------------------------------------------


def upload(api: Api) -> str:
    return api.upload(io.BytesIO(b'{"custom_id":"r0"}\n'), "batchpipe-job_x-0-1.jsonl", nothing)


def download(api: Api) -> int:
    sink = io.BytesIO()
    told = api.download("file-1", sink, nothing)
    assert told == len(sink.getvalue())
    return told


def create(api: Api) -> Batch:
    return api.create_batch(
        endpoint="/v1/chat/completions",
        completion_window="24h",
        input_file_id="file-1",
        metadata={"batchpipe_key": "job_x:0:1"},
        extra={},
    )


@dataclass(frozen=True)
class Call:
    """A method of Api: what is asked, what the true answer is, what may come of any answer."""

    ask: Callable[[Api], Any]
    true: Any
    sound: Callable[[Any], None]
    errors: tuple[type[BatchpipeError], ...]
    cases: int


CALLS = {
    "upload": Call(upload, FILE, assert_sound_id, (Unavailable, Paused, Refused, Gone), 900),
    "file_bytes": Call(lambda api: api.file_bytes("file-1"), FILE, assert_sound_size, (Unavailable, Paused), 1_000),
    "download": Call(download, FILE, assert_sound_size, (Unavailable, Paused, Refused, Gone), 1_000),
    "delete_file": Call(
        lambda api: api.delete_file("file-1"), DELETED, assert_nothing, (Unavailable, Paused, Refused, Gone), 700
    ),
    "retrieve": Call(
        lambda api: api.retrieve("batch_1"), BATCH, assert_sound_snapshot, (Unavailable, Paused, Refused, Gone), 1_800
    ),
    "cancel_batch": Call(
        lambda api: api.cancel_batch("batch_1"),
        BATCH,
        assert_sound_snapshot,
        (Unavailable, Paused, Refused, Gone),
        1_000,
    ),
    "iter_batches": Call(
        lambda api: list(api.iter_batches(0.0)),
        LIST,
        assert_sound_list,
        (Unavailable, Paused, Refused, Gone),
        1_200,
    ),
    "batch_page": Call(
        lambda api: api.batch_page().batches,
        LIST,
        assert_sound_list,
        (Unavailable, Paused, Refused, Gone),
        1_200,
    ),
    "ping": Call(lambda api: api.ping(), LIST, assert_nothing, (Unavailable, Paused, Refused, Gone), 500),
}


def outcome(provider: Provider, call: Callable[[Api], Any], *answers: Answer, most: int = MOST_REQUESTS) -> Any:
    """What a call gives or, of our errors, raises."""
    provider.will_say(*answers, most=most)
    try:
        found = call(provider.api)
    except BatchpipeError as error:
        found = error
    provider.wire.settle()
    assert not provider.runaway, "it asks for ever"
    if isinstance(found, BatchpipeError):
        assert_sound_error(found)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_every_answer_is_a_sound_result_or_one_of_our_errors(provider: Provider, name: str) -> None:
    """Whatever a server may say or leave unsaid; and the call comes to an end."""
    call, cases = CALLS[name], [0]

    @fuzzed(call.cases)
    @given(answers(call.true))
    def check(answer: Answer) -> None:
        cases[0] += 1
        found = outcome(provider, call.ask, answer)
        if isinstance(found, BatchpipeError):
            assert type(found) in call.errors
        else:
            call.sound(found)
        if name in ("retrieve", "cancel_batch") and not isinstance(found, BatchpipeError):
            assert found.id == "batch_1"

    check()
    assert cases[0] >= call.cases * SCALE


# -- the paid call -------------------------------------------------------------------------------------------------


def is_clear_no(answer: Answer, error: BatchpipeError) -> bool:
    """A 4xx in the provider's name: neither a time-out nor a page of somebody on the way."""
    message = answer.message()
    status = int(message[9:12]) if message[:9] == b"HTTP/1.1 " and message[9:12].isdigit() else 0
    return 400 <= status < 500 and status != 408 and (status != 404 or isinstance(error, Gone | Paused))


def test_every_answer_to_a_create_call_is_sound(provider: Provider) -> None:
    """A batch with an id, or one of the errors that the create step knows what to do with."""
    cases, wanted = [0], 700

    @fuzzed(wanted)
    @given(answers({**BATCH, "status": "validating"}))
    def check(answer: Answer) -> None:
        cases[0] += 1
        found = outcome(provider, create, answer)
        if isinstance(found, Batch):
            assert_sound_snapshot(found)
            assert found.input_file_id in (None, "file-1")
        else:
            assert type(found) in (AmbiguousResult, Unavailable, Paused, Refused, Gone)

    check()
    assert cases[0] >= wanted * SCALE


def test_only_a_4xx_of_the_provider_says_that_no_batch_was_made(provider: Provider) -> None:
    """After anything else one may have been made; and the call goes out once, whatever is answered."""
    cases, wanted = [0], 1_000

    @fuzzed(wanted, shrink=False)
    @given(answers({**BATCH, "status": "validating"}))
    def check(answer: Answer) -> None:
        cases[0] += 1
        found = outcome(provider, create, answer)
        if not isinstance(found, Batch | AmbiguousResult):
            assert is_clear_no(answer, found)
        assert [request.method for request in provider.asked].count("POST") == 1

    check()
    assert cases[0] >= wanted * SCALE


_QUOTA = encoded({"error": {"code": "insufficient_quota"}})


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(304), id="304"),
        pytest.param(Answer(399, body=b"{}"), id="399"),
        pytest.param(Answer(raw=b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n"), id="101"),
        pytest.param(Answer(500, body=_QUOTA), id="500-of-quota"),
        pytest.param(Answer(408, body=_QUOTA), id="408-of-quota"),
        pytest.param(Answer(404, body=b"<html>insufficient_quota"), id="404-page-of-quota"),
        pytest.param(Answer(303, ((b"Location", b"/v1/batches"),)), id="303-to-itself"),
        pytest.param(Answer(303, ((b"Location", b"http://127.0.0.1:1/"),)), id="303-nowhere"),
        pytest.param(Answer(303, ((b"Location", b"ftp://127.0.0.1/"),)), id="303-to-no-http"),
    ],
)
def test_what_is_no_clear_answer_to_a_create_call(provider: Provider, answer: Answer) -> None:
    """The batch may have been made: the call must not be withdrawn."""
    assert type(outcome(provider, create, answer)) is AmbiguousResult


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_does_not_repeat_a_create_call(provider: Provider, status: int) -> None:
    """It is sent once: what stands between may have passed it on."""
    found = outcome(provider, create, Answer(status, ((b"Location", b"/v1/batches"),)))
    assert (type(found), len(provider.asked)) == (AmbiguousResult, 1)


# -- shapes that had been mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 300, 400])
def test_an_address_that_is_none_in_an_answer_to_a_create_call_names_no_batch(provider: Provider, status: int) -> None:
    """``urlsplit`` raises for it."""
    found = outcome(provider, create, Answer(status, ((b"Location", b"http://[::1"),), b"{}"))
    assert type(found) is (Refused if status == 400 else AmbiguousResult)


@pytest.mark.parametrize("charset", [b"hex", b"rot13", b"undefined", b"idna", b"punycode", b"utf-16", b"zip"])
def test_an_error_page_in_an_odd_charset_is_an_error_of_its_status(provider: Provider, charset: bytes) -> None:
    """The page of a gateway; the words do not matter."""
    said = Answer(502, ((b"Content-Type", b"text/html; charset=" + charset),), b"\x80<html>{}")
    assert type(outcome(provider, CALLS["retrieve"].ask, said)) is Unavailable


@pytest.mark.parametrize(
    "value", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "1 Jan 2020 00:00:00 +9999999999999"]
)
def test_a_retry_after_beyond_all_time_names_no_pause(provider: Provider, value: str) -> None:
    """It is a wish, and a header of theirs."""
    said = Answer(503, ((b"Retry-After", value.encode()),), b"{}")
    assert outcome(provider, CALLS["retrieve"].ask, said).after is None


@pytest.mark.parametrize("field", ["message", "code"])
def test_an_error_in_half_letters_can_be_recorded(provider: Provider, field: str) -> None:
    """Neither Redis nor a file takes them: the turn would end in an exception."""
    said = Answer(400, body=b'{"error": {"%s": "\\ud800"}}' % field.encode())
    assert type(outcome(provider, CALLS["retrieve"].ask, said)) is Refused


@pytest.mark.parametrize("location", [b"ftp://127.0.0.1/x", b"file:///x"])
def test_a_redirect_to_where_no_http_leads_is_no_mistake_of_the_settings(provider: Provider, location: bytes) -> None:
    """The address of the account is good: somebody on the way is wrong."""
    found = outcome(provider, CALLS["retrieve"].ask, Answer(302, ((b"Location", location),)))
    assert type(found) is Unavailable


def test_a_cookie_does_not_spoil_the_calls_to_come() -> None:
    """No cookie is of use to us; one with odd letters would end every later call of this process."""
    provider = Provider()
    try:
        outcome(provider, CALLS["ping"].ask, Answer(502, ((b"Set-Cookie", b"a=\xc3\xa9"),)))
        proper = Answer(body=encoded(BATCH))
        assert outcome(provider, CALLS["retrieve"].ask, proper).id == "batch_1"
        assert "cookie" not in provider.asked[-1].headers
    finally:
        provider.close()


@pytest.mark.parametrize("name", [".", "..", "x" * 70_000, "%2e"])
def test_an_id_that_no_address_can_hold_is_no_id(provider: Provider, name: str) -> None:
    """A batch that cannot be asked for again is as good as unanswered."""
    assert type(outcome(provider, create, Answer(body=encoded({**BATCH, "id": name})))) is AmbiguousResult
    assert type(outcome(provider, upload, Answer(body=encoded({**FILE, "id": name})))) is Unavailable


def test_any_other_id_can_be_asked_for(provider: Provider) -> None:
    """Whatever the provider calls its batches and files."""

    @fuzzed(300)
    @given(st.text(min_size=1, max_size=20).filter(lambda name: name.strip(".") and "%2e" not in name.lower()))
    def check(name: str) -> None:
        said = Answer(body=encoded({**BATCH, "id": name}))
        assert outcome(provider, lambda api: api.retrieve(name), said).id == name
        assert outcome(provider, lambda api: api.cancel_batch(name), said).id == name
        assert outcome(provider, lambda api: api.download(name, io.BytesIO(), nothing), said) == len(said.body)

    check()


# -- lists ---------------------------------------------------------------------------------------------------------


@st.composite
def _pages(draw: st.DrawFn) -> list[Any]:
    """Pages that name each other, or themselves, as the next for ever."""
    names = st.sampled_from(["batch_a", "batch_b", "batch_c", "batch_d"])
    dates = st.sampled_from([None, "soon", 2**40, 1_700_000_000, 1e300, "drop"])
    pages = []
    for _ in range(draw(st.integers(1, 4))):
        entries = []
        for name in draw(st.lists(names, max_size=4)):
            entry = {"id": name, "status": "in_progress", "created_at": draw(dates)}
            entries.append({key: value for key, value in entry.items() if value != "drop"})
        more = draw(st.sampled_from([True, True, True, "yes", 1, [0], {"a": 1}, "false"]))
        page: Any = {"object": "list", "data": entries, "has_more": more, "last_id": "batch_z"}
        pages.append(draw(broken(page)) if draw(st.integers(0, 5)) == 0 else page)
    return pages


def test_a_list_that_goes_in_circles_comes_to_an_end(provider: Provider) -> None:
    """With the same ids for ever, with a few that take turns, with pages that are empty."""
    cases, wanted = [0], 1_000

    @fuzzed(wanted, shrink=False)
    @given(_pages())
    def check(pages: list[Any]) -> None:
        cases[0] += 1
        said = [Answer(body=encoded(page)) for page in pages]
        found = outcome(provider, lambda api: list(api.iter_batches(1_000.0)), *said)
        if isinstance(found, BatchpipeError):
            assert type(found) is Unavailable
        else:
            assert_sound_list(found)

    check()
    assert cases[0] >= wanted * SCALE


def test_a_list_is_not_whole_while_it_says_that_there_is_more(provider: Provider) -> None:
    """An end that is none would be taken for an empty look, and the rows paid a second time."""
    said = Answer(body=encoded({"data": [], "has_more": True}))
    assert isinstance(outcome(provider, lambda api: list(api.iter_batches(0.0)), said), Unavailable)
