"""Whole jobs against a provider that answers nonsense now and then: each comes to its end, and no row is lost.

Over 450 bad answers and 240 odd files of results in a usual run; see ``shapes`` for more and for others.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.errors import BatchpipeError
from batchpipe.model.records import State
from batchpipe.storage import Folder
from batchpipe.testing import FakeOpenAI, Pump
from tests.fuzz.jobs import MEMORY, Line, rows_of
from tests.fuzz.odd_results import PLAIN, Oddness, Results, expected, is_ok, oddnesses
from tests.fuzz.provider import Files, ScriptedProvider
from tests.fuzz.shapes import BATCH, LIST, answers, fuzzed
from tests.fuzz.wire import Answer, Request
from tests.size import SCALE

pytestmark = [pytest.mark.scaled, pytest.mark.timeout(600)]


class Unforeseen(logging.Handler):
    """Notes what the pipeline logs of exceptions that are not ours: it survived them, but did not know them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, BatchpipeError):
            self.found.append(f"{record.getMessage()}: {type(error).__name__}: {error}"[:300])


@pytest.fixture(scope="module")
def unforeseen() -> Iterator[Unforeseen]:
    handler, logger = Unforeseen(), logging.getLogger("batchpipe")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


# -- bad answers ---------------------------------------------------------------------------------------------------

_MADE_NOTHING_OF = [
    Answer(raw=b"", reset=True),
    Answer(raw=b""),
    Answer(body=b"{", cut=30),
    Answer(body=b"<html>"),
    Answer(body=b'{"id":null,"object":"batch"}'),
    Answer(body=b'{"id":"","object":"batch"}'),
    Answer(body=b"[]"),
    Answer(204),
    Answer(500, body=b"\xff\xfe"),
    Answer(502, body=b'{"error":{"message":"Bad gateway."}}'),
    Answer(404, body=b"<html>"),
    Answer(408, body=b"{}"),
    Answer(body=b'{"id":"batch_1","input_file_id":"file-other"}'),
]


@dataclass(frozen=True)
class Trouble:
    """One bad answer; ``carried_out``: to a call that had its effect before."""

    answer: Answer
    lost: Answer
    carried_out: bool


def _of_this_hour(answer: Answer) -> Answer:
    """Pauses of a day are kept faithfully, but it takes as many turns as minutes to see them through."""
    return Answer(429, ((b"Retry-After", b"3"),)) if b"Retry-After" in answer.message() else answer


troubles = st.builds(
    Trouble, (answers(BATCH) | answers(LIST)).map(_of_this_hour), st.sampled_from(_MADE_NOTHING_OF), st.booleans()
) | st.builds(Trouble, st.sampled_from(_MADE_NOTHING_OF), st.sampled_from(_MADE_NOTHING_OF), st.booleans())
plans = st.lists(troubles | troubles | st.none(), min_size=3, max_size=24)


class Trickster:
    """Answers by the plan, and properly when it is at its end."""

    def __init__(self, scripted_provider: ScriptedProvider, plan: list[Trouble | None]) -> None:
        self.scripted_provider = scripted_provider
        self.plan = list(plan)
        self.bad = 0

    def __call__(self, request: Request) -> Answer:
        trouble = self.plan.pop(0) if self.plan else None
        if trouble is None:
            return self.scripted_provider(request)
        self.bad += 1
        if trouble.carried_out:
            self.scripted_provider(request)
        return self._told(request, trouble)

    @staticmethod
    def _told(request: Request, trouble: Trouble) -> Answer:
        """No lie that nobody could see through: a list that is whole and has nothing, a no to what was done."""
        route = request.target.partition("?")[0]
        is_list = request.method == "GET" and route in ("/v1/batches", "/v1/files")
        is_create = request.method == "POST" and route == "/v1/batches"
        if is_list and b'"data"' in trouble.answer.message() and 200 <= trouble.answer.status < 300:
            return trouble.lost
        return trouble.lost if is_list or (is_create and trouble.carried_out) else trouble.answer


# -- jobs ----------------------------------------------------------------------------------------------------------


