"""``path("batchpipe/", include("batchpipe.contrib.django.urls"))``: the state of jobs, as JSON."""

from __future__ import annotations

from django.urls import path

from batchpipe.contrib.django import views

app_name = "batchpipe"
urlpatterns = [
    path("", views.job_list, name="list"),
    path("<str:job_id>/", views.job_detail, name="detail"),
]
