"""Each fault, as a client sees it."""

from __future__ import annotations

import json
import time

import httpx2
import openai
import pytest

from batchpipe.model.answer_checks import AnswerCheck
from batchpipe.model.answer_text import said_in
from batchpipe.sandbox import Fault

RETRIEVE = "GET /v1/batches/{id}"
CREATE = "POST /v1/batches"
CONTENT = "GET /v1/files/{id}/content"


def test_a_status_fault_answers_an_error_so_many_times(client, sandbox):
    """Status, code, message and retry-after are as told; `times` and `after` bound it."""
    fault = sandbox.faults.add(
        "status",
        route="GET /v1/batches",
        status=429,
        code="rate_limited",
        message="slow down",
        retry_after=7,
        times=2,
        after=1,
    )
    client.batches.list()
    for _ in range(2):
        with pytest.raises(openai.RateLimitError, match="slow down") as caught:
            client.batches.list()
    client.batches.list()

    assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("rate_limited", "7")
    assert (fault.seen, fault.hits) == (4, 2)


def test_a_status_fault_may_answer_something_that_is_not_json(client, sandbox):
    """As a proxy in between does."""
    sandbox.faults.add("status", status=502, body="<html>bad gateway</html>")

    with pytest.raises(openai.InternalServerError) as caught:
        client.batches.list()
    assert caught.value.response.text == "<html>bad gateway</html>"


def test_a_status_fault_can_hide_that_the_request_was_carried_out(api, sandbox, rows):
    """The nasty 500: the batch exists all the same."""
    sandbox.faults.add("status", route=CREATE, status=500, processed=True)

    with pytest.raises(openai.InternalServerError):
        api.create(rows(1))
    assert len(sandbox.batches.all()) == 1


@pytest.mark.parametrize(
    ("fault", "created"),
    [(Fault("drop_before"), 0), (Fault("drop_after"), 1), (Fault("status", status=500), 0)],
)
def test_a_dropped_call_looks_the_same_whether_it_was_carried_out_or_not(api, sandbox, rows, fault, created):
    """drop_before does nothing, drop_after creates the batch; the client cannot tell."""
    rows_id = api.upload(rows(1))
    sandbox.faults.add(fault)

    error = openai.InternalServerError if fault.kind == "status" else openai.APIConnectionError
    with pytest.raises(error):
        api.client.batches.create(input_file_id=rows_id, endpoint="/v1/chat/completions", completion_window="24h")

    assert len(sandbox.batches.all()) == created
    if fault.kind != "status":
        assert [call.status for call in sandbox.calls][-1] is None


def test_a_large_upload_can_be_dropped(api, sandbox):
    """The connection breaks in the middle of sending."""
    sandbox.faults.add("drop_before", route="POST /v1/files", times=1)
    with pytest.raises(openai.APIConnectionError):
        api.upload(b"x" * 5_000_000)
    assert api.upload(b"x" * 5_000_000)


def test_a_delay_comes_before_the_work_and_a_late_answer_after_it(api, sandbox, rows):
    """Both time out; only the second has created a batch."""
    file_id = api.upload(rows(1))
    short = api.client.with_options(timeout=0.2)
    made = []
    for kind in ("delay", "delay_after"):
        sandbox.faults.add(kind, route=CREATE, seconds=0.6, times=1)
        with pytest.raises(openai.APITimeoutError):
            short.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        made.append(len(sandbox.batches.all()))

    assert made == [0, 1]


def test_a_delay_only_delays(client, sandbox):
    """Without a time-out the answer comes."""
    sandbox.faults.add("delay", seconds=0.2)
    began = time.monotonic()
    assert client.batches.list().data == []
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("size", [{"fraction": 0.25}, {"bytes": 250}])
def test_a_short_download_breaks_off(api, client, sandbox, size):
    """Content-Length promises more than comes."""
    file_id = api.upload(b"x" * 1000)
    sandbox.faults.add("truncate", mode="short", **size)

    with client.files.with_streaming_response.content(file_id) as response:
        got: list[bytes] = []
        with pytest.raises(httpx2.RemoteProtocolError):
            got.extend(response.iter_bytes())
    assert len(b"".join(got)) == 250


