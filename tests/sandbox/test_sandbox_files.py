"""Files: upload, list, retrieve, content, delete, expiry."""

from __future__ import annotations

import io

import httpx2
import openai
import pytest


def test_an_upload_comes_back_byte_for_byte(api, client):
    """What was uploaded can be read again, with the fields of OpenAI's object."""
    data = 'line one\n"zwei\u2028drei"\n'.encode() + bytes(range(256)) * 1000

    file = client.files.create(file=("my data.jsonl", io.BytesIO(data)), purpose="batch")

    assert (file.object, file.bytes, file.filename, file.purpose, file.status) == (
        "file",
        len(data),
        "my data.jsonl",
        "batch",
        "processed",
    )
    assert file.id.startswith("file-")
    assert client.files.content(file.id).content == data
    assert client.files.retrieve(file.id) == file


def test_a_download_tells_its_length(api, client):
    """Content-Length is sent, so a client can see a broken download."""
    file_id = api.upload(b"x" * 1000)

    with client.files.with_streaming_response.content(file_id) as response:
        assert response.headers["content-length"] == "1000"
        assert b"".join(response.iter_bytes()) == b"x" * 1000


def test_an_empty_file_can_be_stored(api, client):
    """OpenAI finds fault with an empty file only when a batch reads it."""
    assert client.files.content(api.upload(b"")).content == b""


def test_the_list_is_filtered_paged_and_ordered(api, client):
    """purpose, limit, after and order work as documented; newest first by default."""
    ids = [api.upload(b"a") for _ in range(5)]
    other = client.files.create(file=("o.txt", b"o"), purpose="user_data").id

    page = client.files.list(purpose="batch", limit=2)

    assert [file.id for file in page.data] == ids[:2:-1]
    assert page.has_more is True
    assert [file.id for file in page] == ids[::-1]
    assert [file.id for file in client.files.list(purpose="batch", order="asc", after=ids[2])] == ids[3:]
    assert [file.id for file in client.files.list(purpose="user_data")] == [other]


def test_a_deleted_file_is_gone(api, client):
    """Delete answers `deleted`; afterwards retrieve, content and delete are 404s."""
    file_id = api.upload(b"a")

    assert client.files.delete(file_id).deleted is True

    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            call(file_id)


def test_a_file_expires_when_it_was_told_to(api, client, sandbox):
    """expires_after sets expires_at, and past it the file is gone."""
    expiry = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("a.jsonl", b"a"), purpose="batch", expires_after=expiry)

    assert file.expires_at == file.created_at + 3600
    sandbox.clock.advance(3599)
    assert client.files.retrieve(file.id).id == file.id
    sandbox.clock.advance(2)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_batch_files_expire_after_30_days_by_default(api, client):
    """OpenAI deletes batch files after 30 days; files of other purposes stay."""
    batch = client.files.create(file=("a.jsonl", b"a"), purpose="batch")
    other = client.files.create(file=("a.jsonl", b"a"), purpose="user_data")

    assert (batch.expires_at, other.expires_at) == (batch.created_at + 2_592_000, None)


@pytest.mark.parametrize(
    "expiry",
    [
        {"anchor": "created_at", "seconds": 3599},
        {"anchor": "created_at", "seconds": 2_592_001},
        {"anchor": "last_active_at", "seconds": 3600},
        {"anchor": "created_at"},
    ],
)
def test_a_bad_expiry_is_refused(api, client, expiry):
    """Seconds lie between an hour and 30 days, and the anchor is created_at."""
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a.jsonl", b"a"), purpose="batch", expires_after=expiry)


def test_an_unknown_purpose_is_refused(api, client):
    """The answer names the purposes there are."""
    with pytest.raises(openai.BadRequestError, match="is not one of") as caught:
        client.files.create(file=("a.jsonl", b"a"), purpose="lunch")
    assert caught.value.param == "purpose"


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": b"x"}}, "file"),
        ({"files": {"file": ("a.jsonl", b"x")}}, "purpose"),
        ({"json": {"purpose": "batch"}}, None),
        ({"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "file"),
    ],
)
def test_an_upload_without_its_parts_is_refused(sandbox, request_body, param):
    """A missing file or purpose, or a body that is not multipart, is a 400 in OpenAI's shape."""
    headers = {"authorization": "Bearer k", **request_body.pop("headers", {})}

    response = httpx2.post(f"{sandbox.base_url}/files", headers=headers, **request_body)

    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["param"] == param


def test_a_refused_upload_leaves_nothing_behind(sandbox, client):
    """Neither a file nor a half one stays on disk."""
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a.jsonl", b"a"), purpose="lunch")

    assert client.files.list().data == []
    assert list(sandbox.files.new_part().parent.iterdir()) == []
