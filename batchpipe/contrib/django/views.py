"""The state of jobs, as JSON: what ``batchpipe status --json`` prints, for users whom the site permits to see it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from batchpipe.contrib.django.access import FOR_USERS, may_see, staff

#: Jobs in one response, and how many of the newest are checked for ones that the caller may see.
MOST, LOOKED_AT = 100, 1_000

View = Callable[..., JsonResponse]


def _json(view: View) -> View:
    """Errors are JSON, too, with one line of text."""

    @csrf_exempt  # nothing can be changed here; a client that tries gets that in JSON
    @never_cache
    @wraps(view)
    def answered(request: HttpRequest, **parts: str) -> JsonResponse:
        from batchpipe.errors import BatchpipeError, InvalidInput, JobNotFound

        if request.method not in ("GET", "HEAD"):
            return _error(405, "method_not_allowed", "only GET", Allow="GET, HEAD")
        try:
            return view(request, **parts)
        except JobNotFound as error:
            return _error(404, error.code, error.message)
        except InvalidInput as error:
            return _error(400, error.code, error.message)
        except BatchpipeError as error:
            return _error(503, error.code, "the jobs cannot be read just now")

    found: View = answered
    return found


@_json
def job_list(request: HttpRequest) -> JsonResponse:
    """``{"jobs": [...]}``, newest first, without shards. ``?state=running&limit=20``."""
    from batchpipe.client.client import list_jobs

    limit = min(max(_number(request, "limit", MOST), 1), MOST)
    allowed = may_see()
    if allowed in FOR_USERS and not _is_known(request):  # else the rule decides, and an empty list may be right
        return _forbidden(request)
    if allowed is staff and not staff(request):  # not an empty list: there may be jobs
        return _forbidden(request)
    jobs = [job for job in list_jobs(state=request.GET.get("state") or None, limit=LOOKED_AT) if allowed(request, job)]
    return JsonResponse({"jobs": [job.to_dict(shards=False) for job in jobs[:limit]]})


@_json
def job_detail(request: HttpRequest, job_id: str) -> JsonResponse:
    """One job with its shards: ``?from=1000&limit=500`` are those from an index on, 1,000 at most. Includes
    their total number (``shards_in_all``) and the index to continue ``from`` (``next``, or null).
    """
    from batchpipe.client.client import get_job
    from batchpipe.client.job import MOST_SHOWN
    from batchpipe.errors import JobNotFound

    first, limit = _number(request, "from", 0), _number(request, "limit", MOST_SHOWN)
    try:
        job = get_job(job_id)
    except JobNotFound:
        if not _is_known(request):  # others do not learn which jobs exist
            return _forbidden(request)
        raise
    return JsonResponse(job.to_page(first, limit)) if may_see()(request, job) else _forbidden(request)


def _number(request: HttpRequest, name: str, default: int) -> int:
    """A number from the query. Raises InvalidInput."""
    from batchpipe.errors import InvalidInput

    try:
        return int(request.GET.get(name) or default)
    except ValueError:
        raise InvalidInput("must be a number", field=name) from None


def _is_known(request: HttpRequest) -> bool:
    user = getattr(request, "user", None)
    return user is not None and bool(user.is_authenticated)


def _forbidden(request: HttpRequest) -> JsonResponse:
    if _is_known(request):
        return _error(403, "forbidden", "you may not see this: batchpipe.view_job is asked for")
    return _error(401, "not_logged_in", "log in to see this")


def _error(status: int, code: str, message: str, **headers: Any) -> JsonResponse:
    return JsonResponse({"error": {"code": code, "message": message}}, status=status, headers=headers)
