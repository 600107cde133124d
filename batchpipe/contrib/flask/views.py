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

from batchpipe.contrib.flask.config import VIEW_PERMISSION, WrongConfig
from batchpipe.errors import SettingsError

if TYPE_CHECKING:
    from batchpipe.contrib.flask.extension import BatchPipe

#: Jobs in one response, and how many of the newest are checked for ones that the caller may see.
MOST, LOOKED_AT = 100, 1_000

MaySee = Callable[[Any, Any], bool]
View = Callable[..., Response]

#: In an app's extensions: that it has logged why nobody sees anything. It may have no site: the extension is missing.
SAID = "batchpipe-views-said"
SPELLED = f'app.config["{VIEW_PERMISSION}"]'

blueprint = Blueprint("batchpipe", __name__, url_prefix="/batchpipe")

#: The methods of the views, and the others: without these Flask would refuse them in HTML.
ALLOWED = ("GET", "HEAD", "OPTIONS")
_METHODS = [*ALLOWED, "POST", "PUT", "PATCH", "DELETE"]


def _json(view: View) -> View:
    """Errors are JSON, too, with one line of text."""

    @wraps(view)
    def answered(**parts: str) -> Response:
        from batchpipe.errors import BatchpipeError, InvalidInput, JobNotFound

        if request.method not in ("GET", "HEAD"):
            response = _error(405, "method_not_allowed", "only GET") if request.method not in ALLOWED else Response()
            response.allow.update(ALLOWED)
            return response
        try:
            response = view(**parts)
        except JobNotFound as error:
            response = _error(404, error.code, error.message)
        except InvalidInput as error:
            response = _error(400, error.code, error.message)
        except WrongConfig as error:
            _say_once(logging.ERROR, f"batchpipe: {error}")
            response = _error(500, error.code, "the jobs cannot be shown: the log of this site says why")
        except BatchpipeError as error:
            response = _error(503, error.code, "the jobs cannot be read just now")
        response.cache_control.no_store = True
        return response

    return answered


@blueprint.route("/", endpoint="list", methods=_METHODS)
@_json
def job_list() -> Response:
    """``{"jobs": [...]}``, newest first, without shards. ``?state=running&limit=20``."""
    limit = min(max(_number("limit", MOST), 1), MOST)
    allowed = _may_see()
    if allowed is None:
        return _forbidden()
    jobs = _extension().list_jobs(state=request.args.get("state") or None, limit=LOOKED_AT)
    seen = [job for job in jobs if allowed(request, job)]
    return jsonify(jobs=[job.to_dict(shards=False) for job in seen[:limit]])


@blueprint.route("/<job_id>/", endpoint="detail", methods=_METHODS)
@_json
def job_detail(job_id: str) -> Response:
    """One job with its shards: ``?from=1000&limit=500`` are those from an index on, 1,000 at most. Includes
    their total number (``shards_in_all``) and the index to continue ``from`` (``next``, or null).
    """
    from batchpipe.client.job import MOST_SHOWN

    first, limit = _number("from", 0), _number("limit", MOST_SHOWN)
    allowed = _may_see()
    if allowed is None:  # others do not learn which jobs exist
        return _forbidden()
    job = _extension().get_job(job_id)
    return jsonify(job.to_page(first, limit)) if allowed(request, job) else _forbidden()


def _number(name: str, default: int) -> int:
    """A number from the query. Raises InvalidInput."""
    from batchpipe.errors import InvalidInput

    try:
        return int(request.args.get(name) or default)
    except ValueError:
        raise InvalidInput("must be a number", field=name) from None


def _extension() -> BatchPipe:
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


def _forbidden() -> Response:
    return _error(403, "forbidden", "you may not see this")


def _error(status: int, code: str, message: str) -> Response:
    response = jsonify(error={"code": code, "message": message})
    response.status_code = status
    return response