class Run:
    """One job from its beginning to its end, in a folder and a Redis of its own."""

    def __init__(
        self, line: Line, unforeseen: Unforeseen, results: Results, plan: list[Trouble | None], rows: int, **job: Any
    ) -> None:
        self.results = results
        self.rows = rows
        self.scripted_provider = ScriptedProvider(results)
        self.trickster = Trickster(self.scripted_provider, plan)
        self.unforeseen = unforeseen
        self._line, self._fields = line, job

    def through(self, cancel_after: int | None = None) -> dict[str, str]:
        """Answers what became of each row, checked against all that was said."""
        self._line.wire.answer = self.trickster
        self.unforeseen.found.clear()
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            pump = Pump(Path(folder), api=cast(FakeOpenAI, self._line.api), max_rows=3)
            self.scripted_provider.clock = lambda: pump.at
            job_id = pump.submit(rows_of(self.rows), **self._fields)
            if cancel_after is not None:
                for _ in range(cancel_after):
                    pump.step()
                pump.cancel(job_id)
            pump.run_until_idle(max_seconds=2 * 86_400.0)
            return self._checked(pump, job_id)

    def _checked(self, pump: Pump, job_id: str) -> dict[str, str]:
        job = pump.job(job_id)
        assert job.state.ended
        assert job.closed
        assert self.unforeseen.found == []
        if job.cancel and not pump.shards(job_id):
            assert job.state is State.CANCELLED
            return {}
        outcomes = pump.outcomes(job_id)  # each row is there once
        assert sorted(outcomes) == sorted(row["custom_id"] for row in rows_of(self.rows))
        counts = Counter(outcomes.values())
        assert job.total == self.rows
        assert (job.ok, job.failed, job.missing) == (counts["ok"], counts["failed"], counts["missing"])
        self._check_files(Folder(job.output))
        keys = Counter(batch["metadata"]["batchpipe_key"] for batch in self.scripted_provider.living())
        assert all(count == 1 for count in keys.values()), "paid twice"
        return outcomes

    def _check_files(self, output: Folder) -> None:
        """In input order; and no answer is ok but one that was served, word for word."""
        for name in ("output.jsonl", "errors.jsonl"):
            with output.reader(name) as file:
                lines = [line.rstrip(b"\n") for line in file]
            places = [int(orjson.loads(line)["custom_id"][1:]) for line in lines]
            assert places == sorted(places)
            for place, line in zip(places, lines, strict=True):
                if name == "output.jsonl":
                    assert is_ok(line)
                    assert line in self.results.lines[f"r{place}"]


def test_odd_files_of_results_give_each_row_what_they_say_of_it(line: Line, unforeseen: Unforeseen) -> None:
    """Lines in any order, doubled, of strangers, of odd shapes, in either file or none; downloads cut at first."""
    files, jobs = [0], 120

    @fuzzed(jobs)
    @given(oddnesses, st.integers(1, 6))
    def check(oddness: Oddness, rows: int) -> None:
        results = Results(oddness)
        found = Run(line, unforeseen, results, [], rows, attempts=1).through()
        files[0] += results.files
        assert found == {f"r{number}": expected(results.lines.get(f"r{number}")) for number in range(rows)}

    check()
    assert files[0] >= 2 * jobs * SCALE


def test_jobs_end_and_lose_no_row_whatever_is_answered(line: Line, unforeseen: Unforeseen) -> None:
    """Bad answers in place of good ones, or to calls that were carried out, over several rounds; some are cancelled."""
    bad, wanted = [0], 450

    @fuzzed(160)
    @given(plans, oddnesses, st.integers(1, 5), st.integers(1, 2), st.none() | st.none() | st.integers(0, 12))
    def check(plan: list[Trouble | None], oddness: Oddness, rows: int, attempts: int, cancel_after: int | None) -> None:
        run = Run(line, unforeseen, Results(oddness), plan, rows, attempts=attempts)
        run.through(cancel_after)
        bad[0] += run.trickster.bad

    check()
    assert bad[0] >= wanted * SCALE


# -- shapes that had been mistakes ---------------------------------------------------------------------------------

UPLOAD, CREATE, LISTED, READ = "POST /v1/files", "POST /v1/batches", "GET /v1/batches", "GET /v1/batches/batch_1"
LOST = Trouble(Answer(raw=b""), Answer(raw=b""), carried_out=True)


def said(answer: Answer, *, carried_out: bool = False) -> Trouble:
    return Trouble(answer, answer, carried_out)


