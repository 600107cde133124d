"""The pages of the tests' site."""

from __future__ import annotations

from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path

import batchpipe
from tests.django_models import Note
from tests.django_project import requests


def order(request: HttpRequest) -> HttpResponse:
    """A view that submits, and may fail after that."""
    job = batchpipe.submit(requests(2), key=request.GET.get("key"))
    Note.objects.create(text=job.id)
    if "fail" in request.GET:
        transaction.set_rollback(True)
    return JsonResponse({"job": job.id})


def upload(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"job": batchpipe.submit(request.FILES["rows"]).id})


urlpatterns = [
    path("order/", order),
    path("upload/", upload),
    path("batchpipe/", include("batchpipe.contrib.django.urls")),
    path("admin/", admin.site.urls),
]
