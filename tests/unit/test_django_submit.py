"""submit() in a Django site: transactions, and inputs that are files or rows of its database."""

from __future__ import annotations

import io
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

import batchpipe
from batchpipe.client.client import default_client
from batchpipe.config.site import current_site
from batchpipe.pipeline.copied_inputs import remove_unrecorded
from tests import django_project
from tests.django_project import requests, submit_at_once

LINES = b"".join(orjson.dumps(row) + b"\n" for row in requests(3))


@pytest.fixture(autouse=True)
def site(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[None]:
    django_project.configure()
    with django_project.site(redis_url, prefix, tmp_path / "home"):
        yield


def jobs() -> list[str]:
    return [job.id for job in batchpipe.list_jobs()]


def spools() -> list[Path]:
    return list(default_client().settings.home.rglob("input.jsonl"))


def input_of(job: batchpipe.Job) -> bytes:
    return Path(job.refresh().record.input).read_bytes()


# -- transactions --------------------------------------------------------------------------------------------------


def test_a_job_is_recorded_and_sent_when_the_transaction_commits() -> None:
    from django.db import transaction

    with transaction.atomic():
        job = batchpipe.submit(requests(2))
        assert job.state == "pending"
        assert jobs() == []
    assert jobs() == [job.id]
    assert job.refresh().state == "pending"
    assert len(input_of(job).splitlines()) == 2


def test_outside_of_a_transaction_it_is_sent_at_once() -> None:
    job = batchpipe.submit(requests(2))

    assert jobs() == [job.id]


def sweep_a_day_later() -> None:
    client = default_client()
    remove_unrecorded(client.settings, client.store, time.time() + 90_000)


def test_a_rolled_back_transaction_submits_nothing_and_its_copy_is_swept() -> None:
    from django.db import transaction

    @transaction.atomic
    def order() -> None:
        batchpipe.submit(requests(2))
        assert len(spools()) == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        order()
    assert jobs() == []
    sweep_a_day_later()
    assert spools() == []


def test_a_rolled_back_savepoint_takes_only_its_own_job_along() -> None:
    from django.db import transaction

    @transaction.atomic
    def part() -> None:
        batchpipe.submit(requests(3))
        raise ZeroDivisionError

    with transaction.atomic():
        kept = batchpipe.submit(requests(2))
        with pytest.raises(ZeroDivisionError):
            part()

    assert jobs() == [kept.id]
    sweep_a_day_later()
    assert [str(path) for path in spools()] == [kept.refresh().record.input]


@pytest.mark.parametrize("rolled_back", [None, "default", "other"])
def test_where_several_databases_have_a_transaction_all_must_commit(rolled_back: str | None) -> None:
    from django.db import transaction

    with transaction.atomic(using="other"):
        with transaction.atomic():
            job = batchpipe.submit(requests(2))
            if rolled_back == "default":
                transaction.set_rollback(True)
        assert jobs() == []
        if rolled_back == "other":
            transaction.set_rollback(True, using="other")

    assert jobs() == ([] if rolled_back else [job.id])
    sweep_a_day_later()
    assert len(spools()) == len(jobs())


def test_a_transaction_of_another_database_is_waited_for_too() -> None:
    from django.db import transaction

    with transaction.atomic(using="other"):
        job = batchpipe.submit(requests(2))
        assert jobs() == []
    assert jobs() == [job.id]


def test_in_a_testcase_of_django_the_commit_is_played() -> None:
    """Its own transactions, one on each database, never end."""
    from django.db import transaction
    from django.test import TestCase

    class Case(TestCase):
        databases = frozenset({"default", "other"})

        def test(self) -> None:
            with self.captureOnCommitCallbacks(execute=True):
                first = batchpipe.submit(requests(1))
                with transaction.atomic():
                    second = batchpipe.submit(requests(1))
                assert jobs() == []
            assert sorted(jobs()) == sorted([first.id, second.id])

    unittest.TestSuite([Case("test")]).run(result := unittest.TestResult())
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


def test_texts_of_templates_are_texts() -> None:
    """A record holds plain ``str``; else the commit would fail, after the database has committed."""
    from django.db import transaction
    from django.utils.safestring import mark_safe
    from django.utils.translation import gettext_lazy

    text = mark_safe("reviews")
    with transaction.atomic():
        job = batchpipe.submit(
            requests(1), name=gettext_lazy("reviews"), key=text, queue=text, tags={"what": text}, metadata={"of": text}
        )
    record = job.refresh().record

    assert (record.name, record.key, record.queue) == ("reviews", "reviews", "reviews")
    assert (record.tags, record.metadata) == ({"what": "reviews"}, {"of": "reviews"})


def test_bad_input_is_told_where_submit_was_called() -> None:
    from django.db import transaction

    with transaction.atomic(), pytest.raises(batchpipe.InvalidInput, match="no rows"):
        batchpipe.submit([])


def test_trouble_at_the_commit_is_told_to_who_commits() -> None:
    """Redis went away between submit and commit: what the database has is committed, and the caller knows."""
    from django.db import transaction
    from django.test import override_settings

    from batchpipe.config.site import current_settings
    from tests.django_models import Note

    @transaction.atomic
    def order() -> None:
        batchpipe.submit(requests(2))
        Note.objects.create(text="committed")

    with override_settings(BATCHPIPE={"REDIS_URL": "redis://127.0.0.1:1/0", "HOME": current_settings().home}):
        with pytest.raises(batchpipe.StoreUnavailable):
            order()
        assert Note.objects.filter(text="committed").exists()


@pytest.mark.parametrize(("query", "submitted"), [("", 1), ("?fail=1", 0)], ids=["ok", "rolled back"])
def test_a_request_that_is_a_transaction_submits_with_it(query: str, submitted: int) -> None:
    """ATOMIC_REQUESTS."""
    from django.db import connection
    from django.test import Client

    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        answer = Client().get(f"/order/{query}")
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False

    assert jobs() == [answer.json()["job"]] * submitted


def test_requests_of_one_moment_with_one_key_are_one_job() -> None:
    """And each id that was given out leads to it."""
    ids = submit_at_once(6, "nightly")

    assert len(set(ids)) == 6
    assert len(jobs()) == 1
    assert {batchpipe.get_job(one).id for one in ids} == set(jobs())
    assert len(spools()) == 1


def _postgres() -> str | None:
    """The folder of PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(path) for path in [shutil.which("initdb")] if path
    ]
    return str(found[-1].parent) if found else None


@pytest.fixture
def postgres() -> Iterator[tuple[str, str]]:
    """Folder of the socket, and name of the user, of a PostgreSQL of this test's own. Optional: Django's business."""
    programs, owner = _postgres(), "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    pytest.importorskip("psycopg")
    if programs is None or owner not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("no PostgreSQL here")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # the path of a socket must be short, and open to its owner
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, owner)

    def run(*command: str) -> None:
        options: dict[str, Any] = {"user": owner} if os.geteuid() == 0 else {}
        subprocess.run(
            [f"{programs}/{command[0]}", *command[1:]], cwd=folder, check=True, stdout=subprocess.DEVNULL, **options
        )

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", owner, "-A", "trust", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield str(folder), owner
    run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.slow
def test_on_postgresql_they_are_one_job_too(
    postgres: tuple[str, str], redis_url: str, prefix: str, tmp_path: Path
) -> None:
    """There the transactions really run side by side."""
    code = "from tests.django_project import on_postgres; on_postgres()"
    done = subprocess.run(
        [sys.executable, "-c", code, *postgres, redis_url, f"{prefix}pg:", str(tmp_path / "pg")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(set(seen["ids"])) == 6
    assert seen["jobs"] == seen["listed"]
    assert len(seen["jobs"]) == 1


# -- inputs --------------------------------------------------------------------------------------------------------


def _stored(field: str, content: bytes) -> Any:
    from django.core.files.base import ContentFile

    from tests.django_models import Upload

    upload = Upload()
    getattr(upload, field).save("rows.jsonl", ContentFile(content))
    return getattr(Upload.objects.get(pk=upload.pk), field)


def test_a_stored_file_with_a_path_is_read_by_the_worker() -> None:
    file = _stored("near", LINES)
    job = batchpipe.submit(file)

    assert job.record.input == file.path
    assert not job.record.spooled


def test_a_stored_file_without_a_path_is_copied_through_its_storage() -> None:
    """S3 and the like: a chunk at a time; and the file can be submitted a second time."""
    file = _stored("far", LINES * 2_000)  # several chunks
    for _ in range(2):
        job = batchpipe.submit(file)
        assert job.record.spooled
        assert input_of(job) == LINES * 2_000


def test_a_stored_file_that_the_caller_reads_stays_open() -> None:
    file = _stored("far", LINES)
    first = file.open("rb").readline()
    job = batchpipe.submit(file)

    assert input_of(job) == LINES
    assert first + file.read() == LINES
    file.close()


def test_a_stored_file_that_is_gone_is_bad_input() -> None:
    file = _stored("far", LINES)
    file.name = "elsewhere.jsonl"

    with pytest.raises(batchpipe.InvalidInput, match="is not in its storage"):
        batchpipe.submit(file)


@pytest.mark.parametrize("field", ["near", "far"])
@pytest.mark.parametrize("on_disk", [True, False])
def test_an_upload_can_be_saved_after_it_was_submitted(field: str, on_disk: bool) -> None:
    """A file on disk would be gone with its first close."""
    from tests.django_models import Upload

    upload, given = Upload(), _on_disk() if on_disk else _in_memory()
    setattr(upload, field, given)
    job = batchpipe.submit(getattr(upload, field))
    upload.save()
    given.close()

    assert input_of(job) == LINES
    with getattr(Upload.objects.get(pk=upload.pk), field).open("rb") as saved:
        assert saved.read() == LINES


def test_a_field_without_a_file_is_refused() -> None:
    from tests.django_models import Upload

    with pytest.raises(batchpipe.InvalidInput, match="no file is stored"):
        batchpipe.submit(Upload().near)


def _in_memory() -> Any:
    from django.core.files.uploadedfile import SimpleUploadedFile

    return SimpleUploadedFile("rows.jsonl", LINES)


def _on_disk() -> Any:
    from django.core.files.uploadedfile import TemporaryUploadedFile

    file = TemporaryUploadedFile("rows.jsonl", "application/json", len(LINES), None)
    file.write(LINES)
    return file


def _of_text() -> Any:
    from django.core.files.base import ContentFile

    return ContentFile(LINES.decode())


@pytest.mark.parametrize(
    "made",
    [_in_memory, _on_disk, _of_text, lambda: io.BytesIO(LINES), lambda: io.StringIO(LINES.decode().rstrip("\n"))],
    ids=["in memory", "temporary file", "text", "binary file", "text file"],
)
def test_an_upload_or_an_open_file_is_copied_to_the_byte(made: Callable[[], Any]) -> None:
    """A temporary file goes with its request: the worker could not read it."""
    with made() as file:
        job = batchpipe.submit(file)

    assert job.record.spooled
    assert input_of(job).rstrip(b"\n") == LINES.rstrip(b"\n")


def test_a_view_hands_on_what_was_uploaded() -> None:
    from django.test import Client

    answer = Client().post("/upload/", {"rows": _in_memory()})

    assert input_of(batchpipe.get_job(answer.json()["job"])) == LINES


def test_a_queryset_gives_requests_one_at_a_time() -> None:
    from tests.django_models import Note

    Note.objects.all().delete()
    Note.objects.bulk_create(Note(text=f"n{number}") for number in range(5))
    job = batchpipe.submit({"custom_id": note.text} for note in Note.objects.order_by("pk").iterator())

    assert [json.loads(line)["custom_id"] for line in input_of(job).splitlines()] == [f"n{n}" for n in range(5)]


def test_model_instances_are_no_requests() -> None:
    from tests.django_models import Note

    Note.objects.create(text="x")
    with pytest.raises(batchpipe.InvalidInput, match="line 1: a Note is no row: give dicts"):
        batchpipe.submit(Note.objects.all())
    assert spools() == []


def test_the_hooks_are_those_of_django() -> None:
    """The fixtures of all tests take them away again; here they are installed."""
    assert current_site().on_commit is not None
    assert list(current_site().receivers) == ["receivers of Django's signals"]
