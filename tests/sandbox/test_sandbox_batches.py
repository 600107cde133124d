"""Batches: create, retrieve, list, cancel, expire, and the files that come of them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from batchpipe.sandbox import Sandbox


def test_a_batch_goes_through_its_states(api_for, rows):
    """validating, in_progress, finalizing, completed; no row runs or is billed while validating."""
    with Sandbox(validating_seconds=100, rows_per_second=0.1, finalizing_seconds=100) as sandbox:
        api = api_for(sandbox)
        batch = api.create(rows(50), metadata={"who": "me"})
        assert (batch.status, batch.metadata) == ("validating", {"who": "me"})
        assert batch.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
        assert sandbox.ledger.rows() == []

        for seconds, status, count in ((101, "in_progress", 50), (600, "finalizing", 50), (101, "completed", 50)):
            sandbox.clock.advance(seconds)
            seen = sandbox.batches.wait(batch.id, status)
            assert seen["request_counts"]["total"] == count
        ended = api.client.batches.retrieve(batch.id)

    assert ended.in_progress_at - ended.created_at >= 100
    assert ended.finalizing_at - ended.in_progress_at >= 499
    assert ended.completed_at - ended.finalizing_at >= 100


def test_a_completed_batch_has_all_its_fields(api, rows):
    """Counts, times, usage, model and metadata are as the real API tells them."""
    batch = api.run(rows(30), metadata={"who": "me"})

    assert (batch.status, batch.model, batch.metadata) == ("completed", "gpt-4o-mini", {"who": "me"})
    assert batch.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
    assert batch.expires_at == batch.created_at + 86_400
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert times == sorted(times)
    assert batch.failed_at is batch.expired_at is batch.cancelling_at is batch.cancelled_at is None
    assert batch.errors is batch.error_file_id is None
    lines = api.lines(batch.output_file_id)
    spent = sum(line["response"]["body"]["usage"]["total_tokens"] for line in lines)
    assert batch.usage.total_tokens == spent == batch.usage.input_tokens + batch.usage.output_tokens


def test_output_lines_have_the_documented_shape_in_another_order(api, client, rows):
    """One line per row, ids told, order shuffled, in a file of purpose batch_output."""
    batch = api.run(rows(60))
    lines = api.lines(batch.output_file_id)
    order = [line["custom_id"] for line in lines]

    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert set(lines[0]) == {"id", "custom_id", "response", "error"}
    assert set(lines[0]["response"]) == {"status_code", "request_id", "body"}
    assert lines[0]["id"].startswith("batch_req_")
    assert (lines[0]["response"]["status_code"], lines[0]["error"]) == (200, None)
    assert sorted(order) == sorted(f"r{n}" for n in range(60))
    assert order != [f"r{n}" for n in range(60)]


def test_a_seed_fixes_the_order_of_the_output(api_for, rows):
    """With `seed` two runs give the same bytes but for the batch's own ids."""
    with Sandbox(seed="7", validating_seconds=0) as sandbox:
        api = api_for(sandbox)
        first, second = (api.lines(api.run(rows(20)).output_file_id) for _ in range(2))

    assert [(line["custom_id"], line["response"]["body"]) for line in first] == [
        (line["custom_id"], line["response"]["body"]) for line in second
    ]


def test_rows_that_the_model_refuses_go_to_the_error_file(api, row):
    """A bad body is that row's 400; with no good row the output file is null."""
    bad = row("bad")
    del bad["body"]["messages"]

    both = api.run([bad, row("good")])
    only = api.run([bad])

    assert both.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
    assert api.ids(both.output_file_id) == {"good"}
    [line] = api.lines(both.error_file_id)
    assert (line["custom_id"], line["response"]["status_code"], line["error"]) == ("bad", 400, None)
    assert line["response"]["body"]["error"]["param"] == "messages"
    assert (only.status, only.output_file_id) == ("completed", None)


def test_metadata_may_have_16_pairs_of_64_and_512_characters(api, rows):
    """The limits themselves are allowed."""
    metadata = {f"{n:064d}": "v" * 512 for n in range(16)}

    assert api.create(rows(1), metadata=metadata).metadata == metadata