class Scripted(Trickster):
    """Bad answers by route: each list goes out in turn, then it is answered properly."""

    def __init__(self, scripted_provider: ScriptedProvider, script: dict[str, list[Trouble]]) -> None:
        super().__init__(scripted_provider, [])
        self.script = {route: list(troubles) for route, troubles in script.items()}

    def __call__(self, request: Request) -> Answer:
        due = self.script.get(f"{request.method} {request.target.partition('?')[0]}")
        if not due:
            return self.scripted_provider(request)
        trouble = due.pop(0)
        if trouble.carried_out:
            self.scripted_provider(request)
        return trouble.answer


def scripted(line: Line, unforeseen: Unforeseen, script: dict[str, list[Trouble]]) -> Run:
    run = Run(line, unforeseen, Results(PLAIN), [], 2, attempts=1)
    run.trickster = Scripted(run.scripted_provider, script)
    return run


def error_of(status: int, **error: Any) -> Answer:
    return Answer(status, body=orjson.dumps({"error": error}))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(304), id="304"),
        pytest.param(Answer(303, ((b"Location", b"http://127.0.0.1:1/"),)), id="303-to-nowhere"),
        pytest.param(error_of(500, code="insufficient_quota"), id="500-of-quota"),
    ],
)
def test_a_batch_that_was_made_is_found_whatever_was_answered(
    line: Line, unforeseen: Unforeseen, answer: Answer
) -> None:
    """Neither called again, nor left running with its rows called failed."""
    run = scripted(line, unforeseen, {CREATE: [said(answer, carried_out=True)]})
    assert run.through() == {"r0": "ok", "r1": "ok"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param({"data": [], "has_more": True}, id="empty-but-more"),
        pytest.param({"data": [{"id": "batch_9"}, {"object": "batch"}], "has_more": False}, id="entry-without-id"),
        pytest.param({"data": [{"id": "batch_9"}, "batch_1"], "has_more": False}, id="entry-of-text"),
    ],
)
def test_half_a_list_is_no_empty_look(line: Line, unforeseen: Unforeseen, page: dict[str, Any]) -> None:
    """The batch may stand in the other half."""
    run = scripted(line, unforeseen, {CREATE: [LOST], LISTED: [said(Answer(body=orjson.dumps(page)))] * 2})
    assert run.through() == {"r0": "ok", "r1": "ok"}


@pytest.mark.slow  # it waits for more than a thousand turns
def test_a_file_that_is_lost_after_an_unanswered_create_call_is_waited_for_and_then_refused(
    line: Line, unforeseen: Unforeseen
) -> None:
    """The key is the one that the call was made with, so its empty list proves that nothing was made; with another key
    nothing would be known.
    """
    nameless = said(Answer(body=b'{"id": "file-nobodys"}'))
    run = scripted(line, unforeseen, {UPLOAD: [nameless], CREATE: [said(Answer(raw=b""))]})
    assert run.through() == {"r0": "failed", "r1": "failed"}


def test_a_sum_of_tokens_beyond_all_measure_does_not_end_a_turn(line: Line, unforeseen: Unforeseen) -> None:
    """A number of theirs, of no use but to be told."""
    run = scripted(line, unforeseen, {})
    whole = b'{"custom_id":"%s","response":{"status_code":200,"body":{"usage":{"total_tokens":%d}}}}\n'
    files = Files(output=b"".join(whole % (name, 2**63) for name in (b"r0", b"r1")))
    run.results.lines = {name.decode(): [(whole % (name, 2**63)).strip()] for name in (b"r0", b"r1")}
    run.scripted_provider.results = lambda requests: files
    assert run.through() == {"r0": "ok", "r1": "ok"}


def test_words_in_half_letters_do_not_end_a_turn(line: Line, unforeseen: Unforeseen) -> None:
    """Of an error, which is kept to be told."""
    half = said(Answer(500, body=b'{"error": {"message": "\\ud800"}}'))
    assert scripted(line, unforeseen, {READ: [half]}).through() == {"r0": "ok", "r1": "ok"}


def test_a_batch_that_no_address_can_hold_is_no_batch(line: Line, unforeseen: Unforeseen) -> None:
    """It could never be read again: the shard would wait for it for ever."""
    dot = said(Answer(body=b'{"id": ".", "object": "batch"}'), carried_out=True)
    assert scripted(line, unforeseen, {CREATE: [dot]}).through() == {"r0": "ok", "r1": "ok"}