@pytest.mark.parametrize("size", [{"fraction": 0.25}, {"bytes": 250}])
def test_a_clean_cut_looks_whole(api, client, sandbox, size):
    """Nothing on the wire tells; only the file's own size does."""
    file_id = api.upload(b"x" * 1000)
    sandbox.faults.add("truncate", mode="clean", times=1, **size)

    assert len(client.files.content(file_id).content) == 250
    assert len(client.files.content(file_id).content) == client.files.retrieve(file_id).bytes == 1000


def test_a_large_download_can_be_cut(api, client, sandbox):
    """Also beyond the first buffers."""
    file_id = api.upload(b"x" * 3_000_000)
    sandbox.faults.add("truncate", mode="short", bytes=2_000_001)
    with pytest.raises(openai.APIConnectionError) as caught:
        client.files.content(file_id)
    assert "received 2000001 bytes" in str(caught.value.__cause__)


def test_a_malformed_answer_is_a_200_after_the_work(api, client, sandbox, rows):
    """Broken JSON, and the batch exists."""
    sandbox.faults.add("malformed", route=CREATE)
    with pytest.raises(json.JSONDecodeError):
        api.create(rows(1))
    assert len(sandbox.batches.all()) == 1


def test_an_answer_can_be_replaced(client, sandbox):
    """Any document instead of the real one."""
    sandbox.faults.add("replace", route=RETRIEVE, json={"id": "batch_x", "status": "weird"})

    assert client.batches.retrieve("batch_x").status == "weird"


def test_a_new_batch_can_be_hidden_from_the_list_for_a_while(api, client, sandbox, rows):
    """A list that lags behind; retrieve knows the batch."""
    sandbox.faults.add("hide_from_list", seconds=100, times=1)
    hidden, shown = api.create(rows(1)).id, api.create(rows(1)).id

    assert [batch.id for batch in client.batches.list()] == [shown]
    assert client.batches.retrieve(hidden).id == hidden
    sandbox.clock.advance(101)
    assert [batch.id for batch in client.batches.list()] == [shown, hidden]


def test_a_batch_that_has_ended_can_keep_its_file_ids_back_for_a_while(api, client, sandbox, rows):
    """Its counts say already that all rows are answered."""
    sandbox.faults.add("file_id_lags", seconds=40)
    batch = api.create(rows(3))
    sandbox.batches.wait(batch.id)

    shown = client.batches.retrieve(batch.id)
    assert (shown.status, shown.request_counts.completed, shown.output_file_id) == ("completed", 3, None)
    assert client.batches.list().data[0].output_file_id is None
    sandbox.clock.advance(41)
    assert client.batches.retrieve(batch.id).output_file_id is not None


def test_a_result_file_can_grow_for_a_while(api, client, sandbox, rows):
    """Size and content agree, and each line is whole: only the number of lines tells."""
    sandbox.faults.add("file_lags", seconds=40, fraction=0.5)
    batch = api.create(rows(4))
    file_id = sandbox.batches.wait(batch.id)["output_file_id"]

    part = client.files.content(file_id).read()
    assert len(part.splitlines()) in (1, 2)
    assert (part[-1:], client.files.retrieve(file_id).bytes) == (b"\n", len(part))
    sandbox.clock.advance(41)
    assert len(client.files.content(file_id).read().splitlines()) == 4
    assert client.files.retrieve(file_id).bytes > len(part)


def test_two_projects_can_become_one(api, client, sandbox, rows):
    """What a person does whose key was another project's for a while: from then on one key sees both."""
    batch = api.create(rows(1))
    other = client.with_options(project="proj_other")
    assert other.batches.list().data == []

    sandbox.join_projects("proj_other")
    assert [seen.id for seen in other.batches.list()] == [batch.id]
    assert other.files.retrieve(batch.input_file_id).id == batch.input_file_id


def test_it_knows_which_files_a_key_of_another_project_did_not_see(api, client, sandbox, rows):
    """Such a key could not delete them."""
    sandbox.faults.add("stuck")  # else a batch may end in between, and has a file of its own
    files = [api.create(rows(1)).input_file_id for _ in range(2)]
    other = client.with_options(project="proj_other")
    with pytest.raises(openai.NotFoundError):
        other.files.delete(files[0])
    assert sandbox.files.hidden == {files[0]}
    assert other.files.list().data == []
    assert sandbox.files.hidden == set(files)


