"""A value that satisfies a JSON schema, chosen by a seeded random generator."""

from __future__ import annotations

import random
from typing import Any

_FORMATS = {
    "date": "2025-01-15",
    "date-time": "2025-01-15T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
}
#: Schemas may refer to themselves; below this depth only what is required is filled in.
_DEEP = 6


def instance(schema: object, words: list[str], dice: random.Random) -> Any:
    """A value for the schema. Its texts are made of `words`."""
    return _Maker(schema, words or ["sample"], dice).make(schema, 0)


class _Maker:
    def __init__(self, root: object, words: list[str], dice: random.Random) -> None:
        self._root = root
        self._words = words
        self._dice = dice

    def make(self, schema: object, depth: int) -> Any:
        if not isinstance(schema, dict):
            return None
        if "$ref" in schema:
            return self.make(self._resolve(str(schema["$ref"])), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._dice.choice(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if schema.get(key):
                # At that depth the shortest alternative is taken, so that recursive schemas end.
                null = next((option for option in schema[key] if option == {"type": "null"}), None)
                return self.make(null if null and depth > _DEEP else schema[key][0], depth + 1)
        if schema.get("allOf"):
            return self.make(self._merged(schema["allOf"]), depth + 1)
        return self._typed(schema, depth)

    def _typed(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = "null" if depth > _DEEP and "null" in kind else kind[0]
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "boolean":
            return self._dice.random() < 0.5
        if kind in ("integer", "number"):
            return self._number(schema, kind == "integer")
        return None if kind == "null" else self._string(schema)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", [])
        properties = schema.get("properties", {})
        names = [name for name in properties if depth <= _DEEP or name in required]
        return {name: self.make(properties[name], depth + 1) for name in names}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        low = int(schema.get("minItems", 0 if depth > _DEEP else 1))
        high = max(low, min(int(schema.get("maxItems", low + 2)), low + 2)) if depth <= _DEEP else low
        return [
            self.make(schema.get("items", {"type": "string"}), depth + 1) for _ in range(self._dice.randint(low, high))
        ]

    def _number(self, schema: dict[str, Any], whole: bool) -> int | float:
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is None and "exclusiveMinimum" in schema:
            low = schema["exclusiveMinimum"] + (1 if whole else 1e-6)
        if high is None and "exclusiveMaximum" in schema:
            high = schema["exclusiveMaximum"] - (1 if whole else 1e-6)
        low = low if low is not None else (high - 100 if high is not None else 0)
        high = high if high is not None else low + 100
        step = schema.get("multipleOf")
        if step:
            return int(-(-low // step) * step) if whole else float(-(-low // step) * step)
        return (
            self._dice.randint(int(-(-low // 1)), int(high // 1)) if whole else round(self._dice.uniform(low, high), 3)
        )

    def _string(self, schema: dict[str, Any]) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = " ".join(self._dice.choice(self._words) for _ in range(self._dice.randint(1, 4)))
        while len(text) < int(schema.get("minLength", 0)):
            text += " " + self._dice.choice(self._words)
        return text[: int(schema.get("maxLength", len(text)))]

    def _resolve(self, reference: str) -> object:
        found: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            if part:
                found = found.get(part) if isinstance(found, dict) else None
        return found

    def _merged(self, parts: list[Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for part in parts:
            found = self._resolve(str(part["$ref"])) if isinstance(part, dict) and "$ref" in part else part
            if isinstance(found, dict):
                properties = {**merged.get("properties", {}), **found.get("properties", {})}
                merged = {**merged, **found, **({"properties": properties} if properties else {})}
        return merged
