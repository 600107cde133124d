"""What a user submits is checked before anything is recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from batchpipe.client.client import submit
from batchpipe.client.input_copies import copy_input, dump_requests
from batchpipe.client.option_checks import check_options
from batchpipe.client.options import DEFAULTS, NAMES, complete
from batchpipe.client.submission import new_record, with_input
from batchpipe.config.settings import Settings
from batchpipe.errors import BatchpipeError, InvalidInput
from batchpipe.masking import without_secrets
from batchpipe.model.records import JobRecord
from batchpipe.model.schedule import Schedule
from batchpipe.model.views import job_view
from batchpipe.storage import Folder


def job(**fields: Any) -> JobRecord:
    return JobRecord(id="job_x", **fields)


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"endpoint": "v1/chat/completions"}, "endpoint"),
        ({"completion_window": ""}, "completion_window"),
        ({"max_rows": 0}, "max_rows"),
        ({"metadata": {f"k{n}": "v" for n in range(14)}}, "metadata"),
        ({"metadata": {"batchpipe_job": "x"}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"extra": {"input_file_id": "file-1"}}, "extra"),
        ({"extra": {"x": object()}}, "extra"),
        ({"tags": {"x": {1, 2}}}, "tags"),
        ({"tags": {"x": "y" * 5_000}}, "tags"),
        ({"metadata": {"": "v"}}, "metadata"),
        ({"max_bytes": 2**64}, "max_bytes"),
        ({"max_rows": 2**64}, "max_rows"),
        ({"completion_window": "a day"}, "completion_window"),
        ({"completion_window": "24 h"}, "completion_window"),
        ({"queue": "two words"}, "queue"),
        ({"queue": "one,two"}, "queue"),
        ({"queue": ""}, "queue"),
        ({"account": "a b"}, "account"),
        ({"name": "a\x1b]0;x"}, "name"),
        ({"name": "n" * 301}, "name"),
        ({"key": "k" * 513}, "key"),
        ({"key": "a\x00"}, "key"),
        ({"endpoint": "/v1/" + "x" * 300}, "endpoint"),
        ({"endpoint": "/v1/a b"}, "endpoint"),
    ],
)
def test_a_wrong_option_is_named(fields: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_options(job(**fields))
    assert caught.value.field == option
    assert str(caught.value).startswith(f"{option}: ")


def test_thirteen_pairs_of_metadata_are_the_users() -> None:
    """The provider takes 16, and three are ours."""
    check_options(job(metadata={f"k{n}": "v" * 512 for n in range(13)}))


class Pydantic(pydantic.BaseModel):
    custom_id: str
    user: str | None = None


@dataclasses.dataclass
class Dataclass:
    custom_id: str


@dataclasses.dataclass
class Number:
    value: float


class Struct(msgspec.Struct):
    custom_id: str


@pytest.mark.parametrize(
    "row",
    [
        {"custom_id": "é"},
        Pydantic(custom_id="é"),
        Dataclass("é"),
        Struct("é"),
        '{"custom_id":"é"}'.encode(),
        '{"custom_id":"é"}\n'.encode(),
    ],
    ids=["dict", "pydantic", "dataclass", "struct", "bytes", "line"],
)
def test_requests_of_any_type_become_lines(row: Any) -> None:
    """One line each, UTF-8, with its newline; bytes stay as they are."""
    assert list(dump_requests([row])) == ['{"custom_id":"é"}\n'.encode()]


@pytest.mark.parametrize(
    "row",
    [
        *(1, None, "text", ["list"], {"x": object()}, {1: 2}),
        *(
            {"x": float("nan")},
            {"x": [float("nan")]},
            {"x": [1.0, {"y": (float("inf"),)}]},
            {"x": Number(float("nan"))},
        ),
    ],
)
def test_what_is_no_request_is_named_by_its_number(row: Any) -> None:
    """NaN, too, which the JSON library would write as null without a word."""
    with pytest.raises(InvalidInput, match=r"^line 2: "):
        list(dump_requests([{"custom_id": "a"}, row]))


@pytest.mark.parametrize("url", ["https://ann:s3cret@host/in.jsonl", "sftp://:s3cret@host/in", "s3://a:s3cret@b/c"])
def test_a_password_in_a_place_is_refused_without_being_shown(url: str, tmp_path: Path) -> None:
    """It would be stored with the job; the storage has settings of its own for it."""
    settings = Settings(_env_file=None, home=tmp_path)
    record = new_record(settings, "job_x", complete({"output": tmp_path}))
    for attempt in (
        lambda: with_input(record, url, settings),
        lambda: new_record(settings, "job_x", complete({"output": url})),
    ):
        with pytest.raises(InvalidInput, match="has a password or token in it") as caught:
            attempt()
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"output": ""}, "output: must not be empty"),
        ({"input": " "}, "input: must not be empty"),
        ({"max_rows": "5"}, "max_rows: must be a number, not str"),
        ({"max_rows": 0}, "max_rows: must be at least 1"),
        ({"attempts": True}, "attempts: must be a number, not bool"),
        ({"queue": 5}, "queue: must be text, not int"),
        ({"name": "\ud800"}, "name: is not Unicode text"),
        ({"tags": {"user": object()}}, "tags: is not JSON"),
        ({"metadata": ["a"]}, "metadata: must be a mapping, not list"),
        ({"max_bytes": 2**64}, "max_bytes: must be at most"),
        ({"output": "a\0b"}, "output: 'a\\x00b' has control characters in it"),
        ({"output": "\udcff"}, "output: is not Unicode text"),
        ({"output": "x" * 300}, "output: 'xxxx"),
        ({"output": "https://host/folder"}, "output: https://host/folder: https:// can only be read"),
        ({"output": "/etc/passwd"}, "output: /etc/passwd: is a file"),
        ({"output": "/etc/passwd/out"}, "output: /etc/passwd/out: leads through /etc/passwd, which is a file"),
        ({"output": "nosuch://bucket/out"}, "output: nosuch://bucket/out: "),
        ({"input": "nope.jsonl"}, "input: "),
        ({"input": "/tmp/nope.jsonl"}, "input: /tmp/nope.jsonl: no such file"),
        ({"input": "in\0.jsonl"}, "input: 'in\\x00.jsonl' has control characters in it"),
        ({"input": "/" + "d/" * 3000}, "input: has "),
        ({"on_done": ""}, "on_done: is not a Celery signature"),
        ({"on_done": {"task": "t", "args": 5}}, "on_done: is not a Celery signature: its args is no list"),
        ({"on_done": {"task": "t", "options": {"queue": "a b"}}}, "on_done: its queue 'a b'"),
        ({"on_done": len}, "on_done: is not a Celery signature"),
    ],
)
def test_what_a_form_hands_in_is_checked_before_anything_is_written(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        submit(**{"input": [{"custom_id": "a"}], **wrong})
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/in.jsonl?X-Amz-Signature=abc&X-Amz-Date=1", "https://h/in.jsonl?X-Amz-Signature=***&X-Amz-Date=1"),
        (
            "no https://h/a?sv=1&sig=x%2Fy: 403, url='https://h?token=t'",
            "no https://h/a?sv=1&sig=*** 403, url='https://h?token=***'",
        ),
        ("redis://:pass@h:1/0 is away", "redis://:***@h:1/0 is away"),
        ("line 3: custom_id: key=a", "line 3: custom_id: key=a"),
    ],
)
def test_messages_and_views_show_no_secret_of_a_url(text: str, shown: str) -> None:
    """Signed URLs are stored with the job, for the worker needs them, and shown to nobody."""
    assert without_secrets(text) == shown
    assert str(BatchpipeError(text)) == shown
    assert job_view(JobRecord(id="job_x", input=text))["input"] == shown


def test_what_is_no_iterable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="give a path, a URL or an iterable"):
        copy_input(job(), 3, Folder(str(tmp_path)), None, None)  # type: ignore[arg-type]


def test_rows_are_taken_one_at_a_time() -> None:
    """An endless iterator is not held in memory."""
    endless = ({"custom_id": str(number)} for number in iter(int, 1))
    lines = dump_requests(endless)
    assert next(lines) == next(lines) == b'{"custom_id":"0"}\n'


# -- one definition of the options -------------------------------------------------------------------------------------


def test_an_option_that_does_not_exist_is_refused_as_python_does() -> None:
    """Before anything is looked up or written."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'outptu'"):
        submit([], outptu="results")  # type: ignore[call-arg]


def test_a_schedule_has_every_option_of_submit_with_the_same_default() -> None:
    """Its name and key are templates of its own."""
    schedule = Schedule(crontab="@daily", input="in.jsonl")
    own = {"name", "key", "request"}
    given = {name: getattr(schedule, name) or None for name in NAMES if name not in own}

    assert given == {name: default for name, default in DEFAULTS.items() if name not in own}
