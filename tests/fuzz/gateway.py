"""A gateway in front of the provider: it makes what it is asked for, and answers in every shape; nothing is hidden that
docs/guarantees.md does not name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from tests.fuzz.provider import Files, ScriptedProvider
from tests.fuzz.wire import Answer, Request

Batch = dict[str, Any]
#: Makes the answer to a create call of the batch that it made (None: none), and of the others that are there.
Shape = Callable[[Batch, list[Batch]], Answer]


@dataclass(frozen=True)
class Manner:
    """What a gateway shows of batches."""

    list_metadata: bool = True
    read_metadata: bool = True
    own_files: bool = True  #: False: it shows another input_file_id than the upload gave
    file_names: bool = True  #: the file that it shows can be read
    lists: int = 200  #: else the status of its list
    neighbours: int = 0  #: batches of others, without metadata, that are made with each call


def _json(value: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(status, ((b"Content-Type", b"application/json"), *headers), orjson.dumps(value))


def _said(status: int, text: str, **more: Any) -> Answer:
    return _json({"error": {"message": text, "type": "x", "code": None, **more}}, status)


def _other(others: list[Batch]) -> Batch:
    """One of ours, if there is one: a stranger's, without a word in it, looks like the one that was made."""
    nobodys = {"id": "batch_0000nobodys", "object": "batch", "status": "in_progress"}
    return next((batch for batch in others if batch["metadata"]), nobodys)


#: Answers to a call that made a batch. None of them is a no without a name: that is a lie nobody can see through.
MADE: dict[str, Shape] = {
    "200": lambda b, _: _json(b),
    "201": lambda b, _: _json(b, 201),
    "202": lambda b, _: _json(b, 202),
    "201 without a body": lambda b, _: Answer(201, ((b"Location", b"/v1/batches/" + b["id"].encode()),)),
    "303": lambda b, _: Answer(303, ((b"Location", b"https://gw.test/v1/batches/" + b["id"].encode()),)),
    "307": lambda b, _: Answer(307, ((b"Location", b"https://gw.test/v1/batches"),)),
    "only an id": lambda b, _: _json({"id": b["id"]}),
    "without an id": lambda b, _: _json({**b, "id": None}),
    "without a status": lambda b, _: _json({k: v for k, v in b.items() if k != "status"}),
    "another object": lambda b, _: _json({**b, "object": "operation"}),
    "another key": lambda b, _: _json({**b, "metadata": {"batchpipe_key": "job_other:0:1"}}),
    "in data": lambda b, _: _json({"data": b}),
    "html": lambda b, _: Answer(body=b"<html>"),
    "html with its id": lambda b, _: Answer(body=b"<html>made " + b["id"].encode()),
    "broken off": lambda b, _: Answer(body=orjson.dumps(b), cut=140),
    "half of it": lambda b, _: Answer(body=orjson.dumps(b)[:60]),
    "nothing": lambda b, _: Answer(raw=b""),
    "reset": lambda b, _: Answer(raw=b"", reset=True),
    "408": lambda b, _: _said(408, "slow"),
    "409": lambda b, _: _said(409, "batch already exists"),
    "409 with its id": lambda b, _: _said(409, f"{b['id']} already exists"),
    "400 with its id": lambda b, _: _said(400, f"a batch of this file exists: {b['id']}"),
    "429 with its id": lambda b, _: _said(429, "once is enough", batch_id=b["id"]),
    "500": lambda b, _: _said(500, "oops"),
    "500 with it": lambda b, _: _json(b, 500),
    "502 with its id": lambda b, _: _said(502, f"upstream made {b['id']} and was lost"),
    "the batch of others": lambda b, others: _json(_other(others)),
    "500 about others": lambda b, others: _said(500, f"{_other(others)['id']} is in the way"),
}
#: Answers to a call that made none.
NOT_MADE: dict[str, Shape] = {
    "400": lambda b, _: _said(400, "no such model"),
    "400 about others": lambda b, others: _said(400, f"{_other(others)['id']} is in the way"),
    "401": lambda b, _: _said(401, "who are you"),
    "404": lambda b, _: _said(404, "no such thing"),
    "404 page": lambda b, _: Answer(404, body=b"<html>"),
    "409": lambda b, _: _said(409, "conflict"),
    "429": lambda b, _: _said(429, "slow down"),
    "500": lambda b, _: _said(500, "oops"),
    "500 with a strange id": lambda b, _: _json({"id": "req_1"}, 500),
    "nobody's batch": lambda b, _: _json({"id": "batch_0000nobodys", "object": "batch"}),
    "the batch of others": lambda b, others: _json(_other(others)),
    "html": lambda b, _: Answer(body=b"<html>"),
    "nothing": lambda b, _: Answer(raw=b""),
}


