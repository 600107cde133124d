"""One line at a time: what is taken, what is refused and in which words, and what answers mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.errors import InvalidInput
from batchpipe.model.answers import OutcomeState, add_usage, error_line, read_answer
from batchpipe.model.requests import Request, check_request, custom_id

CHAT = "/v1/chat/completions"


def request(**changes: Any) -> bytes:
    """A good request; a change to None leaves the field out."""
    row = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m", "messages": []}}
    row |= changes
    return json.dumps({name: value for name, value in row.items() if value is not None}).encode()


def refusal(line: bytes, number: int = 1, endpoint: str = CHAT) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        check_request(line, number, endpoint)
    assert number == caught.value.line
    return caught.value


def answer(**changes: Any) -> bytes:
    row = {"id": "x", "custom_id": "a", "response": {"status_code": 200, "body": {}}, "error": None}
    return json.dumps(row | changes).encode()


class TestCheckRequest:
    def test_a_good_request_gives_its_id_and_model(self) -> None:
        """What batchpipe has to know comes out; the rest is the provider's business."""
        assert Request("a", "m", 1) == check_request(request(), 1, CHAT)

    @pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"  \n"])
    def test_the_end_of_the_line_does_not_matter(self, end: bytes) -> None:
        """Windows line ends and trailing blanks are white space of JSON."""
        assert check_request(request() + end, 3, CHAT).custom_id == "a"

    def test_text_of_any_language_is_taken(self) -> None:
        """Raw UTF-8, also the separators that other tools take for line ends, is data."""
        line = request(custom_id="é\u2028\u0085😀").decode().encode()
        raw = json.dumps(json.loads(line), ensure_ascii=False).encode()
        assert check_request(raw, 1, CHAT).custom_id == "é\u2028\u0085😀"

    def test_a_long_id_is_data(self) -> None:
        """No provider documents a limit that holds for all."""
        assert check_request(request(custom_id="x" * 5000), 1, CHAT).custom_id == "x" * 5000

    def test_of_repeated_keys_the_last_counts(self) -> None:
        """As nearly every JSON reader has it."""
        line = request().replace(b'"custom_id": "a"', b'"custom_id": "a", "custom_id": "b"')
        assert check_request(line, 1, CHAT).custom_id == "b"

    @pytest.mark.parametrize(
        ("line", "field", "words"),
        [
            (b"\xef\xbb\xbf" + request(), None, "byte order mark"),
            (b"", None, "blank"),
            (b"  \r\n", None, "blank"),
            (b'{"custom_id": "\xff"}', None, "UTF-8 (byte 16)"),
            (request().replace(b'"messages": []', b'"x": "\xff"'), None, "not valid UTF-8"),
            (b"{'custom_id': 1}", None, "column 2"),
            (request()[:-1], None, "is truncated: the row ends within its JSON, after "),
            (request()[:-20], None, "is truncated"),
            (request()[:20], None, "is truncated"),
            (request()[:20] + b"\n", None, "is truncated: the row ends within its JSON, after 20 characters"),
            (request() + b"{}", None, "not JSON"),
            (request().replace(b"[]", b"NaN"), None, "NaN"),
            (request().replace(b"[]", b"-Infinity"), None, "-Infinity"),
            (request().replace(b"[]", b'"\\ud800"'), None, "surrogate"),
            (request().replace(b"[]", b"[" * 100_000 + b"]" * 100_000), None, "deep"),
            (b"[1, 2]", None, "a JSON array"),
            (b'"text"', None, "a string, not an object"),
            (request(custom_id=None), "custom_id", "is missing"),
            (request(custom_id=7), "custom_id", "a number"),
            (request(custom_id=""), "custom_id", "empty"),
            (request(method=None), "method", "missing"),
            (request(method="GET"), "method", '"GET"'),
            (request(url="/v1/responses"), "url", "--endpoint /v1/responses"),
            (request(url="/v1/completions"), "url", "--endpoint /v1/completions"),
            (request(url="/chat/completions"), "url", "--endpoint /chat/completions"),
            (request(url="/v1/chat/completion"), "url", f'"{CHAT}"; one of the two is mistyped'),
            (request(url=None), "url", CHAT),
            (request(url=""), "url", CHAT),
            (request(body=None), "body", "missing"),
            (request(body=[]), "body", "a list"),
            (request(body={}), "body.model", "missing"),
            (request(body={"model": ""}), "body.model", "name a model"),
            (request(body={"model": 5}), "body.model", "a number"),
            (request(body={"model": "m", "stream": True}), "body.stream", "cannot stream"),
        ],
    )
    def test_a_bad_request_is_refused_in_words_that_help(self, line: bytes, field: str | None, words: str) -> None:
        """Line, field and reason are told, as attributes and in the message."""
        error = refusal(line)
        assert (field, True) == (error.field, words in str(error))
        assert str(error).startswith("line 1: ")

    def test_a_byte_order_mark_is_named_on_the_first_line_only(self) -> None:
        """Elsewhere it is an orphan character."""
        assert "byte order mark" not in str(refusal(b"\xef\xbb\xbf" + request(), 2))

    def test_stream_false_is_taken(self) -> None:
        """It says what a batch does anyway."""
        assert check_request(request(body={"model": "m", "stream": False}), 1, CHAT)

    def test_numbers_beyond_64_bits_are_legal(self) -> None:
        """They are the provider's to judge."""
        line = request().replace(b"[]", b"[1e999, 123456789012345678901234567890]")
        assert check_request(line, 1, CHAT).custom_id == "a"

    @pytest.mark.parametrize("endpoint", ["/v1/moderations", "/v1/images/generations", "/v1/videos"])
    def test_some_endpoints_choose_the_model_themselves(self, endpoint: str) -> None:
        """There a row without a model is good, and one with a wrong one is not."""
        assert check_request(request(url=endpoint, body={}), 1, endpoint).model is None
        assert refusal(request(url=endpoint, body={"model": ""}), 1, endpoint).field == "body.model"

    @pytest.mark.parametrize(
        ("value", "count"), [("text", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3], [4]], 3)]
    )
    def test_embedding_inputs_are_counted(self, value: Any, count: int) -> None:
        """Texts and token lists; a flat list of tokens is one input."""
        url = "/v1/embeddings"
        assert check_request(request(url=url, body={"model": "m", "input": value}), 1, url).inputs == count

    @pytest.mark.parametrize("value", [None, 5, {}, [], ["a"] * 50_001])
    def test_embeddings_need_an_input_that_fits(self, value: Any) -> None:
        """Missing, of a wrong kind, empty or more than a batch takes."""
        url = "/v1/embeddings"
        body = {"model": "m"} if value is None else {"model": "m", "input": value}
        assert refusal(request(url=url, body=body), 4, url).field == "body.input"

    @given(st.binary(max_size=80))
    def test_no_bytes_lead_to_anything_but_invalid_input(self, line: bytes) -> None:
        """Whatever somebody feeds in, the answer is an error with a line number."""
        refusal(line, 2)

    @given(st.text(min_size=1), st.text(min_size=1, max_size=200))
    def test_every_id_and_model_come_back(self, name: str, model: str) -> None:
        """However they are spelled in JSON."""
        for ascii_only in (True, False):
            row = {"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": model}}
            line = json.dumps(row, ensure_ascii=ascii_only).encode()
            assert (name, model) == (custom_id(line), check_request(line, 1, CHAT).model)