def test_metadata_can_be_kept_back(api, client, sandbox, rows):
    """Some providers do not echo it. Here only in the list."""
    batch = api.create(rows(1), metadata={"a": "b"})
    sandbox.faults.add("no_metadata", route="GET /v1/batches")

    assert client.batches.list().data[0].metadata is None
    assert client.batches.retrieve(batch.id).metadata == {"a": "b"}


def test_the_token_limit_fails_a_batch_in_validation(api, sandbox, rows):
    """The first shape; another batch from the same file then works."""
    sandbox.faults.add("token_limit", times=1)
    batch = api.run(rows(2))

    assert (batch.status, batch.errors.data[0].code) == ("failed", "token_limit_exceeded")
    assert "Enqueued token limit reached for gpt-4o-mini" in batch.errors.data[0].message
    assert sandbox.ledger.rows() == []
    again = api.client.batches.create(
        input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert api.wait(again).status == "completed"


def test_the_token_limit_can_refuse_the_create(api, sandbox, rows):
    """The second shape: no batch at all."""
    sandbox.faults.add("token_limit", shape="create")
    with pytest.raises(openai.BadRequestError) as caught:
        api.create(rows(1))
    assert (caught.value.code, sandbox.batches.all()) == ("token_limit_exceeded", [])


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({}, 500, None),
        ({"status": 429, "code": "rate_limit_exceeded"}, 429, "rate_limit_exceeded"),
        ({"status": 400, "message": "no"}, 400, None),
    ],
)
def test_rows_can_fail(api, sandbox, rows, options, status, code):
    """They go to the error file as the model's answer, and are not billed."""
    sandbox.faults.add("row_fails", custom_id="^r[13]$", **options)
    batch = api.run(rows(5))

    assert batch.request_counts.model_dump() == {"total": 5, "completed": 3, "failed": 2}
    lines = api.lines(batch.error_file_id)
    assert {line["custom_id"] for line in lines} == {"r1", "r3"}
    assert {line["response"]["status_code"] for line in lines} == {status}
    assert {line["response"]["body"]["error"]["code"] for line in lines} == {code}
    assert set(sandbox.ledger.billed) == {"r0", "r2", "r4"}


def test_rows_can_time_out(api, sandbox, rows):
    """A code without a status gives a line without a response."""
    sandbox.faults.add("row_fails", code="request_timeout", times=1)
    batch = api.run(rows(2))

    [line] = api.lines(batch.error_file_id)
    assert (line["response"], line["error"]["code"]) == (None, "request_timeout")


def test_rows_can_have_status_0(api, sandbox, rows):
    """A real oddity: such a line stands in the output file and does not count as failed."""
    sandbox.faults.add("row_fails", status=0, custom_id="r0")
    batch = api.run(rows(2))

    assert batch.request_counts.failed == 0
    assert sorted(line["response"]["status_code"] for line in api.lines(batch.output_file_id)) == [0, 200]


def test_a_fraction_of_the_rows_fails_and_always_the_same(api, sandbox, rows):
    """Which ones depends on their ids alone."""
    sandbox.faults.add("row_fails", fraction=0.3)
    first, second = (api.ids(api.run(rows(200)).error_file_id) for _ in range(2))

    assert first == second
    assert 30 < len(first) < 90


def test_a_row_can_fail_once_and_work_the_next_time(api, sandbox, rows):
    """row_times counts per row, so every row may fail on its first try."""
    sandbox.faults.add("row_fails", row_times=1)
    first, second = api.run(rows(3)), api.run(rows(3))

    assert (first.request_counts.failed, second.request_counts.failed) == (3, 0)


@pytest.mark.parametrize("billed", [True, False])
def test_rows_can_be_missing_from_both_files(api, sandbox, rows, billed):
    """Paid for or not."""
    sandbox.faults.add("row_missing", custom_id="r1", billed=billed)
    batch = api.run(rows(3))

    assert batch.request_counts.total == 3
    assert batch.request_counts.completed == 2 + billed
    assert api.ids(batch.output_file_id) == {"r0", "r2"}
    assert batch.error_file_id is None
    assert ("r1" in sandbox.ledger.billed) is billed


