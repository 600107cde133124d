"""A small real use of batchpipe in Flask: upload a table of reviews, ask something of each, watch the job.

``python examples/flask_app/start.py`` starts all that it needs; the README beside this file says what is where.
"""

from __future__ import annotations

import csv
import hmac
import io
import json
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from celery import Celery, Task
from flask import (
    Flask,
    Response,
    abort,
    current_app,
    redirect,
    render_template,
    request,
    session,
    stream_with_context,
    url_for,
)
from werkzeug.datastructures import FileStorage

import batchpipe
from batchpipe.contrib.flask import BatchPipe, blueprint, job_failed, job_partial, job_succeeded

jobs = BatchPipe()

QUESTIONS = {
    "mood": ("Is it praise or a complaint?", "Answer with one word: praise, complaint or mixed."),
    "topic": ("What is it about?", "Name the one topic of the review in at most three words."),
    "reply": ("What would a good answer be?", "Write a friendly answer to the customer in two sentences."),
}
COLUMNS = ("product", "review")
MAX_BYTES = 5_000_000


class BadTable(ValueError):
    """What is wrong with an upload, for the person who sent it."""


def create_app() -> Flask:
    """The application factory: settings come from variables such as FLASK_BATCHPIPE_REDIS_URL."""
    app = Flask(__name__)
    app.config.from_mapping(
        MAX_CONTENT_LENGTH=MAX_BYTES + 100_000,
        SESSION_COOKIE_SAMESITE="Lax",
        TABLES=Path(app.instance_path) / "tables",
        BATCHPIPE_VIEW_PERMISSION=is_mine,
    )
    app.config.from_prefixed_env()  # FLASK_SECRET_KEY, FLASK_BATCHPIPE_REDIS_URL, ...
    app.config.setdefault(
        "CELERY",
        {
            "broker_url": app.config.get("BATCHPIPE_REDIS_URL"),
            "broker_transport_options": {"visibility_timeout": 1800, "socket_timeout": 30},
            "broker_connection_retry_on_startup": True,
            "worker_prefetch_multiplier": 1,
            "task_ignore_result": True,
        },
    )
    celery_init_app(app)
    jobs.init_app(app)
    app.register_blueprint(blueprint)
    add_pages(app)
    return app


def celery_init_app(app: Flask) -> Celery:
    """As in Flask's documentation: tasks run in the context of the app."""

    class FlaskTask(Task):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


@job_succeeded.connect
@job_partial.connect
@job_failed.connect
def note_end(app: Flask, job: batchpipe.Job) -> None:
    """Called in the worker; a shop would write to its database or send a mail here."""
    app.logger.warning("reviews %r: %s", job.name, job.state.value)


# -- who is who ----------------------------------------------------------------------------------------------------


def visitor() -> str:
    """Who this browser is: an id in its signed cookie. With a login, take the user's."""
    if "visitor" not in session:
        session.permanent = True
        session["visitor"] = secrets.token_hex(16)
    return str(session["visitor"])


def is_mine(request: Any, job: batchpipe.Job) -> bool:
    """Everybody sees his own jobs, in these pages and in the JSON view."""
    return "visitor" in session and job.tags.get("visitor") == session["visitor"]


def my_job(job_id: str) -> batchpipe.Job:
    """404 for other people's jobs, as for those that are not there."""
    try:
        job = jobs.get_job(job_id)
    except batchpipe.JobNotFound:
        abort(404)
    if not is_mine(request, job):
        abort(404)
    return job


def form_token() -> str:
    """Stands in each form, and must come back: another site can send a form here, but cannot read ours."""
    return str(session.setdefault("form_token", secrets.token_hex(16)))


def check_form_token() -> None:
    if not hmac.compare_digest(request.form.get("token", ""), form_token()):
        abort(400, "This form has expired. Go back, reload the page and send it again.")


# -- tables and requests -------------------------------------------------------------------------------------------


