"""Download: fetch a batch's files and account for every row of its shard.

``answer_index`` finds each row's line in the two files, ``collecting`` writes down what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchpipe.errors import Gone, Refused
from batchpipe.model.lateness import wait_for_files
from batchpipe.model.provider import ProviderReads
from batchpipe.model.records import JobRecord, Move, Problem, ShardRecord, Stage, Status
from batchpipe.model.refusals import believed_at, unseen
from batchpipe.pipeline.answer_index import Answers, counted_answers, left_out, tells_nothing
from batchpipe.pipeline.collecting import absent_of, collect
from batchpipe.pipeline.fetching import Fetcher, Unsized
from batchpipe.pipeline.judging import judge_of
from batchpipe.pipeline.recipes import read_recipe
from batchpipe.pipeline.slots import is_small
from batchpipe.storage import Folder
from batchpipe.telemetry.prices import Pricer, unknown

#: How often in a row, and how long, a file must be unknown to a key that sees its batch before we believe that it is
#: gone: its rows are paid.
MAX_GONE = 4
GONE_SECONDS = 3_600.0

#: Codes of what we wait for: answers that are counted, or of which the provider tells nothing; rows that are counted as
#: failed; rows missing from a batch that says it is complete; a file that looks damaged.
_ANSWERS, _FAILURES, _UNCOUNTED, _DAMAGED = "answers_late", "failures_late", "rows_uncounted", "file_damaged"
_BY_COUNT = (_ANSWERS, _FAILURES, _UNCOUNTED)


def download(
    job: JobRecord,
    shard: ShardRecord,
    workspace: Folder,
    api: ProviderReads,
    token: str,
    *,
    now: float,
    files_patience: float,
    unseen_seconds: float = 86_400.0,
    prices: Pricer = unknown,
    check: Callable[[], None],
    elsewhere: Folder | None = None,
) -> Move:
    """Collect a shard after its batch has ended. ``elsewhere``: a local folder for the downloaded parts of its files,
    if the workspace is remote.

    A file that this key does not see is waited for, ``unseen_seconds`` at least if it does not see the batch either.

    Moves to ``collected``, or stays at ``ended`` for a while if its files lag: they have fewer lines than the provider
    counted, fewer bytes than it reported, or unreadable lines. They are waited for ``files_patience`` seconds;
    answers that are counted and have not come by then are missing for good. Raises Unavailable, StorageTrouble,
    BatchpipeError (``rows_lost``) if the rows do not add up.
    """
    waits = _Waits(job, shard, now, files_patience)
    if shard.late_at is not None:
        shard = _read_again(shard, api)
        if (idle := waits.for_news(shard, api)) is not None:
            return idle
    turn = _Download(job, shard, workspace, api, token, waits, unseen_seconds, prices, check, elsewhere)
    # where every row has its answer nobody need know how long the files are: of a small shard that is not asked first
    counted = (shard.counts.completed or 0) + (shard.counts.failed or 0) == shard.rows
    hopeful = counted and not shard.fetched and shard.late_at is None and is_small(shard.bytes, shard.rows)
    return (turn.unsized() if hopeful else None) or turn.sized()


@dataclass(frozen=True)
class _Download:
    """One fetch of the files, and what follows from them."""

    job: JobRecord
    shard: ShardRecord  #: as it is known now
    workspace: Folder
    api: ProviderReads
    token: str
    waits: _Waits
    unseen_seconds: float
    prices: Pricer
    check: Callable[[], None]
    elsewhere: Folder | None

    def unsized(self) -> Move | None:
        """Without asking how long the files are. None: they do not have all, so it must be asked."""
        with self._fetcher(sized=False) as files:
            answers = self._answers()
            try:
                gone = self._read(files, answers)
            except Unsized:
                return None
            return None if gone is not None or not _has_all(answers, self.shard) else self._collect(answers, None)

    def sized(self) -> Move:
        with self._fetcher(sized=True) as files:
            answers = self._answers()
            gone = self._read(files, answers)
            lost = self._lost(*gone) if gone is not None else None
            if isinstance(lost, Move):
                return lost
            if gone is None and (waiting := self.waits.for_answers(self.shard, answers)) is not None:
                return waiting
            return self._collect(answers, lost)

    def _fetcher(self, *, sized: bool) -> Fetcher:
        name = f"{self.job.id}-{self.shard.index:05d}"
        return Fetcher(self.api, self.workspace, name, self.check, elsewhere=self.elsewhere, sized=sized)

    def _answers(self) -> Answers:
        return Answers(self.workspace, self.shard, self.check, endpoint=self.job.endpoint, prices=self.prices)

    def _read(self, files: Fetcher, answers: Answers) -> tuple[str, Gone] | None:
        """Returns the last file that is not found, if any is not."""
        gone = None
        for file_id in filter(None, (self.shard.output_file_id, self.shard.error_file_id)):
            try:
                scratch, extent = files.fetch(file_id)
            except Gone as error:
                gone = file_id, error
            else:
                answers.read(scratch, file_id, self.check, extent=extent)
        return gone

    def _collect(self, answers: Answers, lost: Problem | None) -> Move:
        shard = self.shard
        absent = absent_of(shard, lost or answers.lack(shard), answers)
        judge = judge_of(read_recipe(self.job, self.workspace), shard, self.job.endpoint)
        return collect(shard, self.workspace, self.token, answers, absent, self.check, self.job.round, judge)

    def _lost(self, file_id: str, error: Gone) -> Move | Problem:
        """Whether a file that is not found is believed to be gone: a key that sees its batch is believed sooner."""
        job, shard, now = self.job, self.shard, self.waits.now
        try:
            self.api.retrieve(shard.batch_id or "")
            ends = (shard.unseen_at if shard.unseen_at is not None else now) + GONE_SECONDS
            what = f"file {file_id} with results, though it sees their batch"
        except Gone:
            ends = believed_at(job, shard, shard.created_at, now=now, patience=self.unseen_seconds)
            what = f"file {file_id} with results, nor their batch {shard.batch_id}"
        if not shard.landing and (shard.unfound + 1 < MAX_GONE or now < ends):
            return unseen(job, shard, Stage.ENDED, what, error, now=now, ends=ends)
        message = f"file {file_id} is gone at the provider: {error}; if another key sees it: batchpipe land {shard.job}"
        return Problem(code="file_gone", message=message)


def _has_all(answers: Answers, shard: ShardRecord) -> bool:
    """Every row has its answer, and as many are ok as the provider counts: a file may have a failed line of a row, and
    further down an ok one."""
    return answers.answered == shard.rows and answers.ok >= (shard.counts.completed or 0)


def _read_again(shard: ShardRecord, api: ProviderReads) -> ShardRecord:
    """The shard, updated with what the provider says of its batch now. Raises Unavailable, Paused."""
    try:
        batch = api.retrieve(shard.batch_id or "")
    except Refused:
        return shard
    if batch.status not in Status.FINAL:
        return shard
    counted = shard.counts if batch.counts.completed is None else batch.counts
    output, error = batch.output_file_id or shard.output_file_id, batch.error_file_id or shard.error_file_id
    return shard.evolve(output_file_id=output, error_file_id=error, counts=counted)


@dataclass(frozen=True)
class _Waits:
    """What a download waits for, and how."""

    job: JobRecord
    shard: ShardRecord  #: as it was recorded
    now: float
    patience: float

    def for_news(self, shard: ShardRecord, api: ProviderReads) -> Move | None:
        """Files of the same lengths as before are not fetched again. None if they have changed, or the time is over."""
        before = self.shard
        same = (shard.output_file_id, shard.error_file_id, shard.counts) == (
            before.output_file_id,
            before.error_file_id,
            before.counts,
        )
        if not same or before.trouble is None or before.trouble.code not in _BY_COUNT:
            return None
        for file_id in filter(None, (shard.output_file_id, shard.error_file_id)):
            length = before.fetched.get(file_id, "").partition(":")[0]
            try:
                if not length or api.file_bytes(file_id) != int(length):
                    return None
            except Gone:
                return None
        what = before.trouble.message.partition("; waited for")[0]
        return self._longer(shard, what, before.fetched, before.trouble.code)

    def for_answers(self, shard: ShardRecord, answers: Answers) -> Move | None:
        """None if nothing is missing that may yet come, or the time is over."""
        if answers.answered == shard.rows:
            return None
        code = _DAMAGED
        settled = all(shard.fetched.get(name) == seen for name, seen in answers.fetched.items())
        if answers.lacking(shard) > 0:
            code = _ANSWERS if answers.lacks_paid(shard) else _FAILURES
            came = answers.answered - answers.not_run
            what = f"the provider counts {counted_answers(shard)} answers, and its files have {came}"
        elif not self.job.cancel and answers.leaves_out(shard):
            code = _ANSWERS if tells_nothing(shard) else _UNCOUNTED
            what = left_out(shard, answers.answered)
        elif answers.suspect and (answers.has_unreadable or not (settled and answers.is_counted(shard))):
            what = answers.suspect
        elif answers.unreadable and not settled:
            what = f"{answers.unreadable.message}: the file may be cut short, and is fetched once more"
        else:
            return None
        return self._longer(shard, what, answers.fetched, code)

    def _longer(self, shard: ShardRecord, what: str, fetched: dict[str, str], code: str) -> Move | None:
        changes = {
            "fetched": fetched,
            "counts": shard.counts,
            "output_file_id": shard.output_file_id,
            "error_file_id": shard.error_file_id,
        }
        return wait_for_files(
            self.job,
            self.shard,
            Stage.ENDED,
            what,
            now=self.now,
            patience=self.patience,
            changes=changes,
            code=code,
            unpaid=code in (_FAILURES, _UNCOUNTED),
        )
