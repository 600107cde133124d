"""What a JSON Schema must be so that OpenAI's strict mode takes it; and a schema made so. Pure.

Source: the guide to structured outputs of OpenAI's documentation, as of November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from batchpipe.errors import InvalidInput

MAX_PROPERTIES, MAX_LEVELS, MAX_ENUM, MAX_TEXT = 5_000, 10, 1_000, 120_000
#: Keywords that are not taken, and what to do instead.
_REFUSED = {
    "allOf": "write its parts as one object",
    "not": "leave it out, and say it in the prompt",
    "oneOf": "use anyOf",
    **dict.fromkeys(
        ("if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"), "use anyOf, or leave it out"
    ),
    **dict.fromkeys(
        ("patternProperties", "propertyNames", "unevaluatedProperties", "minProperties", "maxProperties"),
        "name each property",
    ),
    **dict.fromkeys(
        ("contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems", "prefixItems", "additionalItems"),
        "leave it out, and say it in the prompt",
    ),
    **dict.fromkeys(("minLength", "maxLength"), "leave it out, and say it in the prompt"),
    "default": "leave it out: every property is always there",
}
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_strict(schema: Any) -> None:
    """Raises InvalidInput (field ``answer``) that names the keyword and where it is."""
    if not isinstance(schema, dict):
        raise InvalidInput("must be a JSON Schema: an object", field="answer")
    if "anyOf" in schema:
        raise _refuse("#", "anyOf", "is not taken at the top; put it into a property of an object")
    root = _resolved(schema, schema)
    if root.get("type") != "object":
        raise _refuse("#", "type", 'must be "object" at the top; put the answer into a property of an object')
    properties = enums = texts = 0
    for where, part in _parts(schema):
        _check_part(where, part)
        names = part.get("properties")
        properties += len(names) if isinstance(names, dict) else 0
        values = part.get("enum")
        enums += len(values) if isinstance(values, list) else 0
        texts += sum(map(len, names or ())) + sum(len(str(value)) for value in values or ())
        if where.count("/properties/") > MAX_LEVELS:
            raise _refuse(where, "properties", f"are nested deeper than {MAX_LEVELS} levels")
    for count, most, what in (
        (properties, MAX_PROPERTIES, "properties"),
        (enums, MAX_ENUM, "values of enum"),
        (texts, MAX_TEXT, "characters in names and values"),
    ):
        if count > most:
            raise InvalidInput(f"has {count:,} {what}; OpenAI's strict mode takes {most:,}", field="answer")


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What a ``$ref`` at the top is about."""
    ref = part.get("$ref")
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return part
    found: Any = schema
    for name in ref[2:].split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else part


def _parts(schema: Any, where: str = "#", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema, with its JSON pointer."""
    if depth > 100:
        raise _refuse(where, "it", "is nested too deeply")
    if not isinstance(schema, dict):
        raise InvalidInput(f"{where}: must be an object, or left out", field="answer")
    yield where, schema
    for keyword in ("properties", "$defs", "definitions"):
        inner = schema.get(keyword, {})
        if not isinstance(inner, dict):
            raise _refuse(where, keyword, "must be an object")
        for name, part in inner.items():
            yield from _parts(part, f"{where}/{keyword}/{name}", depth + 1)
    if "items" in schema:
        yield from _parts(schema["items"], f"{where}/items", depth + 1)
    for number, part in enumerate(schema.get("anyOf") or ()):
        yield from _parts(part, f"{where}/anyOf/{number}", depth + 1)


def _check_part(where: str, part: dict[str, Any]) -> None:
    for keyword in part:
        if keyword in _REFUSED:
            raise _refuse(where, keyword, f"is not taken: {_REFUSED[keyword]}")
    if "$ref" in part:
        if not str(part["$ref"]).startswith("#"):
            raise _refuse(where, "$ref", "must lead to a place within the schema: #/$defs/NAME")
        if len(part) > 1:
            other = next(keyword for keyword in part if keyword != "$ref")
            raise _refuse(where, other, "cannot stand beside $ref; move it to what that leads to")
        return
    kinds = part.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds] if kinds is not None else []
    if unknown := [kind for kind in kinds if kind not in _TYPES]:
        raise _refuse(where, "type", f"{unknown[0]!r} is no type of JSON Schema")
    if not kinds and not ({"anyOf", "enum", "const"} & part.keys()) and not where.endswith(("/$defs", "/definitions")):
        raise _refuse(where, "type", "is missing")
    if "object" in kinds or "properties" in part:
        _check_object(where, part)
    if "array" in kinds and "items" not in part:
        raise _refuse(where, "items", "is missing: say what the array holds")
    if "format" in part and part["format"] not in _FORMATS:
        raise _refuse(where, "format", f"{part['format']!r} is not taken; taken are: {', '.join(sorted(_FORMATS))}")


def _check_object(where: str, part: dict[str, Any]) -> None:
    if part.get("additionalProperties") is not False:
        raise _refuse(where, "additionalProperties", "must be false, in every object")
    names, required = list(part.get("properties", {})), part.get("required", [])
    if lacking := [name for name in names if name not in required]:
        message = (
            f'must name every property, and lacks {lacking[0]!r}; one that may be empty has the type ["...", "null"]'
        )
        raise _refuse(where, "required", message)
    if unknown := [name for name in required if name not in names]:
        raise _refuse(where, "required", f"names {unknown[0]!r}, which is no property")


def _refuse(where: str, keyword: str, message: str) -> InvalidInput:
    text = f"OpenAI's strict mode does not take this schema: {where}: {keyword} {message}"
    return InvalidInput(text, field="answer", code="schema_not_strict")


def schema_name(title: Any) -> str:
    """A name for ``response_format``: letters, digits, _ and -, at most 64."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(title or ""))[:64].strip("_")
    return name if _NAME.fullmatch(name) else "answer"


def made_strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy of the schema of a class as strict mode takes it: objects are closed, all properties required, defaults
    left out, what stands beside ``$ref`` joined with what that leads to. Bounds of lengths are left out; the class
    itself still checks them.
    """
    found = _strict(schema, schema, 0)
    assert isinstance(found, dict)
    return found


_LEFT_OUT = frozenset({"default", "minLength", "maxLength", "uniqueItems", "examples", "title", "discriminator"})


def _strict(part: Any, root: dict[str, Any], depth: int) -> Any:
    if isinstance(part, list):
        return [_strict(one, root, depth) for one in part]
    if not isinstance(part, dict) or depth > 50:
        return part
    if "$ref" in part and len(part.keys() - _LEFT_OUT) > 1:
        part = {**_resolved(part, root), **{key: value for key, value in part.items() if key != "$ref"}}
    if isinstance(part.get("allOf"), list) and len(part["allOf"]) == 1:
        rest = {key: value for key, value in part.items() if key != "allOf"}
        return _strict({**part["allOf"][0], **rest}, root, depth + 1)
    found: dict[str, Any] = {}
    for key, value in part.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            found[key] = {name: _strict(one, root, depth + 1) for name, one in value.items()}
        elif key == "oneOf":
            found["anyOf"] = _strict(value, root, depth + 1)
        elif key in ("items", "anyOf"):
            found[key] = _strict(value, root, depth + 1)
        elif key not in _LEFT_OUT:
            found[key] = value
    if found.get("type") == "object" and "additionalProperties" not in found:
        found["additionalProperties"] = False
    if isinstance(found.get("properties"), dict):
        found["required"] = list(found["properties"])
    if found.get("format") not in (None, *_FORMATS):
        del found["format"]
    return found
