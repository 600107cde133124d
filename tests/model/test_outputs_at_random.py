"""Sequences of submits, cancels, kills, telling, retries and reuse of outputs, made up by Hypothesis.

In none of them a row that was paid for is unreachable through its job, nor a file changed that others wrote.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast
from unittest import mock

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from batchpipe.client.job import Job
from batchpipe.errors import InvalidInput, OutputInUse, TransientError
from batchpipe.model.records import JobRecord, new_job_id
from batchpipe.pipeline.manifest import check_output_here
from batchpipe.storage import Folder, place_name
from batchpipe.store import Connection, Store
from batchpipe.testing import FakeOpenAI, Pump, Vanished
from tests.redis_server import new_redis
from tests.size import scaled

NAMES = ("output.jsonl", "errors.jsonl", "job.json")
SITES = st.integers(0, 1)


class Mortal:
    """Lets a worker die at the n-th of its calls of Redis, of the provider and of what gives a file its name."""

    left: int | None = None

    def __call__(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = None
                raise Vanished


class MortalConnection(Connection):
    mortal: Mortal

    def run(self, name: str, keys: Any, *args: Any) -> list[Any]:
        self.mortal()
        answer = super().run(name, keys, *args)
        self.mortal()
        return answer


class MortalOpenAI(FakeOpenAI):
    mortal: Mortal

    def _called(self, method: str, argument: str, effect: Any) -> Any:
        self.mortal()
        answer = super()._called(method, argument, effect)
        self.mortal()
        return answer


class Site:
    """One installation: a Redis and its workers. Its receivers may be down."""

    def __init__(self, folder: Path, mortal: Mortal) -> None:
        self.jobs: dict[str, list[str]] = {}  #: the rows of each, in order
        self.notify_sites = True
        self.mortal = mortal
        connection = MortalConnection(new_redis())
        api = MortalOpenAI(autofinish=True)
        api.answer = lambda request: 400 if request["custom_id"].startswith("bad") else {"usage": {}}
        connection.mortal = api.mortal = mortal
        self.pump = Pump(folder, api=api, store=Store(connection), notify=self._notify, max_rows=2, keep_workspace=True)

    def _notify(self, job: JobRecord) -> None:
        if not self.notify_sites:
            raise TransientError("the receivers are down")

    def go(self, turns: int) -> None:
        """Deliver so many messages; sweep where none is left."""
        for _ in range(turns):
            if not self.pump.waiting:
                self.pump.advance(120)
                with suppress(Vanished):
                    self.pump.sweep()
            if not self.pump.waiting:
                return
            self.pump.advance(max(min(message.at for message in self.pump.waiting) - self.pump.at, 0.0) + 0.001)
            self.pump.step()

    def handle(self, job_id: str) -> Job:
        return Job(self.pump.job(job_id), cast(Any, self.pump))

    def check(self) -> None:
        """What `results JOB` gives are the job's own rows, all of them; and so are the files that its record names."""
        paid = {name for batch in self.pump.api.batches.values() for name in batch.ran}
        for job_id, rows in self.jobs.items():
            job = self.handle(job_id)
            if not job.state.ended:
                continue
            found = [row.custom_id for row in job.results()]
            assert found in (rows, []), f"{job_id} asked for {rows}, and its results are {found}"
            assert found or not paid & set(rows), f"{job_id}: rows {rows} were paid for and are gone"
            result = job.result()
            if result.output_file is not None and result.error_file is not None:
                named = [row["custom_id"] for row in (*read(result.output_file), *read(result.error_file))]
                assert sorted(named) == sorted(rows), f"{job_id}: its record names the rows {named}"


def read(url: str) -> list[Mapping[str, Any]]:
    folder, _, name = url.rpartition("/")
    with Folder(folder).reader(name) as file:
        return [orjson.loads(line) for line in file]


