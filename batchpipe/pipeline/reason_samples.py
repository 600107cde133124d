"""A sample message for each reason of rows that are not ok. Records hold none, for a message may quote its row: the
samples are read from the job's ``errors.jsonl`` when somebody looks.
"""

from __future__ import annotations

from contextlib import suppress

from batchpipe.errors import BatchpipeError
from batchpipe.model.reasons import Tally
from batchpipe.model.records import JobRecord
from batchpipe.pipeline.results import ERRORS
from batchpipe.storage import Folder

#: Bytes of the file that are looked at: a reason that first shows behind them has no sample.
MOST_READ = 1 << 20


def read_samples(job: JobRecord, *, roots: tuple[str, ...] = ()) -> dict[str, str]:
    """Reason -> a message, cut and without secrets, of an ended job whose results lie on this host; else none.

    ``job``: as ``located`` gives it. A file that cannot be read gives no samples.
    """
    if not (job.state.ended and job.results and job.reasons):
        return {}
    found = Tally()
    with suppress(BatchpipeError, OSError):
        folder = Folder(job.results, roots=roots)
        if not folder.is_local:
            return {}
        with folder.reader(ERRORS) as file:
            head = file.read(MOST_READ)
        for line in head[: head.rfind(b"\n") + 1].splitlines():
            found.add_line(line)
    return {key: text for key, text in found.samples.items() if key in job.reasons}