def test_a_batch_can_expire_half_way(api, sandbox, rows):
    """After a fraction of its rows, without touching the clock."""
    sandbox.faults.add("expire", fraction=0.4)
    batch = api.run(rows(10))

    assert (batch.status, batch.request_counts.completed, sandbox.ledger.total) == ("expired", 4, 4)
    assert len(api.lines(batch.output_file_id)) == 4
    assert {line["error"]["code"] for line in api.lines(batch.error_file_id)} == {"batch_expired"}
    assert len(api.lines(batch.error_file_id)) == 6


def test_a_batch_can_fail_with_any_errors(api, sandbox, rows):
    """errors.data as told."""
    errors = [{"code": "model_not_found", "message": "gone", "line": 3, "param": None}]
    sandbox.faults.add("fail_batch", errors=errors)

    assert [error.model_dump() for error in api.run(rows(1)).errors.data] == errors


def test_a_batch_can_be_stuck_until_it_is_let_go(api, client, sandbox, rows, until):
    """in_progress with no row done; it goes on when the fault is switched off."""
    fault = sandbox.faults.add("stuck")
    batch = api.create(rows(3))
    sandbox.batches.wait(batch.id, "in_progress")
    assert client.batches.retrieve(batch.id).request_counts.completed == 0

    sandbox.faults.remove(fault)
    assert api.wait(batch).status == "completed"


def test_a_stuck_batch_expires_and_can_be_cancelled(api, client, sandbox, rows):
    """Nothing else moves it."""
    sandbox.faults.add("stuck")
    first, second = api.create(rows(3)), api.create(rows(3))
    client.batches.cancel(first.id)
    assert api.wait(first).status == "cancelled"
    sandbox.clock.advance(86_401)
    assert api.wait(second).status == "expired"


def test_a_batch_can_have_an_unknown_status_for_a_while(api, client, sandbox, rows):
    """Statuses are an open set."""
    sandbox.faults.add("unknown_status", seconds=100)
    batch = api.create(rows(3))
    sandbox.batches.wait(batch.id, "queued_somewhere")
    assert client.batches.retrieve(batch.id).status == "queued_somewhere"

    sandbox.clock.advance(101)
    assert api.wait(batch).status == "completed"


def test_an_unknown_status_ends_with_its_fault(api, sandbox, rows):
    strange = sandbox.faults.add("unknown_status", seconds=100)
    batch = api.create(rows(3))
    sandbox.batches.wait(batch.id, "queued_somewhere")

    sandbox.faults.remove(strange)
    assert api.wait(batch).status == "completed"


def test_faults_can_be_for_some_batches_only(api, sandbox, rows):
    """`where` compares metadata."""
    sandbox.faults.add("fail_batch", where={"batchpipe_shard": "1"})

    ends = [api.run(rows(1), metadata={"batchpipe_shard": shard}).status for shard in "01"]
    assert ends == ["completed", "failed"]


def test_another_project_sees_nothing_of_the_first(api, client, sandbox, rows):
    """By the header that the SDK sends for `project`, or by a fault for whoever asks."""
    batch = api.run(rows(1))
    other = client.with_options(project="proj_b")
    sandbox.faults.add("other_project", times=1)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(batch.id)
    assert client.batches.retrieve(batch.id).id == batch.id
    for call, name in (
        (other.batches.retrieve, batch.id),
        (other.files.retrieve, batch.input_file_id),
        (other.files.content, batch.output_file_id),
        (other.files.delete, batch.input_file_id),
        (other.batches.cancel, batch.id),
    ):
        with pytest.raises(openai.NotFoundError):
            call(name)
    assert other.batches.list().data == other.files.list().data == []
    with pytest.raises(openai.BadRequestError, match="proj_b does not have access"):
        other.batches.create(input_file_id=batch.input_file_id, endpoint=batch.endpoint, completion_window="24h")


def test_a_file_quota_refuses_uploads_until_files_are_deleted(api, sandbox, client, rows):
    """As many as `most` are taken."""
    sandbox.faults.add("file_quota", most=1)
    first = api.upload(rows(1))
    with pytest.raises(openai.BadRequestError) as caught:
        api.upload(rows(1))
    assert caught.value.code == "quotaExceeded"
    client.files.delete(first)
    api.upload(rows(1))


