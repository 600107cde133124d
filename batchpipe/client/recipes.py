"""The recipe of a new job, of the options of ``submit``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson

from batchpipe.client.options import RECIPE_NAMES
from batchpipe.errors import InvalidInput
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import DEFAULT_ENDPOINT
from batchpipe.storage.local import text_of
from batchpipe.storage.tables.text import known_encoding

#: Bytes of a file with a template or a schema.
MAX_FILE = 10_000_000
_ON_INVALID = ("reask", "fail", "keep")


def is_recipe(options: Mapping[str, Any]) -> bool:
    """Whether any option of a recipe is given."""
    return any(options.get(name) not in (None, False) for name in RECIPE_NAMES if name != "request")


def recipe_of(options: Mapping[str, Any]) -> Recipe | None:
    """The recipe that these options make; None without any. Files that they name are read now.

    Raises InvalidInput that names the option.
    """
    if not is_recipe(options):
        return None
    from batchpipe.model.rendering import check_recipe

    texts = {name: _text(options.get(name), name) for name in ("prompt", "system")}
    plain = {name: _name(options.get(name), name) for name in ("model", "id", "image", "text", "delimiter", "encoding")}
    schema, name = _schema(options.get("answer"))
    on_invalid = options.get("on_invalid")
    if on_invalid not in (None, *_ON_INVALID):
        raise InvalidInput(f"must be one of {', '.join(_ON_INVALID)}, not {on_invalid!r}", field="on_invalid")
    recipe = Recipe(
        endpoint=options.get("endpoint") or DEFAULT_ENDPOINT,
        params=_params(options.get("params")),
        answer=schema,
        answer_name=name,
        body=_body(options.get("body")),
        on_invalid=on_invalid or ("reask" if schema is not None else None),
        grow_tokens=bool(options.get("grow_tokens")),
        header=_header(options.get("header")),
        **texts,
        **plain,
    )
    _check_reading(recipe)
    check_recipe(recipe)
    return recipe


def read_file(place: str | Path, field: str) -> str:
    """The text of a template's or schema's file. Raises InvalidInput."""
    path = os.path.expanduser(place)
    try:
        text = text_of(path, MAX_FILE + 1)
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: is not UTF-8", field=field) from None
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}", field=field) from None
    if len(text) > MAX_FILE:
        raise InvalidInput(f"{path}: is larger than {MAX_FILE:,} bytes", field=field)
    return text


def text_or_file(text: str | None, field: str) -> str | None:
    """A text, or with a leading @ that of a file; @@ is an @. Raises InvalidInput."""
    if text is None or not text.startswith("@"):
        return text
    return text[1:] if text.startswith("@@") else read_file(text[1:], field)


def _text(value: Any, field: str) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else str.__str__(value)
    if isinstance(value, Path):
        return read_file(value, field)
    raise InvalidInput(f"must be text, not {type(value).__name__}", field=field)


def _name(value: Any, field: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"must be text that is not empty, not {value!r}"[:200], field=field)
    return str.__str__(value)


def _header(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InvalidInput(f"must be true or false, not {type(value).__name__}", field="header")


def _params(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"must be a mapping, not {type(value).__name__}", field="params")
    try:
        return cast(dict[str, Any], orjson.loads(orjson.dumps(dict(value))))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"is not JSON: {error}", field="params") from None


def _body(value: Any) -> str | None:
    if isinstance(value, Mapping):
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"is not JSON: {error}", field="body") from None
    return _text(value, "body")


def _schema(value: Any) -> tuple[dict[str, Any] | None, str]:
    """The schema of an answer, as strict mode takes it, and its name. Raises InvalidInput."""
    if value is None:
        return None, "answer"
    from batchpipe.model.strict_schema import check_strict, made_strict, schema_name

    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        schema = made_strict(value.model_json_schema())
        name = schema_name(value.__name__)
    else:
        schema = _schema_of_file(value) if isinstance(value, str | Path) else value
        name = schema_name(schema.get("title")) if isinstance(schema, Mapping) else "answer"
        schema = dict(schema) if isinstance(schema, Mapping) else schema
    check_strict(schema)
    check_compiles(schema)
    return schema, name


def check_compiles(schema: dict[str, Any]) -> None:
    """Raises InvalidInput for a schema with which no answer could be checked."""
    from batchpipe.model.answer_checks import validator_of

    validator_of(schema)


def _schema_of_file(place: str | Path) -> Any:
    text = read_file(place, "answer")
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{place}: is not JSON: {error}", field="answer") from None


def _check_reading(recipe: Recipe) -> None:
    if recipe.delimiter is not None and (len(recipe.delimiter) != 1 or recipe.delimiter in '\r\n"'):
        raise InvalidInput("must be one character, such as ; or a tab", field="delimiter")
    if recipe.encoding is not None and not known_encoding(recipe.encoding):
        raise InvalidInput(f"{recipe.encoding!r} is no encoding that is known here", field="encoding")