class Gateway(ScriptedProvider):
    """``plan``: for each create call a name of ``MADE``, or one of ``NOT_MADE`` with a dash before it; then proper."""

    def __init__(self, results: Callable[[list[dict[str, Any]]], Files], manner: Manner, plan: list[str]) -> None:
        super().__init__(results)
        self.manner, self.plan = manner, list(plan)
        self.made: Counter[str] = Counter()  #: batches by key
        self.met: Counter[str] = Counter()
        self.names: dict[str, str] = {}

    def _file(self, name: str) -> dict[str, Any]:
        return {**super()._file(name), "filename": self.names.get(name, "neighbour.jsonl")}

    def __call__(self, request: Request) -> Answer:
        route = (request.method, request.target.partition("?")[0])
        if route == ("POST", "/v1/batches"):
            return self._asked(request)
        if route == ("GET", "/v1/batches") and self.manner.lists != 200:
            return _said(self.manner.lists, "no list here")
        if self.manner.file_names and b"gw-" in request.target.encode():
            request = Request(request.method, request.target.replace("gw-", ""), request.headers, request.body)
            return self._renamed(super().__call__(request))
        answer = super().__call__(request)
        if route == ("POST", "/v1/files"):
            named = re.search(rb'filename="([^"]*)"', request.body)
            self.names[orjson.loads(answer.body)["id"]] = named[1].decode() if named else ""
        return self._shown_in(answer, self.manner.list_metadata if route[1] == "/v1/batches" else None)

    def _asked(self, request: Request) -> Answer:
        name = self.plan.pop(0) if self.plan else "200"
        self.met[name] += 1
        wanted, others = orjson.loads(request.body), [self._shown(b, True) for b in self.batches.values()]
        for _ in range(self.manner.neighbours):
            self._neighbour(wanted)
        if name.startswith("-"):
            return NOT_MADE[name[1:]]({}, others)
        made = super().__call__(request)
        if made.status != 200:
            return made
        self.made[wanted["metadata"]["batchpipe_key"]] += 1
        return MADE[name](self._shown(orjson.loads(made.body), True), others)

    def _neighbour(self, wanted: Batch) -> None:
        file_id = self._add(b'{"custom_id":"n"}\n')
        name = f"batch_{self.tag}{len(self.batches) + 1}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "status": "validating",
            "created_at": int(self.clock()),
            "request_counts": {},
            "input_file_id": file_id,
            "metadata": None,
        }

    def _shown(self, batch: Batch, metadata: bool) -> Batch:
        shown = {**batch, "metadata": batch["metadata"] if metadata else None}
        return shown if self.manner.own_files else {**shown, "input_file_id": f"gw-{batch['input_file_id']}"}

    def _shown_in(self, answer: Answer, metadata: bool | None) -> Answer:
        is_json = (b"Content-Type", b"application/json") in answer.headers and answer.status == 200
        value = orjson.loads(answer.body) if is_json else {}
        if value.get("object") == "batch":
            return _json(self._shown(value, self.manner.read_metadata))
        if value.get("object") == "list" and metadata is not None:
            return _json({**value, "data": [self._shown(batch, metadata) for batch in value["data"]]})
        return answer

    @staticmethod
    def _renamed(answer: Answer) -> Answer:
        value = orjson.loads(answer.body) if b'"filename":' in answer.body else None
        return answer if value is None else _json({**value, "id": f"gw-{value['id']}"})
