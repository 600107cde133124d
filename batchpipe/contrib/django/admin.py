"""Jobs in the admin: a list, a page for each, their results, cancel and retry. All is read from Redis, now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html

from batchpipe.contrib.django.models import Job
from batchpipe.contrib.django.progress import progress_of
from batchpipe.errors import BatchpipeError, InvalidInput, JobNotFound, SettingsError, StoreUnavailable
from batchpipe.masking import printable

if TYPE_CHECKING:
    from batchpipe.client import client
    from batchpipe.model.records import ShardRecord
    from batchpipe.model.views import Moment

JOBS_PER_PAGE = 50
#: Shards and events that a job's page shows; the command line has them all.
MOST_SHARDS, MOST_EVENTS = 200, 200
#: How many shards of a job a page adds up.
MOST_MEASURED = 5_000
#: Bytes of a file that are sent at once.
CHUNK = 1 << 18
#: Characters of a job's id.
MOST_OF_A_NAME = 100
#: Downloads, and their names on the page.
FILES = {"output": "rows that are ok", "errors": "rows that are not"}

View = Callable[..., HttpResponse]


@admin.register(Job)
class JobAdmin(admin.ModelAdmin):
    """Permissions are Django's own: ``batchpipe.view_job``, and ``batchpipe.change_job`` for cancel and retry."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        def page(view: View) -> View:
            wrapped: View = self.admin_site.admin_view(view)
            return wrapped

        return [
            path("", page(self.changelist_view), name="batchpipe_job_changelist"),
            path("<str:object_id>/change/", page(self.change_view), name="batchpipe_job_change"),
            path("<str:object_id>/", page(self._to_change_view)),
            path("<str:object_id>/<str:kind>.jsonl", page(self.download_view), name="batchpipe_job_download"),
        ]

    # -- pages -----------------------------------------------------------------------------------------------------

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._act(request)
        state, number = request.GET.get("state") or None, _page_number(request)
        context: dict[str, Any] = {"state": state, "number": number, "may_act": self.has_change_permission(request)}
        try:
            context |= _list(state, number)
        except BatchpipeError as error:
            return self._answer(request, "change_list", "Jobs", context, error)
        for row in context["rows"]:
            row["url"] = self._url("change", row["id"])
            row["files"] = self._files(row)
        return self._answer(request, "change_list", "Jobs", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        context: dict[str, Any] = {"may_act": self.has_change_permission(request)}
        try:
            context |= _detail(unquote(object_id))
        except JobNotFound as error:
            raise Http404(str(error)) from None
        except BatchpipeError as error:
            return self._answer(request, "change_form", "Job", context, error)
        context["job"]["files"] = self._files(context["job"])
        return self._answer(request, "change_form", context["job"]["title"], context)

    def _to_change_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Like other admin pages: a shortened address leads there, too."""
        return HttpResponseRedirect(self._url("change", unquote(object_id)))

    def download_view(self, request: HttpRequest, object_id: str, kind: str) -> HttpResponse:
        """A result file, streamed from wherever it lies."""
        from batchpipe.client.client import get_job

        if not self.has_view_permission(request):
            raise PermissionDenied
        job_id = unquote(object_id)
        try:
            job = get_job(job_id)
            if kind not in FILES or job.to_dict(shards=False)[f"{_FIELD[kind]}_file"] is None:
                raise Http404(f"job {job_id} has no such file")
            place, name = job.results_folder(), f"{kind}.jsonl"
            size = place.size(name)
        except JobNotFound as error:
            raise Http404(str(error)) from None
        except BatchpipeError as error:
            messages.error(request, str(error))
            return HttpResponseRedirect(self._url("change", job_id))
        headers = {"Content-Disposition": f'attachment; filename="{job.id}-{name}"', "Content-Length": str(size)}
        chunks = _async_chunks(place, name) if isinstance(request, ASGIRequest) else _chunks(place, name)
        return StreamingHttpResponse(chunks, content_type="application/x-ndjson", headers=headers)

    # -- actions ---------------------------------------------------------------------------------------------------

    def _act(self, request: HttpRequest) -> HttpResponse:
        if not self.has_change_permission(request):
            raise PermissionDenied
        action = request.POST.get("action")
        # a name that no job can have is ignored: an empty one has no address to go back to
        names = (name.strip() for name in request.POST.getlist("job")[:JOBS_PER_PAGE])
        chosen = [name for name in names if 0 < len(name) <= MOST_OF_A_NAME]
        if not chosen or action not in ("cancel", "retry"):
            messages.warning(request, "Choose at least one job and an action.")
        elif action == "cancel" and "sure" not in request.POST:
            return self._answer(request, "confirm_cancel", "Are you sure?", {"chosen": chosen})
        else:
            self._do(request, action, chosen)
        here = len(chosen) == 1 and "here" in request.POST
        return HttpResponseRedirect(self._url("change", chosen[0]) if here else self._url("changelist"))

    def _do(self, request: HttpRequest, action: str, chosen: list[str]) -> None:
        for job_id in chosen:
            try:
                self._do_one(request, action, job_id)
            except (StoreUnavailable, SettingsError) as error:  # the others would wait for Redis in vain, too
                messages.error(request, str(error))
                return
            except BatchpipeError as error:
                said = str(error)
                messages.error(request, f"J{said[1:]}" if said.startswith(f"job {job_id}") else f"Job {job_id}: {said}")

    def _do_one(self, request: HttpRequest, action: str, job_id: str) -> None:
        from batchpipe.client.client import default_client

        client = default_client()
        if action == "retry" and (job := client.retry(job_id)).state.ended:
            messages.warning(request, f"Job {job_id} was retried before, by {job.id}, which has ended.")
        elif action == "retry":
            self._report(request, job, f"Retries {job_id}.", f"retries the failed rows of {job_id}")
        elif (job := client.get_job(job_id)).state.ended:
            messages.warning(request, f"Job {job_id} has ended already: {job.state.value}.")
        else:
            self._report(request, job.cancel(), "Cancelled.", "is being cancelled; rows that are finished are kept")

    def _report(self, request: HttpRequest, job: client.Job, logged: str, said: str) -> None:
        self.log_change(request, Job(id=job.id, name=job.name or ""), logged)
        messages.success(request, format_html('Job <a href="{}">{}</a> {}.', self._url("change", job.id), job.id, said))

    # -- parts of a page -------------------------------------------------------------------------------------------

    def _answer(
        self,
        request: HttpRequest,
        template: str,
        title: str,
        context: dict[str, Any],
        error: BatchpipeError | None = None,
    ) -> HttpResponse:
        """Renders a page of ours; with ``error`` it shows that instead of its contents."""
        request.current_app = self.admin_site.name
        page = {**self.admin_site.each_context(request), "opts": self.model._meta, "title": title, **context}
        status = 200
        if error is not None:
            status = 400 if isinstance(error, InvalidInput) else 503
            page["trouble"] = str(error)
        return TemplateResponse(request, f"admin/batchpipe/job/{template}.html", page, status=status)

    def _url(self, name: str, *args: str) -> str:
        quoted = [quote(arg) for arg in args[:1]] + list(args[1:])
        return str(reverse(f"admin:batchpipe_job_{name}", args=quoted, current_app=self.admin_site.name))

    def _files(self, row: dict[str, Any]) -> list[dict[str, str]]:
        return [
            {"url": self._url("download", row["id"], kind), "kind": kind, "name": f"{kind}.jsonl", "text": text}
            for kind, text in FILES.items()
            if row[f"{_FIELD[kind]}_file"] is not None
        ]


#: The names of a job's files in its view.
_FIELD = {"output": "output", "errors": "error"}


def _page_number(request: HttpRequest) -> int:
    text = request.GET.get("p", "1")
    return min(max(int(text), 1), 1_000) if text.isascii() and text.isdigit() else 1


def _list(state: str | None, number: int) -> dict[str, Any]:
    """One page of the jobs, newest first. Raises BatchpipeError."""
    from batchpipe.client.client import default_client

    client = default_client()
    upto = number * JOBS_PER_PAGE
    jobs = client.list_jobs(state=state, limit=upto + 1)
    shown = jobs[upto - JOBS_PER_PAGE : upto]
    rows = [_job_row(job, view) for job, view in zip(shown, client.show(shown), strict=True)]
    counts = client.stats().jobs
    states = [{"name": name, "count": count} for name, count in counts.items() if count or name == state]
    return {"rows": rows, "states": states, "more": len(jobs) > upto}


def _detail(job_id: str) -> dict[str, Any]:
    """Everything of one job. Raises BatchpipeError."""
    from batchpipe.client.client import default_client
    from batchpipe.model.reasons import name_of_reason

    client = default_client()
    job = client.get_job(job_id)
    shards = list(islice(job.shards(), MOST_SHARDS))
    moment = client.moment_of(job)
    events = [_event(event) for event in job.logs()[-MOST_EVENTS:]]
    return {
        "job": _job_row(job, client.show([job])[0]),
        "reasons": [{**reason, "name": name_of_reason(reason)} for reason in job.reasons()],
        "shards": [(shard, _trouble(shard, moment)) for shard in shards],
        "hidden_shards": max(0, job.record.shards - MOST_SHARDS),
        "events": events,
        "pause": moment.pause,
        "metrics": job.metrics() if job.state.ended and 0 < job.record.shards <= MOST_MEASURED else None,
        "refresh": not job.record.closed,
    }


def _trouble(shard: ShardRecord, moment: Moment) -> str:
    """What ended a shard, what it waits for, or how its batch is late; empty if all is well."""
    from batchpipe.model.views import late_view
    from batchpipe.model.waits import shard_waits_for, wait_words

    if shard.error is not None:
        return printable(shard.error.message)
    late = late_view(shard)
    return printable(wait_words(shard_waits_for(shard, moment.shard_room(shard))) or (late or {}).get("message", ""))


def _moment(seconds: float | None) -> datetime | None:
    """A unix time as templates show times."""
    if seconds is None:
        return None
    at = datetime.fromtimestamp(seconds, tz=UTC)
    return at if settings.USE_TZ else timezone.make_naive(at)


def _job_row(job: client.Job, view: dict[str, Any]) -> dict[str, Any]:
    """One job for a list or a page of its own."""
    from batchpipe.model.reasons import reason_words
    from batchpipe.model.views import not_notified
    from batchpipe.model.waits import wait_words

    record = job.record
    trouble = wait_words(view["waits_for"]) or not_notified(record)
    return {
        **view,
        "title": printable(job.name or job.id),
        "progress": progress_of(job),
        "not_ok": printable(reason_words(view["reasons"])),
        "created": _moment(view["created_at"]),
        "ended": _moment(view["ended_at"]),
        "trouble": printable(trouble) if trouble else None,
        "may_cancel": not job.state.ended and not record.cancel,
        "may_retry": job.state.ended and bool((record.failed or 0) + (record.missing or 0)),
    }


def _event(event: dict[str, Any]) -> dict[str, Any]:
    shown = {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}
    rest = {name: value for name, value in shown.items() if name not in ("id", "at", "event")}
    return {"at": _moment(event["at"]), "name": event["event"], "rest": rest}


def _chunks(place: Any, name: str) -> Generator[bytes, None, None]:
    with place.reader(name) as file:
        while chunk := file.read(CHUNK):
            yield chunk


async def _async_chunks(place: Any, name: str) -> AsyncIterator[bytes]:
    """The same for ASGI, where Django would gather a plain iterator before it sends anything. Read in threads."""
    chunks = _chunks(place, name)
    step = sync_to_async(lambda: next(chunks, b""), thread_sensitive=False)
    try:
        while chunk := await step():
            yield chunk
    finally:
        with suppress(ValueError):  # a thread is still reading for a client that is gone: the file is closed with it
            await sync_to_async(chunks.close, thread_sensitive=False)()
