"""What has no place that a worker could read is copied: iterables, frames, uploads; made into rows or requests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pandas
import polars
import pytest
from pydantic import BaseModel

from batchpipe.client.input_copies import copy_input
from batchpipe.client.recipes import recipe_of
from batchpipe.config.loading import load_settings
from batchpipe.errors import InvalidInput
from batchpipe.model.records import JobRecord
from batchpipe.pipeline.data_rows import open_data_rows
from batchpipe.storage import Folder

PROMPT = {"prompt": "Of {{ name }}", "model": "m"}


@pytest.fixture
def workspace(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "work"))


def copied(workspace: Folder, source: Any, **options: Any) -> tuple[JobRecord, list[dict[str, Any]]]:
    request = options.pop("request", None)
    job = copy_input(JobRecord(id="job_x"), source, workspace, recipe_of(options), request)
    with open(job.input, "rb") as file:
        return job, [orjson.loads(line) for line in file]


def test_values_of_databases_become_json(workspace: Folder) -> None:
    """Decimals, times and ids of a queryset's ``values()``; None is a cell, too."""
    row = {"name": "x", "price": Decimal("1.50"), "at": datetime(2026, 1, 2, tzinfo=UTC), "id": UUID(int=1), "no": None}
    assert copied(workspace, iter([row]), **PROMPT)[1] == [
        {"name": "x", "price": "1.50", "at": "2026-01-02T00:00:00+00:00", "id": str(UUID(int=1)), "no": None}
    ]


def test_objects_of_pydantic_are_rows_with_all_their_fields(workspace: Folder) -> None:
    class Product(BaseModel):
        name: str
        note: str | None = None

    assert copied(workspace, [Product(name="x")], **PROMPT)[1] == [{"name": "x", "note": None}]


@pytest.mark.parametrize("library", [pandas, polars])
def test_frames_are_rows(workspace: Folder, library: Any) -> None:
    frame = library.DataFrame({"name": ["x", "y"], "size": [1, 2]})
    assert copied(workspace, frame, **PROMPT)[1] == [{"name": "x", "size": 1}, {"name": "y", "size": 2}]


def test_a_frame_without_a_prompt_is_refused(workspace: Folder) -> None:
    with pytest.raises(InvalidInput, match="is a table: give a prompt"):
        copied(workspace, polars.DataFrame({"name": ["x"]}))


def test_an_upload_is_copied_to_the_byte(workspace: Folder) -> None:
    """Of whatever format: a worker looks at it."""
    data = b"name,size\r\nx,1"
    job = copy_input(JobRecord(id="job_x"), io.BytesIO(data), workspace, recipe_of(PROMPT), None)
    assert Path(job.input).read_bytes() == data


def test_a_wrong_template_is_refused_before_the_second_row_is_taken(workspace: Folder) -> None:
    taken: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(3):
            taken.append(number)
            yield {"name": "x"}

    with pytest.raises(InvalidInput, match="there is no column 'nme'"):
        copied(workspace, rows(), prompt="{{ nme }}", model="m")
    assert taken == [0]


def test_a_function_makes_bodies_or_whole_requests_and_the_items_are_kept(workspace: Folder) -> None:
    items = [{"sku": "a", "name": "x"}, {"sku": "b", "name": "y"}]
    job, lines = copied(workspace, items, request=lambda item: {"model": item["name"], "messages": []})
    assert [(line["custom_id"], line["body"]["model"]) for line in lines] == [("1", "x"), ("2", "y")]
    assert lines[0]["url"] == "/v1/chat/completions"
    with open_data_rows(workspace, job.rows_file) as rows:
        assert list(rows) == items
    whole = {"custom_id": "k", "method": "POST", "url": "/v1/responses", "body": {"model": "m"}}
    assert copied(workspace, [1], request=lambda item: whole)[1] == [whole]


def test_a_schedule_has_a_recipe_with_files_beside_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``@FILE`` is relative to batchpipe.toml."""
    (tmp_path / "batchpipe.toml").write_text(
        '[schedules.nightly]\ncrontab = "@daily"\ninput = "in.csv"\nprompt = "@prompt.txt"\nmodel = "m"\n'
    )
    (tmp_path / "prompt.txt").write_text("Of {{ name }}")
    monkeypatch.setenv("BATCHPIPE_CONFIG", str(tmp_path / "batchpipe.toml"))
    from batchpipe.client.recipes import text_or_file

    schedule = load_settings().schedules["nightly"]
    assert schedule.prompt == f"@{tmp_path}/prompt.txt"
    assert text_or_file(schedule.prompt, "prompt") == "Of {{ name }}"
    assert text_or_file("@@all", "prompt") == "@all"
