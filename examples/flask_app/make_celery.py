"""What Celery's command line is given, as in Flask's documentation: ``celery -A make_celery worker``."""

from __future__ import annotations

from shop import create_app  # type: ignore[import-not-found]  # it lies beside this file

flask_app = create_app()
celery_app = flask_app.extensions["celery"]
