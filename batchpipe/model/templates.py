"""Templates of prompts and bodies: Jinja2, sandboxed, strict about what it does not know. The only door to Jinja2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchpipe.errors import InvalidInput, shortened

#: Characters of a template, and of a text or number that it makes by multiplication.
MAX_TEMPLATE, MAX_PRODUCT = 1_000_000, 1_000_000
#: The row as a whole, for columns whose names are no identifiers: ``{{ row["unit price"] }}``.
ROW = "row"
_GLOBALS = ("range", "dict", "namespace")
#: Methods and filters that make a few characters as long as one likes.
_PADDING = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs", "format", "format_map", "indent"})
_MOST_NAMED = 20
#: What filling in a template may raise that is the template's fault.
_FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


class _Environment(ImmutableSandboxedEnvironment):
    """Templates see values, their items and the methods of texts, lists and dicts; no other attribute of anything."""

    intercepted_binops = frozenset({"*", "**"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not isinstance(obj, str | dict | list) or not callable(value) or attr in _PADDING:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """What a few characters could make gigabytes of is refused."""
        if operator == "**" and (abs(left) > 1_000 or abs(right) > 100):
            raise OverflowError("a power of large numbers")
        if operator == "*":
            texts, numbers = (
                [x for x in (left, right) if hasattr(x, "__len__")],
                [x for x in (left, right) if isinstance(x, int)],
            )
            if texts and numbers and len(texts[0]) * numbers[0] > MAX_PRODUCT:
                raise OverflowError("a text is repeated too often")
        return super().call_binop(context, operator, left, right)


def _plain(value: Any) -> Any:
    """An empty cell is no text, where Jinja2 would write None."""
    return "" if value is None else value


class _Json(str):
    """Text that is JSON already."""


def _to_json(value: Any) -> str:
    return _Json(orjson.dumps(value).decode())


def _within_json(value: Any) -> Any:
    """As a part of JSON: texts are escaped for the string that they stand in, anything else is written as JSON."""
    if isinstance(value, _Json):
        return value
    text = orjson.dumps(value if not isinstance(value, str) else str(value)).decode()
    return text[1:-1] if isinstance(value, str) else text


class Template:
    """One text with ``{{ column }}`` in it, compiled once. ``field``: the option that it came from, for messages."""

    def __init__(self, source: str, field: str, *, makes_json: bool = False) -> None:
        """``makes_json``: values are written so that they fit into JSON. Raises InvalidInput for one that is empty, too
        long, or no template.
        """
        self.field = field
        if not source.strip():
            raise InvalidInput("must not be empty", field=field)
        if len(source) > MAX_TEMPLATE:
            raise InvalidInput(f"has {len(source):,} characters; at most {MAX_TEMPLATE:,}", field=field)
        finalize: Callable[[Any], Any] = _within_json if makes_json else _plain
        environment = _Environment(
            undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, finalize=finalize, cache_size=0
        )
        environment.filters = {name: made for name, made in environment.filters.items() if name not in _PADDING}
        environment.filters["tojson"] = _to_json
        environment.globals = {name: environment.globals[name] for name in _GLOBALS}
        try:
            parsed = environment.parse(source)
            self.names = frozenset(meta.find_undeclared_variables(parsed)) - set(_GLOBALS)
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise InvalidInput(f"is no template: {error.message} (line {error.lineno})", field=field) from None
        except TemplateError as error:
            raise InvalidInput(f"is no template: {error}", field=field) from None
        self._parts = None if makes_json else _simple_parts(parsed)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises InvalidInput for a column that the input does not have."""
        if unknown := sorted(self.names - set(columns) - {ROW}):
            raise unknown_column(unknown[0], columns, self.field)

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for one row. Raises InvalidInput, without the row's number."""
        if self._parts is not None:
            try:
                return "".join([part if not is_name else _text(values[part]) for is_name, part in self._parts])
            except KeyError as error:
                raise self._lacks(str(error.args[0])) from None
        try:
            context = self._template.new_context({**values, ROW: values})
            return "".join(self._template.root_render_func(context))
        except UndefinedError as error:
            raise InvalidInput(f"uses what this row does not have: {error.message}", field=self.field) from None
        except SecurityError as error:
            raise InvalidInput(f"reads what a template must not: {error}", field=self.field) from None
        except (RecursionError, MemoryError, OverflowError) as error:
            raise InvalidInput(f"cannot be filled in: it is too large ({error})", field=self.field) from None
        except _FAULTS as error:
            words = " ".join(str(error).split())
            raise InvalidInput(f"cannot be filled in: {shortened(words, 200)}", field=self.field) from None

    def _lacks(self, name: str) -> InvalidInput:
        return InvalidInput(f"uses what this row does not have: {name!r} is undefined", field=self.field)


def _text(value: Any) -> str:
    return value if type(value) is str else "" if value is None else str(value)


def _simple_parts(parsed: nodes.Template) -> list[tuple[bool, str]] | None:
    """The parts of a template that has only text and names of columns: (whether it is a name, text or name); None for
    any other. Most prompts are so, and joining their parts takes a tenth of the time.
    """
    parts: list[tuple[bool, str]] = []
    for node in parsed.body:
        if not isinstance(node, nodes.Output):
            return None
        for child in node.nodes:
            if isinstance(child, nodes.TemplateData):
                parts.append((False, child.data))
            elif isinstance(child, nodes.Name) and child.name not in (ROW, *_GLOBALS):
                parts.append((True, child.name))
            else:
                return None
    return parts


def unknown_column(name: str, columns: Sequence[str], field: str) -> InvalidInput:
    """The error for a column that the input does not have."""
    near = get_close_matches(name, columns, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    shown = ", ".join(columns[:_MOST_NAMED]) + (", ..." if len(columns) > _MOST_NAMED else "")
    message = f"there is no column {shortened(name, 80)!r}{hint}; the columns are: {shortened(shown, 500) or 'none'}"
    return InvalidInput(message, field=field, code="column_unknown")
