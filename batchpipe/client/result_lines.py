"""What a line of a result file shows, whoever wrote it: for people who ask what a server does."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def shape_of(line: Json) -> str:
    """Where the reason is in the line of a row that failed."""
    if line.get("error"):
        return f"error.code {line['error'].get('code')}" if isinstance(line["error"], dict) else "error is no object"
    response = line.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    body = response.get("body") if isinstance(response, dict) else None
    reason = body.get("error") if isinstance(body, dict) else None
    where = "response.body.error" if isinstance(reason, dict) else "no error in it"
    return f"status_code {status}, {where}"


def usage_of(line: Json) -> Any:
    """Of the row, if its answer has any."""
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    return body.get("usage") if isinstance(body, dict) else None
