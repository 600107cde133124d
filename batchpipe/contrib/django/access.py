"""Who may see which job through the JSON views: the site decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils.module_loading import import_string

#: A site's function (request, job) -> bool, or its dotted path.
NAME = "BATCHPIPE_VIEW_PERMISSION"

MaySee = Callable[[HttpRequest, Any], bool]


def staff(request: HttpRequest, job: Any = None) -> bool:
    """The default: staff with the permission to view jobs see every job, as in the admin; nobody else sees any."""
    user = getattr(request, "user", None)
    if user is None or not user.is_active or not user.is_staff:
        return False
    return bool(user.has_perm("batchpipe.view_job") or user.has_perm("batchpipe.change_job"))


def owner_or_staff(request: HttpRequest, job: Any) -> bool:
    """Also the user who submitted it, if the site tags its jobs: ``submit(..., tags={"user": request.user.pk})``."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated or not user.is_active:
        return False
    return staff(request) or ("user" in job.tags and str(job.tags["user"]) == str(user.pk))


#: Rules under which a user who is not logged in never sees anything.
FOR_USERS: tuple[MaySee, ...] = (staff, owner_or_staff)


def may_see() -> MaySee:
    """The site's rule. Raises ImportError, also if it is not a function."""
    given = getattr(settings, NAME, None) or staff
    rule = import_string(given) if isinstance(given, str) else given
    if not callable(rule):
        raise ImportError("is no function")
    found: MaySee = rule
    return found
