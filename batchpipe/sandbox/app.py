"""The HTTP API: files, batches, and the endpoints that batches run, also one by one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from batchpipe.sandbox.admin import admin_routes
from batchpipe.sandbox.batches import Batch
from batchpipe.sandbox.errors import ApiError, error_body, error_type
from batchpipe.sandbox.files import PURPOSES, check_expiry
from batchpipe.sandbox.gate import Gate
from batchpipe.sandbox.options import ENDPOINTS
from batchpipe.sandbox.rows import local_answer
from batchpipe.sandbox.uploads import Form, receive_form
from batchpipe.sandbox.validation import canonical
from batchpipe.sandbox.world import World

T = TypeVar("T")
_MAX_BODY = 64 * 1024 * 1024
_MODELS = (
    "gpt-4.1",
    "gpt-4.1-mini",
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-5",
    "text-embedding-3-small",
    "omni-moderation-latest",
)


def build_app(world: World) -> Gate:
    """The ASGI application of a sandbox."""
    api = _Api(world)
    routes = [
        Route("/v1/files", api.upload, methods=["POST"]),
        Route("/v1/files", api.list_files, methods=["GET"]),
        Route("/v1/files/{id}", api.get_file, methods=["GET"]),
        Route("/v1/files/{id}", api.delete_file, methods=["DELETE"]),
        Route("/v1/files/{id}/content", api.content, methods=["GET"]),
        Route("/v1/batches", api.create_batch, methods=["POST"]),
        Route("/v1/batches", api.list_batches, methods=["GET"]),
        Route("/v1/batches/{id}", api.get_batch, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", api.cancel_batch, methods=["POST"]),
        Route("/v1/models", api.list_models, methods=["GET"]),
        *(Route(endpoint, api.answer, methods=["POST"]) for endpoint in ENDPOINTS),
        *admin_routes(world),
    ]
    handlers: dict[Any, Any] = {ApiError: _refused, HTTPException: _no_route, Exception: _broken}
    return Gate(Starlette(routes=routes, exception_handlers=handlers), world)


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class _Download(FileResponse):
    chunk_size = 256 * 1024


class _Api:
    def __init__(self, world: World) -> None:
        self._world = world

    # Files

    async def upload(self, request: Request) -> Response:
        files, project = self._world.files, request.state.project
        self._world.quotas.check_upload()
        part = files.new_part()
        try:
            form = await receive_form(request, part, self._world.options.max_upload_bytes)
            keep = _check_form(form, self._world.options.max_upload_bytes)
            held = sum(file.project == project for file in files.all())
            if (full := self._world.faults.for_upload("file_quota", held)) is not None:
                message = full.message or f"The limit of {full.most} files is reached."
                raise ApiError(full.status or 400, message, code=full.code or "quotaExceeded")
            slow = self._world.faults.for_upload("file_not_ready", held)
            record = files.adopt(
                part,
                filename=form.filename or "upload",
                purpose=form.fields["purpose"],
                expires_after=keep,
                project=project,
                ready_after=slow.seconds if slow is not None else 0.0,
            )
        finally:
            part.unlink(missing_ok=True)
        return _Json(record.public(self._world.clock.now()))

    async def list_files(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        records = self._world.files.of_project(request.state.project)
        records = [file for file in records if purpose in (None, file.purpose)]
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'.", param="order")
        if order == "desc":
            records.reverse()
        after = request.query_params.get("after")
        if after:
            mark = self._world.files.get(after).seq
            records = [file for file in records if (file.seq < mark) == (order == "desc") and file.seq != mark]
        limit = _limit(request, default=10_000, most=10_000)
        now = self._world.clock.now()
        return _page([file.public(now) for file in records[:limit]], len(records) > limit)

    async def get_file(self, request: Request) -> Response:
        record = self._world.files.get(request.path_params["id"], request.state.project)
        return _Json(record.public(self._world.clock.now()))

    async def delete_file(self, request: Request) -> Response:
        file_id = request.path_params["id"]
        self._world.files.get(file_id, request.state.project)
        self._world.files.delete(file_id)
        return _Json({"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        record = self._world.files.get(request.path_params["id"], request.state.project)
        path = self._world.files.path(record.id)
        if (size := record.size(self._world.clock.now())) < record.bytes:
            with path.open("rb") as file:
                return Response(file.read(size), media_type="application/octet-stream")
        return _Download(path, media_type="application/octet-stream", filename=record.filename)

    # Batches

    async def create_batch(self, request: Request) -> Response:
        body = await _json_body(request)
        azure = bool(request.state.azure)
        endpoint = _check_batch(body, azure)
        metadata = _check_metadata(body.get("metadata"))
        keep = body.get("output_expires_after")
        if keep is not None:
            keep = keep if isinstance(keep, dict) else {}
            keep = check_expiry(keep.get("anchor"), keep.get("seconds"), "output_expires_after")
        self._check_input(body["input_file_id"], request.state.project)
        fault = self._world.faults.for_batch("token_limit", metadata or {}, "create")
        if fault is not None:
            message = fault.fault.message or "Enqueued token limit reached (token_limit_exceeded)."
            raise ApiError(fault.fault.status or 400, message, code="token_limit_exceeded")
        self._world.quotas.check_create()
        batch = self._world.batches.new(
            endpoint=endpoint,
            azure=azure,
            input_file_id=body["input_file_id"],
            metadata=metadata,
            output_expires_after=keep,
            project=request.state.project,
        )
        hidden = self._world.faults.for_batch("hide_from_list", metadata or {})
        if hidden is not None:
            batch.hidden_until = batch.created + hidden.fault.seconds
        created = batch.public()  # before the engine can touch it: a new batch is always `validating`
        await run_in_threadpool(self._begin, batch)
        return _Json(created)

    def _check_input(self, file_id: object, project: str) -> None:
        record = self._world.files.find(file_id) if isinstance(file_id, str) else None
        if record is None or record.project != project:
            message = f"Cannot find file {file_id}, or project {project} does not have access to it."
            raise ApiError(400, message, param="input_file_id")
        if self._world.clock.now() < record.ready_at:
            raise ApiError(400, f"The file {file_id} is not in the state processed.")
        if record.purpose != "batch":
            message = f"Invalid file purpose '{record.purpose}': a batch reads files of purpose 'batch'."
            raise ApiError(400, message, param="input_file_id")

    def _begin(self, batch: Batch) -> None:
        folder = self._world.batches.folder(batch.id)
        folder.mkdir(parents=True)
        source = self._world.files.path(batch.input_file_id)
        try:
            # A link of its own: deleting the input file does not affect a running batch.
            os.link(source, folder / "input")
        except OSError:  # a file system without links
            shutil.copyfile(source, folder / "input")
        self._world.batches.add(batch)
        self._world.run(batch)

    def _view(self, request: Request, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        hide = self._world.faults.hides_metadata(request.state.route, f"{request.method} {request.url.path}")
        now = self._world.clock.now()
        with self._world.batches.lock:
            return [
                batch.public(with_metadata=not hide, with_files=batch.files_hidden_until <= now) for batch in batches
            ]

    async def list_batches(self, request: Request) -> Response:
        limit = _limit(request, default=20, most=100)
        page, more = self._world.batches.page(request.query_params.get("after"), limit, request.state.project)
        return _page(self._view(request, page), more)

    async def get_batch(self, request: Request) -> Response:
        batch = self._world.batches.find(request.path_params["id"], request.state.project)
        return _Json(self._view(request, [batch])[0])

    async def cancel_batch(self, request: Request) -> Response:
        self._world.batches.find(request.path_params["id"], request.state.project)
        batch = self._world.batches.cancel(request.path_params["id"])
        shown = self._view(request, [batch])[0]
        return _Json({**shown, "status": "cancelling"} if shown["status"] == "cancelled" else shown)

    # The rest

    async def list_models(self, request: Request) -> Response:
        return _page([{"id": name, "object": "model", "created": 0, "owned_by": "sandbox"} for name in _MODELS], False)

    async def answer(self, request: Request) -> Response:
        body = await _json_body(request)
        if body.get("stream"):
            raise ApiError(400, "Streaming is not supported by the sandbox.", param="stream")
        status, document = await run_in_threadpool(local_answer, request.url.path, body)
        return _Json(document, status_code=status)


def _check_form(form: Form, max_bytes: int) -> int | None:
    """Check an upload and return after how many seconds it expires."""
    if form.filename is None:
        raise ApiError(400, "Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
    if form.too_large:
        raise ApiError(413, f"The file is larger than the {max_bytes} maximum.", param="file")
    purpose = form.fields.get("purpose")
    if not purpose:
        raise ApiError(
            400, "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    if purpose not in PURPOSES:
        raise ApiError(400, f"'{purpose}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose")
    anchor, seconds = (form.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    return check_expiry(anchor, seconds, "expires_after") if anchor or seconds else None


def _check_batch(body: dict[str, Any], azure: bool) -> str:
    """Check the required fields of a create request and return its endpoint."""
    for name in ("endpoint", "completion_window", "input_file_id"):
        if not body.get(name):
            message = f"Missing required parameter: '{name}'."
            raise ApiError(400, message, param=name, code="missing_required_parameter")
    endpoint = body["endpoint"]
    if not isinstance(endpoint, str) or canonical(endpoint, azure) not in ENDPOINTS:
        known = ", ".join(f"'{name}'" for name in ENDPOINTS)
        message = f"Invalid value: '{endpoint}'. Supported values are: {known}."
        raise ApiError(400, message, param="endpoint", code="invalid_value")
    if body["completion_window"] != "24h":
        message = f"Invalid value: '{body['completion_window']}'. Supported values are: '24h'."
        raise ApiError(400, message, param="completion_window", code="invalid_value")
    return endpoint


def _check_metadata(metadata: Any) -> dict[str, str] | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise ApiError(400, "Invalid type for 'metadata': expected an object.", param="metadata", code="invalid_type")
    if len(metadata) > 16:
        message = f"Invalid 'metadata': too many properties. Expected at most 16, but got {len(metadata)}."
        raise ApiError(400, message, param="metadata", code="object_above_max_properties")
    for key, value in metadata.items():
        if len(key) > 64:
            message = f"Invalid 'metadata': property name '{key[:70]}' is too long. Expected at most 64 characters."
            raise ApiError(400, message, param="metadata", code="string_above_max_length")
        if not isinstance(value, str):
            message = f"Invalid type for 'metadata.{key}': expected a string."
            raise ApiError(400, message, param=f"metadata.{key}", code="invalid_type")
        if len(value) > 512:
            message = f"Invalid 'metadata.{key}': string too long. Expected at most 512 characters."
            raise ApiError(400, message, param=f"metadata.{key}", code="string_above_max_length")
    return metadata


async def _json_body(request: Request) -> dict[str, Any]:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MAX_BODY:
            raise ApiError(413, "The request body is too large.")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request. (HINT: it must be a JSON object.)")
    return body


def _limit(request: Request, *, default: int, most: int) -> int:
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= most:
        message = f"Invalid 'limit': expected an integer from 1 to {most}."
        raise ApiError(400, message, param="limit", code="invalid_value")
    return int(text)


def _page(data: list[dict[str, Any]], more: bool) -> Response:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return _Json({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})


async def _refused(request: Request, error: ApiError) -> Response:
    return _Json(error.body(), status_code=error.status, headers=error.headers)


async def _no_route(request: Request, error: HTTPException) -> Response:
    message = f"Invalid URL ({request.method} {request.url.path})"
    if error.status_code == 405:
        message = f"Not allowed to {request.method} on {request.url.path}"
    return _Json(error_body(message, type=error_type(error.status_code)), status_code=error.status_code)


async def _broken(request: Request, error: Exception) -> Response:
    message = f"The sandbox failed: {type(error).__name__}: {error}"
    return _Json(error_body(message, type="server_error"), status_code=500)
