"""Descriptions for the products that have none: what is asked, and what is done with the answers."""

from collections.abc import Iterable, Iterator
from typing import Any

from django.db import transaction

import batchpipe
from catalogue.models import Product, Run

EDITOR = "You write for a shop's catalogue. Describe the product in two friendly sentences. Use only the given facts."


def requests(products: Iterable[Product]) -> Iterator[dict[str, Any]]:
    """One chat completion for each product; its id is how the answer finds its way back."""
    for product in products:
        yield {
            "custom_id": f"product-{product.pk}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "gpt-4o-mini",
                "messages": [
                    {"role": "system", "content": EDITOR},
                    {"role": "user", "content": f"{product.name}: {product.features}"},
                ],
            },
        }


@transaction.atomic
def describe(*, key: str | None = None, user: int | None = None) -> Run | None:
    """Ask for what is missing; None if nothing is. The job is sent when the transaction commits: both, or neither."""
    missing = Product.objects.filter(description="")
    if not missing.exists():
        return None
    job = batchpipe.submit(requests(missing.iterator()), name="product descriptions", key=key, tags={"user": user})
    return Run.objects.get_or_create(job=job.id)[0]


def write_back(job: batchpipe.Job) -> None:
    """Called at least once: writing the same text again does no harm."""
    for row in job.results():
        if row.state == "ok":
            text = row.text or ""
            Product.objects.filter(pk=row.custom_id.removeprefix("product-")).update(description=text)
