"""The state of jobs, as JSON: what ``batchpipe status --json`` prints, for users whom the site permits to see it. And
the way in of the provider's webhooks, which show that they are the provider's by their signature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from batchpipe.contrib import json_views, webhook_views
from batchpipe.contrib.django.access import FOR_USERS, may_see, staff
from batchpipe.contrib.json_views import Answer

View = Callable[..., JsonResponse]


def _json(view: Callable[..., Answer]) -> View:
    """Errors are JSON, too, with one line of text."""

    @csrf_exempt  # nothing can be changed here; a client that tries gets that in JSON
    @never_cache
    @wraps(view)
    def answered(request: HttpRequest, **parts: str) -> JsonResponse:
        if request.method not in ("GET", "HEAD"):
            status, body = json_views.ONLY_GET
            return JsonResponse(body, status=status, headers={"Allow": "GET, HEAD"})
        status, body = json_views.answer(lambda: view(request, **parts))
        return JsonResponse(body, status=status)

    found: View = answered
    return found


@_json
def job_list(request: HttpRequest) -> Answer:
    """See ``json_views.list_jobs``."""
    from batchpipe.client.client import default_client

    allowed = may_see()
    if allowed in FOR_USERS and not _is_known(request):  # else the rule decides, and an empty list may be right
        return _refusal(request)
    if allowed is staff and not staff(request):  # not an empty list: there may be jobs
        return _refusal(request)
    return json_views.list_jobs(default_client(), request.GET, lambda job: allowed(request, job))


@_json
def job_detail(request: HttpRequest, job_id: str) -> Answer:
    """See ``json_views.show_job``."""
    from batchpipe.client.client import default_client

    def allowed(job: object) -> bool:
        return may_see()(request, job)

    def hides() -> bool:
        return not _is_known(request)

    client, query = default_client(), request.GET
    return json_views.show_job(client, job_id, query, allowed, refuse=lambda: _refusal(request), hides=hides)


def _is_known(request: HttpRequest) -> bool:
    user = getattr(request, "user", None)
    return user is not None and bool(user.is_authenticated)


def _refusal(request: HttpRequest) -> Answer:
    if _is_known(request):
        return json_views.refusal(403, "forbidden", "you may not see this: batchpipe.view_job is asked for")
    return json_views.refusal(401, "not_logged_in", "log in to see this")


@csrf_exempt
@never_cache
def webhook(request: HttpRequest, account: str | None = None) -> JsonResponse:
    """Takes a webhook of the provider. With ``account`` only that one's secrets count."""
    from batchpipe.client.client import default_client

    status, body = webhook_views.take(default_client, request.method or "", request.headers.get, request.read, account)
    return JsonResponse(body, status=status, headers={"Allow": "POST"} if status == 405 else {})