@pytest.mark.parametrize(
    "options",
    [
        {"metadata": {str(n): "v" for n in range(17)}},
        {"metadata": {"k" * 65: "v"}},
        {"metadata": {"k": "v" * 513}},
        {"metadata": {"k": 1}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
        {"extra_body": {"completion_window": "48h"}},
        {"extra_body": {"completion_window": None}},
        {"extra_body": {"input_file_id": None}},
        {"endpoint": "/v1/audio/speech"},
        {"endpoint": "/chat/completions"},
    ],
)
def test_create_refuses_what_openai_refuses(api, client, sandbox, rows, options):
    """Bad metadata, expiry, window, endpoint or a missing field are 400s, and no batch comes of them."""
    with pytest.raises(openai.BadRequestError) as caught:
        api.create(rows(1), **options)

    assert caught.value.type == "invalid_request_error"
    assert caught.value.param
    assert sandbox.batches.all() == []


def test_unknown_create_options_are_tolerated(api, rows):
    """What other providers or later versions add does no harm."""
    assert api.create(rows(1), extra_body={"priority": "low"}).status == "validating"


def test_create_wants_a_file_of_purpose_batch(api, client):
    """An unknown file gets OpenAI's very words, another purpose a 400."""
    other = client.files.create(file=("a.jsonl", b"x"), purpose="user_data").id
    for file_id, words in (("file-nope", "Cannot find file file-nope, or project"), (other, "purpose")):
        with pytest.raises(openai.BadRequestError, match=words):
            client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")


def test_output_files_expire_as_asked(api, client, rows):
    """output_expires_after counts from the creation of the output file."""
    batch = api.run(rows(1), output_expires_after={"anchor": "created_at", "seconds": 7200})
    file = client.files.retrieve(batch.output_file_id)

    assert file.expires_at == file.created_at + 7200


def test_the_list_is_newest_first_and_paged(api, client, rows):
    """limit, after and has_more work; the SDK pages by itself."""
    ids = [api.create(rows(1)).id for _ in range(7)][::-1]

    page = client.batches.list(limit=3)

    assert ([batch.id for batch in page.data], page.has_more) == (ids[:3], True)
    assert page.model_extra["first_id"] == ids[0]
    assert page.model_extra["last_id"] == ids[2]
    assert [batch.id for batch in client.batches.list(limit=3, after=ids[2])] == ids[3:]
    assert client.batches.list(limit=7).has_more is False
    assert [batch.id for batch in client.batches.list(limit=2)] == ids


def test_pages_hold_each_batch_once_though_many_were_created_at_a_time(api, client, sandbox, rows):
    """The list's order is the order of creation, whoever created."""
    sandbox.faults.add("stuck")
    file_id = api.upload(rows(1))

    def create(number):
        return client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h").id

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(create, range(100)))

    listed = [batch.id for batch in client.batches.list(limit=3)]
    assert sorted(listed) == sorted(made)


@pytest.mark.parametrize("limit", [0, 101, "many"])
def test_a_bad_limit_is_refused(client, limit):
    """The list takes a limit from 1 to 100."""
    with pytest.raises(openai.BadRequestError):
        client.batches.list(limit=limit)


def test_an_unknown_batch_is_a_404(client):
    """Retrieve, cancel, and a list after it."""
    for call in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="batch_nope"):
            call("batch_nope")
    with pytest.raises(openai.NotFoundError):
        client.batches.list(after="batch_nope")


def test_a_cancelled_batch_keeps_the_rows_that_were_done(api_for, rows, until):
    """cancelling, then cancelled: done rows in the output, billed; the rest as batch_cancelled, not billed."""
    with Sandbox(validating_seconds=0, rows_per_second=100) as sandbox:
        api = api_for(sandbox)
        batch = api.create(rows(300))
        until(lambda: api.client.batches.retrieve(batch.id).request_counts.completed >= 5)

        asked = api.client.batches.cancel(batch.id)
        assert asked.status == "cancelling"
        ended = api.wait(batch)
        done, skipped = api.ids(ended.output_file_id), api.ids(ended.error_file_id)
        line = api.lines(ended.error_file_id)[0]
        billed = set(sandbox.ledger.billed)

    assert ended.status == "cancelled"
    assert ended.cancelled_at >= ended.cancelling_at >= ended.in_progress_at
    assert 5 <= len(done) == ended.request_counts.completed < 300
    assert done | skipped == {f"r{n}" for n in range(300)}
    assert not done & skipped
    assert billed == done
    assert (line["response"], line["error"]["code"]) == (None, "batch_cancelled")


