"""The admin routes: the same switches as the Python API, for programs in other processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from batchpipe.sandbox.errors import ApiError
from batchpipe.sandbox.faults import Fault
from batchpipe.sandbox.world import World

Endpoint = Callable[[Request], Awaitable[Response]]


def admin_routes(world: World) -> list[Route]:
    """Routes under `/sandbox`: they need no key, but only programs of this machine may call them."""
    admin = _Admin(world)

    def route(path: str, method: str, endpoint: Endpoint) -> Route:
        async def guarded(request: Request) -> Response:
            if (why := _refusal(request)) is not None:
                raise ApiError(403, f"The admin routes of the sandbox answer to this machine only: {why}.")
            return await endpoint(request)

        return Route(path, guarded, methods=[method])

    return [
        route("/sandbox/state", "GET", admin.state),
        route("/sandbox/ledger", "GET", admin.ledger),
        route("/sandbox/calls", "GET", admin.calls),
        route("/sandbox/clock", "GET", admin.clock),
        route("/sandbox/clock", "POST", admin.move_clock),
        route("/sandbox/faults", "GET", admin.faults),
        route("/sandbox/faults", "POST", admin.add_fault),
        route("/sandbox/faults", "DELETE", admin.clear_faults),
        route("/sandbox/faults/{id}", "DELETE", admin.remove_fault),
        route("/sandbox/batches/{id}", "POST", admin.end_batch),
        route("/sandbox/reset", "POST", admin.reset),
    ]


class _Admin:
    def __init__(self, world: World) -> None:
        self._world = world

    async def state(self, request: Request) -> Response:
        world = self._world
        batches = world.batches.all()
        with world.batches.lock:
            shown = [batch.public() for batch in batches]
        return _answer(
            {
                "clock": {"now": world.clock.now(), "offset": world.clock.offset},
                "data_dir": str(world.folder),
                "files": [file.public(world.clock.now()) for file in world.files.all()],
                "batches": shown,
                "faults": [active.as_json() for active in world.faults.active],
                "calls": world.calls.counts,
                "billed": world.ledger.total,
                "enqueued_tokens": world.quotas.enqueued(),
                "queue_full": world.quotas.refused,
            }
        )

    async def ledger(self, request: Request) -> Response:
        return _answer(await run_in_threadpool(self._ledger, request.query_params.get("batch_id")))

    def _ledger(self, batch_id: str | None) -> dict[str, Any]:
        ledger = self._world.ledger
        return {
            "total": ledger.total,
            "billed": ledger.billed,
            "billed_twice": [asdict(row) for row in ledger.billed_twice()],
            "rows": [asdict(row) for row in ledger.rows(batch_id)],
        }

    async def calls(self, request: Request) -> Response:
        return _answer(self._world.calls.as_json())

    async def clock(self, request: Request) -> Response:
        return _answer({"now": self._world.clock.now(), "offset": self._world.clock.offset})

    async def move_clock(self, request: Request) -> Response:
        seconds = (await _document(request)).get("advance")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0:
            raise ApiError(400, 'Expected {"advance": SECONDS}, a number that is not negative.', param="advance")
        self._world.clock.advance(seconds)
        return await self.clock(request)

    async def faults(self, request: Request) -> Response:
        return _answer({"faults": [active.as_json() for active in self._world.faults.active]})

    async def add_fault(self, request: Request) -> Response:
        try:
            active = self._world.faults.add(Fault.from_json(await _document(request)))
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        return _answer(active.as_json())

    async def clear_faults(self, request: Request) -> Response:
        self._world.faults.clear()
        return await self.faults(request)

    async def remove_fault(self, request: Request) -> Response:
        if not self._world.faults.remove(request.path_params["id"]):
            raise ApiError(404, f"No fault found with id '{request.path_params['id']}'.")
        return await self.faults(request)

    async def end_batch(self, request: Request) -> Response:
        body = await _document(request)
        status, errors = str(body.get("status")), body.get("errors")
        work = self._world.batches.end
        try:
            return _answer(await run_in_threadpool(work, request.path_params["id"], status, errors))
        except (ValueError, TimeoutError) as error:
            raise ApiError(400, str(error)) from None

    async def reset(self, request: Request) -> Response:
        await run_in_threadpool(self._world.reset)
        return _answer({"reset": True})


#: Headers that a proxy adds: the address of a proxy says nothing about the real caller.
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "x-client-ip", "via")


def _refusal(request: Request) -> str | None:
    """Why a call is not from a program of this machine; None if it is.

    A page of another site can make a browser call here, by our address or by a host name of its own that leads here.
    """
    if request.client is None or not _is_loopback(request.client.host):
        return "the call came from another one"
    if any(name in request.headers for name in _PROXY_HEADERS):
        return "the call came through a proxy"
    host = request.headers.get("host", "")
    if not _is_loopback(_host_of(f"//{host}")):
        return f"{host[:100]!r} is not its name"
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "the call came from a page of another origin"
    return None


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


async def _document(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "Expected a JSON object.")
    return body


def _answer(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
