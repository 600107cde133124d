"""``path("batchpipe/", include("batchpipe.contrib.django.urls"))``: the state of jobs, as JSON, and the way
in of the provider's webhooks.
"""

from __future__ import annotations

from django.urls import path

from batchpipe.contrib.django import views

app_name = "batchpipe"
urlpatterns = [
    path("", views.job_list, name="list"),
    # without the slash, too: a sender follows no redirect
    path("webhooks", views.webhook),
    path("webhooks/", views.webhook, name="webhooks"),
    path("webhooks/<str:account>", views.webhook),
    path("webhooks/<str:account>/", views.webhook, name="account-webhooks"),
    path("<str:job_id>/", views.job_detail, name="detail"),
]
