"""Known providers: what their Batch servers are like, as defaults of an account's settings.

Only what their documentation says for sure is here; anything else keeps the default, and ``batchpipe probe`` finds it
out. Sources and their dates: docs/providers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

#: Names of the profiles.
ProfileName = Literal["openai", "azure", "groq", "together", "qwen"]

_DAY = "24h"

#: Profile -> field of ``Account`` -> default.
PROFILES: Mapping[ProfileName, Mapping[str, Any]] = {
    "openai": {
        "shortest_window": _DAY,
        "longest_window": _DAY,
        "max_rows": 50_000,
        "max_bytes": 200_000_000,
    },
    "azure": {
        "kind": "azure",
        "shortest_window": _DAY,
        "longest_window": _DAY,
        "max_rows": 100_000,
        "max_bytes": 200_000_000,
        "file_expires_seconds": 1_209_600,  # 14 days, the least that it takes
    },
    "groq": {
        "base_url": "https://api.groq.com/openai/v1",
        "shortest_window": _DAY,
        "longest_window": "7d",
        "max_rows": 50_000,
        "max_bytes": 100_000_000,
        "file_expires_seconds": 0,
    },
    "together": {
        "base_url": "https://api.together.xyz/v1",
        "purpose": "batch-api",
        "shortest_window": _DAY,
        "longest_window": _DAY,
        "max_rows": 50_000,
        "max_bytes": 100_000_000,
        "longest_custom_id": 64,
        "file_expires_seconds": 0,
    },
    "qwen": {
        "base_url": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        "shortest_window": _DAY,
        "longest_window": "14d",
        "max_rows": 50_000,
        "max_bytes": 100_000_000,
        "file_expires_seconds": 0,
    },
}


def with_profile(given: Mapping[str, Any]) -> dict[str, Any]:
    """An account's settings with the defaults of its profile; what is set, also to another value, wins."""
    profile: Any = given.get("profile")
    return {**PROFILES.get(str(profile).lower(), {}), **given}  # type: ignore[call-overload]