class Outputs(RuleBasedStateMachine):
    """Two installations share two local folders, of several names each, and one of an object store."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.base = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="batchpipe-")))
        self.mortal, self.rows = Mortal(), 0
        self.sites = [Site(self.base / name, self.mortal) for name in ("one", "two")]
        self.theirs: dict[tuple[str, str], bytes] = {}
        for folder in ("real", "other", "sub"):
            (self.base / folder).mkdir()
        (self.base / "link").symlink_to("real")
        (self.base / "swing").symlink_to("real")
        store = f"memory://{uuid.uuid4().hex}"
        self.folders = [f"{self.base}/real", f"{self.base}/other", f"{store}/out"]
        self.names = [
            *(f"{self.base}/{name}" for name in ("real", "real/", "sub/../real", "link", "swing", "other")),
            *(f"file://{self.base}/link", f"{store}/out", f"{store}//out/", f"{store}/./out"),
        ]
        real = os.replace
        self.stack.enter_context(mock.patch("os.replace", self._mortal(real)))

    def _mortal(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **named: Any) -> None:
            self.mortal()
            function(*args, **named)

        return call

    def submit(self, site: Site, rows: Iterable[str], output: str, unseen: bool) -> None:
        """As a client does, on the workers' host or on another, which does not see where names lead."""
        job_id = new_job_id()
        body = {"method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}
        names, requests = list(rows), [{"custom_id": name, **body} for name in rows]
        with suppress(OutputInUse, InvalidInput):
            if not unseen:
                check_output_here(output)
            site.pump.submit(
                requests,
                id=job_id,
                output=output,
                owns=[f"unseen:{output}" if unseen else place_name(output)],
                workspace=str(site.pump.folder / "workspaces" / job_id),
            )
            site.jobs[job_id] = names

    # -- what happens ----------------------------------------------------------------------------------------------

    @rule(at=SITES, place=st.integers(0, 9), kinds=st.lists(st.sampled_from(["ok", "bad"]), min_size=1, max_size=3))
    def submits(self, at: int, place: int, kinds: list[str]) -> None:
        names = [f"{kind}{self.rows + number}" for number, kind in enumerate(kinds)]
        self.rows += len(kinds)
        self.submit(self.sites[at], names, self.names[place], unseen=False)

    @rule(at=SITES, place=st.integers(0, 9))
    def submits_from_another_host(self, at: int, place: int) -> None:
        self.rows += 1
        self.submit(self.sites[at], [f"ok{self.rows - 1}"], self.names[place], unseen=True)

    @rule(at=SITES, which=st.integers(0, 50), same=st.booleans())
    def retries(self, at: int, which: int, same: bool) -> None:
        site = self.sites[at]
        ended = [job for job in map(site.handle, site.jobs) if job.state.ended and job.record.failed]
        if not ended:
            return
        job = ended[which % len(ended)]
        failed = [row.custom_id for row in job.errors()]
        self.rows += len(failed)
        output = job.record.output if same else f"{job.record.output.rstrip('/')}/retry-{self.rows}"
        again = [f"ok{self.rows}-of-{name}" for name in failed]
        self.submit(site, again, output, unseen=False)

    @rule(at=SITES, turns=st.integers(1, 12))
    def works(self, at: int, turns: int) -> None:
        self.sites[at].go(turns)

    @rule(at=SITES)
    def works_to_the_end(self, at: int) -> None:
        site = self.sites[at]
        site.go(80 if site.notify_sites else 20)

    @rule(at=SITES, calls=st.integers(1, 60), turns=st.integers(1, 12))
    def is_killed(self, at: int, calls: int, turns: int) -> None:
        self.mortal.left = calls
        try:
            self.sites[at].go(turns)
        finally:
            self.mortal.left = None

    @rule(at=SITES, which=st.integers(0, 50))
    def cancels(self, at: int, which: int) -> None:
        if jobs := list(self.sites[at].jobs):
            self.sites[at].pump.cancel(jobs[which % len(jobs)])

    @rule(at=SITES)
    def receivers_change(self, at: int) -> None:
        self.sites[at].notify_sites = not self.sites[at].notify_sites

    @rule()
    def a_link_is_set_again(self) -> None:
        now = os.readlink(self.base / "swing")
        (self.base / "swing").unlink()
        (self.base / "swing").symlink_to("other" if now == "real" else "real")

    @rule(place=st.integers(0, 2), name=st.sampled_from(NAMES))
    def somebody_writes_a_file(self, place: int, name: str) -> None:
        folder = Folder(self.folders[place])
        if not folder.exists(name):
            text = f'{{"theirs": "{uuid.uuid4()}"}}\n'.encode()
            with folder.writer(name) as file:
                file.write(text)
            self.theirs[folder.url, name] = text

    @precondition(lambda self: self.theirs)
    @rule()
    def somebody_takes_his_files_away(self) -> None:
        for place, name in self.theirs:
            Folder(place).remove(name)
        self.theirs.clear()

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def nothing_of_others_is_changed(self) -> None:
        for (place, name), text in self.theirs.items():
            with Folder(place).reader(name) as file:
                assert file.read() == text

    @invariant()
    def what_was_paid_for_is_reachable(self) -> None:
        for site in self.sites:
            site.check()

    def teardown(self) -> None:
        try:
            for site in self.sites:
                site.notify_sites = True
                site.pump.run_until_idle()
                assert all(site.pump.job(job_id).closed for job_id in site.jobs)
            self.nothing_of_others_is_changed()
            self.what_was_paid_for_is_reachable()
        finally:
            self.stack.close()


@pytest.mark.scaled
def test_no_sequence_loses_what_was_paid_for_or_changes_what_others_wrote() -> None:
    """Several names of one folder, local and of an object store; two installations; kills at any call."""
    run_state_machine_as_test(
        Outputs,
        settings=settings(
            max_examples=scaled(120),
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
