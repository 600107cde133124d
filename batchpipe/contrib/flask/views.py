"""The state of jobs, as JSON: what ``batchpipe status --json`` prints, for users whom the site permits to see it.

``app.register_blueprint(blueprint)`` puts it at ``/batchpipe/``. Nobody sees anything there until
``app.config["BATCHPIPE_VIEW_PERMISSION"]`` is a function (request, job) -> bool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, jsonify, request
from werkzeug.utils import import_string

from batchpipe.contrib import json_views
from batchpipe.contrib.flask.config import VIEW_PERMISSION, WrongConfig
from batchpipe.contrib.json_views import Answer
from batchpipe.errors import SettingsError

if TYPE_CHECKING:
    from batchpipe.contrib.flask.extension import BatchPipe

MaySee = Callable[[Any, Any], bool]
View = Callable[..., Response]

#: In an app's extensions: that it has logged why nobody sees anything. It may have no site: the extension is missing.
SAID = "batchpipe-views-said"
SPELLED = f'app.config["{VIEW_PERMISSION}"]'
FORBIDDEN = json_views.refusal(403, "forbidden", "you may not see this")

blueprint = Blueprint("batchpipe", __name__, url_prefix="/batchpipe")

#: The methods of the views, and the others: without these Flask would refuse them in HTML.
ALLOWED = ("GET", "HEAD", "OPTIONS")
_METHODS = [*ALLOWED, "POST", "PUT", "PATCH", "DELETE"]


def _json(view: Callable[..., Answer]) -> View:
    """Errors are JSON, too, with one line of text."""

    @wraps(view)
    def answered(**parts: str) -> Response:
        if request.method not in ("GET", "HEAD"):
            response = _response(json_views.ONLY_GET) if request.method not in ALLOWED else Response()
            response.allow.update(ALLOWED)
            return response
        response = _response(json_views.answer(lambda: _look(view, parts)))
        response.cache_control.no_store = True
        return response

    return answered


def _look(view: Callable[..., Answer], parts: dict[str, str]) -> Answer:
    try:
        return view(**parts)
    except WrongConfig as error:
        _say_once(logging.ERROR, f"batchpipe: {error}")
        return json_views.refusal(500, error.code, "the jobs cannot be shown: the log of this site says why")


def _response(answer: Answer) -> Response:
    status, body = answer
    response = jsonify(body)
    response.status_code = status
    return response


@blueprint.route("/", endpoint="list", methods=_METHODS)
@_json
def job_list() -> Answer:
    """See ``json_views.list_jobs``."""
    allowed = _may_see()
    if allowed is None:
        return FORBIDDEN
    return json_views.list_jobs(registered().client, request.args, lambda job: allowed(request, job))


@blueprint.route("/<job_id>/", endpoint="detail", methods=_METHODS)
@_json
def job_detail(job_id: str) -> Answer:
    """See ``json_views.show_job``."""
    allowed = _may_see()
    if allowed is None:  # others do not learn which jobs exist
        return FORBIDDEN
    client, may_see = registered().client, lambda job: allowed(request, job)
    return json_views.show_job(client, job_id, request.args, may_see, refuse=lambda: FORBIDDEN, hides=lambda: False)


def registered() -> BatchPipe:
    """Raises WrongConfig: a blueprint may be registered without it, and before it."""
    found = current_app.extensions.get("batchpipe")
    if found is None:
        raise WrongConfig(SettingsError("the blueprint is registered, but batchpipe is not: call BatchPipe(app)"))
    extension: BatchPipe = found
    return extension


def _may_see() -> MaySee | None:
    """The site's rule; without one, nobody may. Raises WrongConfig."""
    rule = current_app.config.get(VIEW_PERMISSION)
    if rule is None:
        _say_once(logging.WARNING, f"batchpipe: nobody may see jobs: {SPELLED} is not set")
        return None
    try:
        found = import_string(rule) if isinstance(rule, str) else rule
    except ImportError as error:
        raise WrongConfig(SettingsError(f"{SPELLED} cannot be imported: {error}".partition("\n")[0])) from None
    if not callable(found):
        raise WrongConfig(SettingsError(f"{SPELLED} is no function (request, job) -> bool"))
    may_see: MaySee = found
    return may_see


def _say_once(level: int, text: str) -> None:
    """Log why nobody sees anything, once for each app."""
    if not current_app.extensions.get(SAID):
        current_app.extensions[SAID] = True
        current_app.logger.log(level, text)
