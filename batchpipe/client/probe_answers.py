"""What the lines of a probe's result files show."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def counts_in_words(counts: Any) -> str:
    return ", ".join(f"{name} {getattr(counts, name)}" for name in ("total", "completed", "failed"))


def is_wrong(line: Json) -> bool:
    return line.get("custom_id") == "probe-wrong"


def shape_of_failure(line: Json) -> str:
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
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    return body.get("usage") if isinstance(body, dict) else None
