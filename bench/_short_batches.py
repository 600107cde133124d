"""A Batch server for ``turns.py``, in a process of its own: files and batches that end SECONDS after their creation.

python bench/_short_batches.py SECONDS          prints its port
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from itertools import count

from _provider import Connection, Json, Provider

_CUSTOM_ID = re.compile(rb'"custom_id": ?"([^"]+)"')
_INPUT = re.compile(rb'"input_file_id": ?"([^"]+)"')


class ShortBatches(Provider):
    """Files hold their rows' ids only; each row is answered with 200."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.rows: dict[str, list[bytes]] = {}
        self.number = count()

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        match method, target.partition("?")[0].strip("/").split("/")[1:]:
            case "POST", ["files"]:
                name = f"file-{next(self.number):020d}"
                self.rows[name] = _CUSTOM_ID.findall(body)
                return 200, json.dumps({**self.file(name), "bytes": len(body)}).encode()
            case "GET", ["files", name, "content"]:
                return 200, self.content(name)
            case "GET", ["files", name]:
                return 200, json.dumps(self.file(name)).encode()
            case "DELETE", ["files", name]:
                self.rows.pop(name, None)
                return 200, json.dumps({"id": name, "object": "file", "deleted": True}).encode()
            case "POST", ["batches"]:
                return 200, self.create(json.loads(body))
            case "GET", ["batches", name] if name in self.batches:
                self.end(self.batches[name])
                return 200, json.dumps(self.batches[name]).encode()
            case "GET", ["batches"]:
                for batch in self.batches.values():
                    self.end(batch)
                self.encoded = {name: json.dumps(batch).encode() for name, batch in self.batches.items()}
        return super().answer(method, target, body)

    def content(self, name: str) -> bytes:
        return b"".join(self.line(row) for row in self.rows.get(name.removesuffix("-out"), []))

    def file(self, name: str) -> Json:
        """Of a result file with its length: one that is not as long as stated would be fetched again."""
        made, size = int(time.time()), len(self.content(name))
        return {"id": name, "object": "file", "filename": name, "purpose": "batch", "created_at": made, "bytes": size}

    @staticmethod
    def line(row: bytes) -> bytes:
        choice = {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        response = {"status_code": 200, "request_id": "r", "body": {"model": "m", "choices": [choice]}}
        return json.dumps({"id": "x", "custom_id": row.decode(), "response": response, "error": None}).encode() + b"\n"

    def create(self, asked: Json) -> bytes:
        name, rows = f"batch_{next(self.number):020d}", len(self.rows.get(asked["input_file_id"], []))
        self.batches[name] = {
            **asked,
            "id": name,
            "object": "batch",
            "errors": None,
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "expires_at": int(time.time()) + 86_400,
            "ends": time.time() + self.seconds,
            "request_counts": {"total": rows, "completed": 0, "failed": 0},
        }
        self.order.insert(0, name)
        self.at = {one: place for place, one in enumerate(self.order)}
        return json.dumps(self.batches[name]).encode()

    @staticmethod
    def end(batch: Json) -> None:
        if batch["status"] == "in_progress" and time.time() >= batch["ends"]:
            total = batch["request_counts"]["total"]
            batch |= {"status": "completed", "output_file_id": f"{batch['input_file_id']}-out"}
            batch["request_counts"] = {"total": total, "completed": total, "failed": 0}
            batch["completed_at"] = int(time.time())


async def serve(seconds: float) -> None:
    provider = ShortBatches(seconds)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(provider), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until whoever started it is gone


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