def test_a_batch_cancelled_while_validating_runs_nothing(api_for, rows):
    """No row has been read, so there are no files."""
    with Sandbox(validating_seconds=1e6) as sandbox:
        api = api_for(sandbox)
        batch = api.create(rows(5))
        api.client.batches.cancel(batch.id)
        ended = api.wait(batch)
        total = sandbox.ledger.total

    assert (ended.status, ended.output_file_id, ended.error_file_id, total) == ("cancelled", None, None, 0)


def test_cancelling_again_is_fine_but_not_after_the_end(api_for, rows):
    """A second cancel answers `cancelling`; a batch that has ended answers 409."""
    with Sandbox(cancelling_seconds=100) as sandbox:
        api = api_for(sandbox)
        batch = api.create(rows(5))
        assert {api.client.batches.cancel(batch.id).status for _ in range(2)} == {"cancelling"}
        sandbox.clock.advance(101)
        api.wait(batch)

        with pytest.raises(openai.ConflictError) as caught:
            api.client.batches.cancel(batch.id)
    assert caught.value.code == "batch_not_cancellable"


def test_a_batch_expires_with_what_it_has(api_for, rows, until):
    """Past expires_at: done rows in the output, the rest as batch_expired lines."""
    with Sandbox(validating_seconds=0, rows_per_second=100) as sandbox:
        api = api_for(sandbox)
        batch = api.create(rows(300))
        until(lambda: api.client.batches.retrieve(batch.id).request_counts.completed >= 5)
        sandbox.clock.advance(24 * 3600)
        ended = api.wait(batch)
        done, skipped = api.ids(ended.output_file_id), api.lines(ended.error_file_id)
        total = sandbox.ledger.total

    assert ended.status == "expired"
    assert ended.expired_at >= ended.expires_at
    assert 5 <= len(done) == total
    assert len(done) + len(skipped) == 300
    assert skipped[0]["response"] is None
    assert skipped[0]["error"] == {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }


def test_counts_are_seen_to_grow(api_for, rows, until):
    """Rows run in chunks, so a client can watch the progress."""
    with Sandbox(validating_seconds=0, rows_per_second=300) as sandbox:
        api = api_for(sandbox)
        batch = api.create(rows(150))
        seen: set[int] = set()

        def ended():
            now = api.client.batches.retrieve(batch.id)
            seen.add(now.request_counts.completed)
            return now.completed_at

        until(ended)

    assert len(seen) > 3


def test_deleting_the_input_does_not_disturb_a_batch(api, client, sandbox, rows):
    """The batch holds on to its input."""
    stuck = sandbox.faults.add("stuck")
    batch = api.create(rows(5))
    client.files.delete(batch.input_file_id)
    sandbox.faults.remove(stuck)

    assert api.wait(batch).request_counts.completed == 5


def test_azure_paths_and_keys_are_accepted(sandbox, api, row, rows):
    """/openai/... with api-version, api-key and endpoints without /v1 works as /v1 does."""
    azure = openai.AzureOpenAI(azure_endpoint=sandbox.url, api_key="k", api_version="2025-01-01", max_retries=0)
    data = json.dumps(row("a", url="/chat/completions")).encode()
    endpoint: Any = "/chat/completions"
    with azure:
        file = azure.files.create(file=("a.jsonl", data), purpose="batch")
        batch = azure.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        sandbox.batches.wait(batch.id)
        ended = azure.batches.retrieve(batch.id)
        assert azure.chat.completions.create(model="d", messages=[{"role": "user", "content": "hi"}]).choices

    assert (ended.status, ended.endpoint) == ("completed", "/chat/completions")
    assert sandbox.calls.count("POST /v1/batches") == 1
    with openai.OpenAI(base_url=f"{sandbox.url}/openai/v1", api_key="k") as newer:
        assert newer.batches.retrieve(batch.id).id == batch.id
