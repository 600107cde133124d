from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

import batchpipe
from batchpipe.contrib.django.progress import progress_of
from catalogue.descriptions import describe
from catalogue.models import Product, Run


def index(request: HttpRequest) -> HttpResponse:
    """The catalogue, and how far the latest job is."""
    products = list(Product.objects.all())
    page = {"products": products, "described": sum(bool(product.description) for product in products)}
    return render(request, "catalogue/index.html", {**page, **_latest()})


def _latest() -> dict[str, object]:
    run = Run.objects.first()
    if run is None:
        return {}
    try:
        job = batchpipe.get_job(run.job)
        return {"job": job, "progress": progress_of(job), "going": not job.record.closed}
    except batchpipe.JobNotFound:
        return {}
    except batchpipe.TransientError:
        return {"trouble": "Redis is away; jobs cannot be shown just now."}


@require_POST
@login_required
def describe_all(request: HttpRequest) -> HttpResponse:
    run = describe(user=request.user.pk)
    if run is None:
        messages.info(request, "Every product has its description.")
    return redirect("index")


@require_POST
@login_required
def forget_all(request: HttpRequest) -> HttpResponse:
    """So that the button can be tried again."""
    Product.objects.update(description="")
    return redirect("index")