def read_table(upload: FileStorage) -> list[dict[str, str]]:
    """The rows of an uploaded CSV. Raises BadTable, which says what to mend."""
    if not upload.filename:
        raise BadTable("Choose a CSV file first.")
    data = upload.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadTable(f"The file is larger than {MAX_BYTES // 1_000_000} MB.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadTable(f"Line {line} is not UTF-8: save the table as “CSV UTF-8”.") from None
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        return list(_rows(table))
    except csv.Error as error:
        raise BadTable(f"After line {table.line_num}: {error}.") from None


def _rows(table: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
    if missing := [name for name in COLUMNS if name not in table.fieldnames]:
        has = ", ".join(filter(None, table.fieldnames)) or "nothing"
        raise BadTable(f"The first line must name the columns {' and '.join(COLUMNS)}. No {missing[0]} in: {has}.")
    found = False
    for row in table:
        found = True
        if not (row["review"] or "").strip():
            raise BadTable(f"Line {table.line_num}: the review is empty.")
        yield {name: (row[name] or "").strip() for name in COLUMNS}
    if not found:
        raise BadTable("The table has no rows.")


def requests_for(rows: Iterable[dict[str, str]], question: str) -> Iterator[dict[str, Any]]:
    """One request a row. What it is about is found again by its place: answers come in the order of the rows."""
    _, instruction = QUESTIONS[question]
    for number, row in enumerate(rows, start=1):
        yield {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "gpt-4o-mini",
                "messages": [
                    {"role": "system", "content": f"You read reviews of customers. {instruction}"},
                    {"role": "user", "content": json.dumps(row, ensure_ascii=False)},
                ],
                "max_tokens": 80,
            },
        }


def keep_table(rows: Iterable[dict[str, str]]) -> str:
    """Write the table where the answers will find it. Job tags are no place for it: they lie in Redis."""
    name = secrets.token_hex(16)
    folder = Path(current_app.config["TABLES"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def answers_of(job: batchpipe.Job) -> Iterator[dict[str, str]]:
    """The rows of an ended job: what was sent, and what came of it."""
    with (Path(current_app.config["TABLES"]) / job.tags["table"]).open(encoding="utf-8") as table:
        for row, outcome in zip(table, job.results(), strict=True):
            yield {**json.loads(row), "state": outcome.state, "answer": answer_of(outcome)}


def answer_of(outcome: batchpipe.Outcome) -> str:
    if outcome.state != "ok" or outcome.response is None:
        return str((outcome.error or {}).get("message") or "no answer came")
    return outcome.text or ""


# -- pages ---------------------------------------------------------------------------------------------------------


def add_pages(app: Flask) -> None:
    app.jinja_env.globals["form_token"] = form_token
    app.add_url_rule("/", "form", show_form)
    app.add_url_rule("/", "send", send_form, methods=["POST"])
    app.add_url_rule("/reviews/<job_id>", "job", show_job)
    app.add_url_rule("/reviews/<job_id>/cancel", "cancel", cancel_job, methods=["POST"])
    app.add_url_rule("/reviews/<job_id>/answers.<kind>", "answers", download)
    app.register_error_handler(batchpipe.StoreUnavailable, redis_is_away)
    app.register_error_handler(413, too_large)


def my_jobs() -> list[batchpipe.Job]:
    return [job for job in jobs.list_jobs(limit=200) if is_mine(request, job)][:10]


def show_form(problem: str | None = None, asked: str = "mood") -> str:
    return render_template("form.html", questions=QUESTIONS, mine=my_jobs(), problem=problem, asked=asked)


def send_form() -> Any:
    check_form_token()
    upload, question = request.files.get("table", FileStorage()), request.form.get("question", "")
    if question not in QUESTIONS:
        return show_form("Choose a question."), 422
    try:
        rows = read_table(upload)
    except BadTable as error:
        return show_form(str(error), question), 422
    job = jobs.submit(
        requests_for(rows, question),
        name=f"{upload.filename}: {QUESTIONS[question][0]}"[:120],
        tags={"visitor": visitor(), "table": keep_table(rows)},
    )
    return redirect(url_for("job", job_id=job.id), 303)


def show_job(job_id: str) -> str:
    """The page asks the JSON view of batchpipe how the job is doing."""
    job = my_job(job_id)
    first = list(_first(answers_of(job), 20)) if job.state.ended and _has_results(job) else []
    return render_template("job.html", job=job.to_dict(), answers=first, ended=job.state.ended)


def cancel_job(job_id: str) -> Any:
    check_form_token()
    my_job(job_id).cancel()
    return redirect(url_for("job", job_id=job_id), 303)


def download(job_id: str, kind: str) -> Response:
    job = my_job(job_id)
    if kind not in ("csv", "jsonl") or not _has_results(job):
        abort(404)
    lines, media = (_as_csv(job), "text/csv") if kind == "csv" else (_as_jsonl(job), "application/x-ndjson")
    headers = {"Content-Disposition": f'attachment; filename="answers.{kind}"'}
    return Response(stream_with_context(lines), content_type=f"{media}; charset=utf-8", headers=headers)


def _has_results(job: batchpipe.Job) -> bool:
    return job.to_dict(shards=False)["output_file"] is not None


def _as_csv(job: batchpipe.Job) -> Iterator[str]:
    line = io.StringIO(newline="")
    table = csv.DictWriter(line, [*COLUMNS, "state", "answer"])
    table.writeheader()
    for row in answers_of(job):
        table.writerow({name: _no_formula(value) for name, value in row.items()})
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _no_formula(value: str) -> str:
    """A spreadsheet would run a cell that begins like a formula."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _as_jsonl(job: batchpipe.Job) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in answers_of(job))


def _first(rows: Iterator[dict[str, str]], count: int) -> Iterator[dict[str, str]]:
    return (row for _, row in zip(range(count), rows, strict=False))


def redis_is_away(error: Exception) -> tuple[str, int]:
    return render_template("problem.html", problem="Jobs cannot be reached just now. Try again in a minute."), 503


def too_large(error: Exception) -> tuple[str, int]:
    return render_template("problem.html", problem=f"The file is larger than {MAX_BYTES // 1_000_000} MB."), 413
