"""The state of jobs as JSON: what ``batchpipe status --json`` prints, for callers whom the site permits to see it.

For any framework: it gets a client and plain values, and returns the status of the response and its JSON. Importing
this loads none of our libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchpipe.client.client import Client, Job

#: Jobs in one response, and how many of the newest are checked for ones that the caller may see.
MOST, LOOKED_AT = 100, 1_000

Answer = tuple[int, dict[str, Any]]
MaySee = Callable[["Job"], bool]


def list_jobs(client: Client, query: Mapping[str, str], may_see: MaySee) -> Answer:
    """``{"jobs": [...]}``, newest first, without shards. ``?state=running&limit=20``."""
    limit = min(max(_number(query, "limit", MOST), 1), MOST)
    jobs = client.list_jobs(state=query.get("state") or None, limit=LOOKED_AT)
    seen = [job for job in jobs if may_see(job)]
    return 200, {"jobs": client.show(seen[:limit])}


def show_job(
    client: Client,
    job_id: str,
    query: Mapping[str, str],
    may_see: MaySee,
    *,
    refuse: Callable[[], Answer],
    hides: Callable[[], bool],
) -> Answer:
    """One job with its shards: ``?from=1000&limit=500`` are those from an index on, 1,000 at most. Includes
    their total number (``shards_in_all``) and the index to continue ``from`` (``next``, or null).

    ``refuse``: for a caller who may not see it. ``hides``: whether this caller does not learn either which jobs exist.
    """
    from batchpipe.client.job import MOST_SHOWN
    from batchpipe.errors import JobNotFound

    first, limit = _number(query, "from", 0), _number(query, "limit", MOST_SHOWN)
    try:
        job = client.get_job(job_id)
    except JobNotFound:
        if hides():
            return refuse()
        raise
    return (200, job.to_page(first, limit)) if may_see(job) else refuse()


def answer(look: Callable[[], Answer]) -> Answer:
    """What ``look`` returns; for an error of ours, its status and one line of text."""
    from batchpipe.errors import BatchpipeError, InvalidInput, JobNotFound

    try:
        return look()
    except JobNotFound as error:
        return refusal(404, error.code, error.message)
    except InvalidInput as error:
        return refusal(400, error.code, error.message)
    except BatchpipeError as error:
        return refusal(503, error.code, "the jobs cannot be read just now")


def refusal(status: int, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message}}


#: For any method but GET and HEAD.
ONLY_GET = refusal(405, "method_not_allowed", "only GET")


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    """A number from the query. Raises InvalidInput."""
    from batchpipe.errors import InvalidInput

    try:
        return int(query.get(name) or default)
    except ValueError:
        raise InvalidInput("must be a number", field=name) from None