class TestReadAnswer:
    def test_an_answer_with_status_200_and_no_error_is_ok(self) -> None:
        """The parts come back as the provider's own bytes."""
        found = read_answer(b'{"custom_id":"a","response":{"status_code": 200, "body": {"x": 1}}}\n')
        assert (found.ok, found.status_code, found.error) == (True, 200, None)
        assert found.response == b'{"status_code": 200, "body": {"x": 1}}'

    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            ({"response": None, "error": {"code": "batch_expired", "message": "late"}}, None),
            ({"response": {"status_code": 400, "body": {"error": {}}}}, 400),
            ({"response": {"status_code": 0, "body": None}}, 0),
            ({"response": {"status_code": 200, "body": {}}, "error": {"code": "x"}}, 200),
            ({"response": None}, None),
            ({"response": {"status_code": "201"}}, 201),
            ({"response": {"status_code": True}}, None),
            ({"response": "200"}, None),
        ],
    )
    def test_everything_else_is_not_ok(self, changes: dict[str, Any], status: int | None) -> None:
        """Errors, other statuses (0 was seen), nothing at all."""
        found = read_answer(answer(**changes))
        assert (False, status) == (found.ok, found.status_code)

    @pytest.mark.parametrize(
        "line",
        [b"", b"[]", b"{}", b'{"custom_id": 5}', b'{"custom_id": null}', answer()[:-5], b'{"custom_id":"\xff"}'],
    )
    def test_a_damaged_line_is_a_value_error(self, line: bytes) -> None:
        """Then the file was cut and is fetched again."""
        with pytest.raises(ValueError, match="not a line"):
            read_answer(line)

    def test_tokens_come_in_two_spellings(self) -> None:
        """Chat completions and responses say the same with other words."""
        chat = {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 3},
        }
        responses = {
            "input_tokens": 5,
            "output_tokens": 7,
            "total_tokens": 12,
            "input_tokens_details": {"cached_tokens": 2},
            "output_tokens_details": {"reasoning_tokens": 3},
        }
        expected = {
            "input_tokens": 5,
            "output_tokens": 7,
            "total_tokens": 12,
            "cached_tokens": 2,
            "reasoning_tokens": 3,
        }
        for usage in (chat, responses):
            line = answer(response={"status_code": 200, "body": {"usage": usage}})
            assert expected == read_answer(line).usage

    @pytest.mark.parametrize("usage", [None, [], "x", {}, {"prompt_tokens": None, "total_tokens": "9"}])
    def test_odd_usage_is_none_at_all(self, usage: Any) -> None:
        """A row is not damaged because its tokens are not told."""
        found = read_answer(answer(response={"status_code": 200, "body": {"usage": usage}}))
        assert (found.ok, found.usage) == (True, {})

    def test_tokens_add_up(self) -> None:
        """Names that only some rows have are kept."""
        total = {"input_tokens": 1}
        add_usage(total, {"input_tokens": 2, "cached_tokens": 3})
        assert total == {"input_tokens": 3, "cached_tokens": 3}


class TestErrorLine:
    def test_it_has_five_keys_in_this_order(self) -> None:
        """Programs read them, and people too."""
        line = error_line('a"b', OutcomeState.MISSING, 2, None, None)
        row = json.loads(line)
        assert list(row) == ["custom_id", "outcome", "attempts", "response", "error"]
        assert list(row.values()) == ['a"b', "missing", 2, None, None]

    def test_the_providers_parts_go_in_as_they_are(self) -> None:
        """Not a byte of them changes."""
        line = error_line("é", OutcomeState.FAILED, 1, b'{"status_code": 400 }', b'{"code":"x"}')
        assert b'"response":{"status_code": 400 },"error":{"code":"x"}}' in line
        assert json.loads(line)["custom_id"] == "é"
