"""A provider in memory behind HTTP: files and batches, true to the letter, but for what a test lets go wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from tests.fuzz.wire import Answer, Request

_PAGE = 100


@dataclass
class Files:
    """The two result files of a batch, None where it names none. ``damaged`` come before the true ones."""

    output: bytes | None = None
    error: bytes | None = None
    damaged: list[Callable[[bytes], bytes]] = field(default_factory=list)
    tells_size: bool = True
    counts: dict[str, Any] | None = None


class ScriptedProvider:
    """Routes and state. ``results`` makes the files of a batch from its requests when it ends."""

    tag = ""  #: in all ids: the projects of a provider have no id in common

    def __init__(self, results: Callable[[list[dict[str, Any]]], Files]) -> None:
        self.results = results
        self.clock: Callable[[], float] = time.time
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}  #: oldest first
        self.served: list[bytes] = []  #: every file that went out as the content of a result
        self._damaged: dict[str, list[Callable[[bytes], bytes]]] = {}
        self._sizeless: set[str] = set()

    def __call__(self, request: Request) -> Answer:
        """A proper answer, in all things but what ``results`` made."""
        parts = urlsplit(request.target)
        path = unquote(parts.path).removeprefix("/v1/").split("/")
        match request.method, *path:
            case "POST", "files":
                return _said(self._file(self._add(_part_of(request.body))))
            case "GET", "files", name, "content" if name in self.files:
                return self._content(name)
            case "GET", "files", name if name in self.files:
                return _said(self._file(name))
            case "DELETE", "files", name if name in self.files:
                del self.files[name]
                return _said({"id": name, "object": "file", "deleted": True})
            case "GET", "files":
                return _said(_page([self._file(name) for name in reversed(self.files)], parts.query))
            case "POST", "batches":
                return self._create(orjson.loads(request.body))
            case "GET", "batches", name if name in self.batches:
                self._move_on(self.batches[name])
                return _said(self.batches[name])
            case "POST", "batches", name, "cancel" if name in self.batches:
                return self._cancel(self.batches[name])
            case "GET", "batches":
                return _said(_page([*reversed(self.batches.values())], parts.query))
        return _error(404, f"No such object: {request.target}")

    def living(self) -> list[dict[str, Any]]:
        """Batches whose rows were run, or may be yet."""
        return [batch for batch in self.batches.values() if batch["status"] not in ("cancelled", "failed")]

    def _add(self, data: bytes) -> str:
        name = f"file-{self.tag}{len(self.files) + len(self.batches) + 1}x{len(self.served)}"
        while name in self.files:
            name += "x"
        self.files[name] = data
        return name

    def _file(self, name: str) -> dict[str, Any]:
        told = {"id": name, "object": "file", "purpose": "batch", "created_at": int(self.clock()), "filename": "f"}
        return told if name in self._sizeless else {**told, "bytes": len(self.files[name])}

    def _content(self, name: str) -> Answer:
        data, damaged = self.files[name], self._damaged.get(name)
        if damaged:
            data = damaged.pop(0)(data)
        self.served.append(data)
        return Answer(headers=((b"Content-Type", b"application/octet-stream"),), body=data)

    def _create(self, wanted: dict[str, Any]) -> Answer:
        if wanted["input_file_id"] not in self.files:
            return _error(400, f"Cannot find file {wanted['input_file_id']}.")
        name = f"batch_{self.tag}{len(self.batches) + 1}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "errors": None,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(self.clock()),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            **wanted,
        }
        return _said(self.batches[name])

    def _cancel(self, batch: dict[str, Any]) -> Answer:
        if batch["status"] in ("completed", "cancelled"):
            return _error(409, f"Cannot cancel a batch with status '{batch['status']}'.")
        batch["status"] = "cancelling"
        return _said(batch)

    def _move_on(self, batch: dict[str, Any]) -> None:
        if batch["status"] in ("validating", "cancelling"):
            batch["status"] = {"validating": "in_progress", "cancelling": "cancelled"}[batch["status"]]
        elif batch["status"] == "in_progress":
            self._finish(batch)

    def _finish(self, batch: dict[str, Any]) -> None:
        requests = [orjson.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        found = self.results(requests)
        for kind, data in (("output_file_id", found.output), ("error_file_id", found.error)):
            if data is not None:
                batch[kind] = self._add(data)
                self._damaged[batch[kind]] = list(found.damaged)
                if not found.tells_size:
                    self._sizeless.add(batch[kind])
        batch |= {"status": "completed", "request_counts": found.counts}


def _part_of(body: bytes) -> bytes:
    """The content of the file in a multipart form."""
    found = re.search(rb'filename="[^"]*"\r\n(?:[^\r\n]+\r\n)*\r\n(.*?)\r\n--', body, re.DOTALL)
    assert found is not None
    return found[1]


def _page(entries: list[dict[str, Any]], query: str) -> dict[str, Any]:
    after = parse_qs(query).get("after", [None])[0]
    names = [entry["id"] for entry in entries]
    start = names.index(after) + 1 if after in names else 0
    return {"object": "list", "data": entries[start : start + _PAGE], "has_more": start + _PAGE < len(entries)}


def _said(value: Any) -> Answer:
    return Answer(headers=((b"Content-Type", b"application/json"),), body=orjson.dumps(value))


def _error(status: int, message: str) -> Answer:
    body = orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "code": None}})
    return Answer(status, ((b"Content-Type", b"application/json"),), body)
