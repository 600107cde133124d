"""A Batch server for benchmarks, in a process of its own: it takes little CPU, and counts what it is asked.

    python bench/_provider.py          prints its port

It knows the batches that it was told of (``POST /control/batches``), lists them newest first, and answers each route
that waiting needs. ``POST /control/change`` sets their status at once, ``GET /control/stats`` says what was asked.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]


class Provider:
    """The batches, newest first, each with its JSON."""

    def __init__(self) -> None:
        self.batches: dict[str, Json] = {}
        self.order: list[str] = []
        self.at: dict[str, int] = {}
        self.encoded: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.fetched: dict[str, float] = {}

    def add(self, batches: list[Json]) -> None:
        for batch in batches:
            self.batches[batch["id"]] = batch
            self.encoded[batch["id"]] = json.dumps(batch).encode()
        self.order = sorted(self.batches, key=lambda name: (self.batches[name]["created_at"], name), reverse=True)
        self.at = {name: place for place, name in enumerate(self.order)}

    def change(self, ids: list[str], fields: Json) -> None:
        for name in ids:
            batch = self.batches[name]
            batch |= {
                key: value.replace("ID", name) if isinstance(value, str) else value for key, value in fields.items()
            }
            self.encoded[name] = json.dumps(batch).encode()

    def page(self, query: dict[str, list[str]]) -> bytes:
        limit = int(query.get("limit", ["20"])[0])
        first = self.at[query["after"][0]] + 1 if "after" in query else 0
        names = self.order[first : first + limit]
        more = "true" if first + limit < len(self.order) else "false"
        data = b",".join([self.encoded[name] for name in names])
        return b'{"object":"list","data":[' + data + b'],"has_more":' + more.encode() + b"}"

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        url = urlsplit(target)
        parts = url.path.strip("/").split("/")
        if parts[0] == "control":
            return 200, self.control(parts[1], json.loads(body) if body else {})
        match method, parts[1:]:
            case "GET", ["batches"]:
                query = parse_qs(url.query)
                self.calls.update(["list"] if "after" in query else ["list", "list from its beginning"])
                return 200, self.page(query)
            case "GET", ["batches", name] if name in self.batches:
                self.calls["retrieve"] += 1
                return 200, self.encoded[name]
            case "GET", ["files", name, "content"]:
                self.calls["content"] += 1
                self.fetched.setdefault(name, time.time())
                line = {"custom_id": "r0", "response": {"status_code": 200, "body": {"choices": []}}, "error": None}
                return 200, json.dumps(line).encode() + b"\n"
            case "GET", ["files", name]:
                self.calls["file"] += 1
                return 200, json.dumps({"id": name, "object": "file", "filename": name, "purpose": "batch"}).encode()
            case "POST", ["batches", name, "cancel"] if name in self.batches:
                self.calls["cancel"] += 1
                return 200, self.encoded[name]
        self.calls["unknown"] += 1
        return 404, b'{"error":{"message":"no such object","type":"invalid_request_error","code":null,"param":null}}'

    def control(self, name: str, body: Json) -> bytes:
        if name == "batches":
            self.add(body["batches"])
        elif name == "change":
            self.change(body["ids"], body["fields"])
        elif name == "stats":
            return json.dumps({"calls": self.calls, "fetched": self.fetched}).encode()
        return b"{}"


class Connection(asyncio.Protocol):
    """One connection; requests may come in pieces, one after the other."""

    def __init__(self, provider: Provider) -> None:
        self.provider, self.buffer = provider, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            length = int(headers.get("content-length", "0"))
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            method, target, _ = head[0].split(" ", 2)
            status, answer = self.provider.answer(method, target, body)
            lines = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(lines.encode() + answer)


async def serve() -> None:
    provider = Provider()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(provider), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until whoever started it is gone


if __name__ == "__main__":
    asyncio.run(serve())
