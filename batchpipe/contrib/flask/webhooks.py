"""The way in of the provider's webhooks, which show that they are the provider's by their signature.

``app.register_blueprint(webhooks)`` puts it at ``/batchpipe/webhooks/``. With Flask-WTF: ``csrf.exempt(webhooks)``.
"""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from batchpipe.contrib import webhook_views
from batchpipe.contrib.flask.views import registered

webhooks = Blueprint("batchpipe-webhooks", __name__, url_prefix="/batchpipe/webhooks")

#: The others are refused in JSON, too.
_METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]


@webhooks.route("/", defaults={"account": None}, endpoint="all", methods=_METHODS, strict_slashes=False)
@webhooks.route("/<account>/", endpoint="account", methods=_METHODS, strict_slashes=False)
def take(account: str | None) -> Response:
    """Takes a webhook of the provider. With an account only that one's secrets count."""
    status, body = webhook_views.take(
        lambda: registered().client, request.method, request.headers.get, request.stream.read, account
    )
    response = jsonify(body)
    response.status_code = status
    response.cache_control.no_store = True
    if status == 405:
        response.allow.update(["POST"])
    return response
