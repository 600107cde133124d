"""Numbers for people; ``django.contrib.humanize`` need not be installed."""

from __future__ import annotations

from django import template

register = template.Library()


@register.filter
def thousands(value: int | None) -> str:
    """12345 -> 12,345; a dash for what is not known yet."""
    return "-" if value is None else f"{value:,}"
