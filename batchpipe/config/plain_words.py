"""What is wrong with a value, in plain words: pydantic's own are about its types."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from batchpipe.model.ranges import in_range

#: pydantic's kind of error -> what the value must be.
_WORDS = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "missing": "is missing",
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type"), "must have names with their values, and is one value"
    ),
}
#: Those of numbers: what is said is the field's range, too.
_OF_NUMBERS = frozenset(
    {
        *("int_type", "int_parsing", "int_parsing_size", "int_from_float"),
        *("float_type", "float_parsing"),
        *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    }
)


def wrong_value(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One validation error of this model, without the value, which may be a secret."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "finite_number":
        return "must be a finite number"
    if kind in _OF_NUMBERS:
        return _number(_field_at(model, [str(step) for step in error["loc"]]))
    if kind == "literal_error":
        return f"must be {str(context['expected']).replace(chr(39), '')}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters"
    return _WORDS.get(kind) or str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")


def _number(field: FieldInfo | None) -> str:
    if field is None:
        return "must be a number"
    bounds = {
        name: value
        for name in ("gt", "ge", "le")
        for rule in field.metadata
        if (value := getattr(rule, name, None)) is not None
    }
    noun = "a whole number" if int in _kinds(field.annotation) else "a number"
    return f"must be {noun}{in_range(bounds.get('ge'), bounds.get('le'), above=bounds.get('gt'))}"


def _field_at(model: type[BaseModel], steps: Sequence[str]) -> FieldInfo | None:
    """The field where an error is: ``accounts.NAME.max_rows`` is one of the model of an account."""
    field = model.model_fields.get(steps[0].lower()) if steps else None
    if field is None:
        return None
    inner = next((it for it in _kinds(field.annotation) if isinstance(it, type) and issubclass(it, BaseModel)), None)
    return _field_at(inner, steps[2:]) if inner is not None and len(steps) > 2 else field


def _kinds(annotation: Any) -> set[Any]:
    """The plain types within an annotation: of ``int | None`` those two, of ``dict[str, Account]`` str and Account."""
    arguments = typing.get_args(annotation)
    return {kind for part in arguments for kind in _kinds(part)} if arguments else {annotation}