def test_a_new_file_may_need_seconds_before_a_batch_may_use_it(api, sandbox, client, rows):
    """It says so itself."""
    sandbox.faults.add("file_not_ready", seconds=30, times=1)
    file_id = api.upload(rows(1))
    assert client.files.retrieve(file_id).status == "pending"
    with pytest.raises(openai.BadRequestError, match="not in the state processed"):
        client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    sandbox.clock.advance(31)
    assert client.files.retrieve(file_id).status == "processed"
    client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")


def test_several_faults_work_together(api, client, sandbox, rows):
    """By pattern; of those that answer a call only the first strikes, the next one waits its turn."""
    sandbox.faults.add("delay", route="GET *", seconds=0.05)
    sandbox.faults.add("status", route="* /v1/batches/*", status=503)
    assert client.batches.list().data == []
    with pytest.raises(openai.InternalServerError):
        client.batches.retrieve("batch_x")
    sandbox.faults.clear()
    sandbox.faults.add("status", times=1)
    dropped = sandbox.faults.add("drop_before", times=1)
    with pytest.raises(openai.InternalServerError):
        client.batches.list()
    assert dropped.seen == 0
    with pytest.raises(openai.APIConnectionError):
        client.batches.list()


def test_the_dice_of_a_fault_are_seeded(client, sandbox):
    """The same probability strikes the same calls after each reset."""

    def strikes():
        sandbox.faults.clear()
        fault = sandbox.faults.add("delay", seconds=0, probability=0.5)
        return [client.batches.list() and fault.hits for _ in range(20)]

    first = strikes()
    assert first == strikes()
    assert 0 < first[-1] < 20


@pytest.mark.parametrize("arguments", [("nonsense", {}), ("truncate", {"mode": "x"}), ("token_limit", {"shape": "x"})])
def test_a_fault_that_makes_no_sense_is_refused(sandbox, arguments):
    """At once, not when it would strike."""
    with pytest.raises(ValueError, match="unknown"):
        sandbox.faults.add(arguments[0], **arguments[1])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({}, {"error": {"code": "server_error", "message": "The sandbox was told to fail this row."}}),
        ({"code": "slow", "message": "no"}, {"error": {"code": "slow", "message": "no"}}),
        ({"json": "words"}, "words"),
        ({"json": {"choices": []}}, {"choices": []}),
    ],
)
def test_a_row_can_have_a_body_that_is_no_answer(api, sandbox, rows, arguments, wanted):
    """With HTTP 200, in the output file, counted as completed."""
    sandbox.faults.add("row_body", custom_id="r1", **arguments)
    batch = api.run(rows(3))

    assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 0)
    line = next(line for line in api.lines(batch.output_file_id) if line["custom_id"] == "r1")
    assert line["response"]["status_code"] == 200
    body = line["response"]["body"]
    assert body == wanted if not isinstance(wanted, dict) else wanted.items() <= body.items()
    assert "r1" not in sandbox.ledger.billed


@pytest.mark.parametrize("mode", ["invalid", "cut", "refused"])
@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/responses"])
def test_rows_can_be_answered_with_what_nobody_wants(api, sandbox, mode, url):
    """They count as completed, and are paid for."""
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string"}},
        "required": ["word"],
        "additionalProperties": False,
    }
    named = {"name": "answer", "schema": schema, "strict": True}
    if url == "/v1/responses":
        asks: dict[str, object] = {"input": "x", "text": {"format": {"type": "json_schema", **named}}}
    else:
        asks = {
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": named},
        }
    requests = [
        {"custom_id": name, "method": "POST", "url": url, "body": {"model": "gpt-4o-mini", **asks}}
        for name in ("a", "b")
    ]
    sandbox.faults.add("row_answer", mode=mode, custom_id="^a$")
    batch = api.run(requests, endpoint=url)

    assert batch.request_counts.model_dump() == {"total": 2, "completed": 2, "failed": 0}
    said = {line["custom_id"]: said_in(line["response"]["body"]) for line in api.lines(batch.output_file_id)}
    complaints = {name: AnswerCheck(schema).complaint(one) for name, one in said.items()}
    assert complaints["b"] is None
    assert complaints["a"] is not None
    assert complaints["a"].kind == mode
    assert set(sandbox.ledger.billed) == {"a", "b"}


def test_a_mode_that_a_fault_does_not_have_is_refused():
    with pytest.raises(ValueError, match="unknown row_answer mode 'clean'; known: invalid, cut, refused"):
        Fault(kind="row_answer", mode="clean")
