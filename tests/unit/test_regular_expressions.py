"""Every regular expression of the package, found in its source, takes time in proportion to the text it is given.

Texts come from users and providers: one that takes the square of their length, or more, holds a worker for minutes.
"""

from __future__ import annotations

import ast
import importlib
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from re import _constants as sre  # type: ignore[attr-defined]  # the library's own parser, for what an expression may match
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from tests.source import PACKAGE, PATHS, text_of, tree_of

#: Characters of a hostile text: the square of it is minutes, a multiple of it milliseconds.
LONG = 40_000
#: Seconds of processor time for one text; what is linear takes a hundredth of that, and less.
MOST_SECONDS = 0.25
FUNCTIONS = ("compile", "search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer")
USES = frozenset(FUNCTIONS) - {"compile"}

#: Expressions whose text is cut before they see it, with its length there.
CUT = {("config/loading", "_OF_KUBERNETES"): 200}
#: Expressions that are not ours: a person's own, for a sandbox of his own.
GIVEN = {("sandbox/faults", "self.custom_id"), ("sandbox/faults", "fault.custom_id")}


@dataclass(frozen=True)
class Found:
    """One expression: where it is, how it is called, and what it is."""

    module: str
    name: str
    pattern: str | bytes
    flags: int
    uses: frozenset[str]

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


#: Without one of these words there is no expression in a module, and it need not be parsed.
SIGNS = re.compile(r"\b(?:re|regex|pattern)\b")


@cache
def expressions() -> list[Found]:
    found: list[Found] = []
    for path in PATHS:
        if SIGNS.search(text_of(path)):
            found += of_module(path.relative_to(PACKAGE).with_suffix("").as_posix(), tree_of(path))
    return found


def of_module(module: str, tree: ast.Module) -> Iterator[Found]:
    """AssertionError for one that cannot be read here: then a person must say what it is."""
    targets = {id(node.value): node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ("re", "regex"), f"{module}: write re.{node.names[0].name}, so that it is found"
        if isinstance(node, ast.keyword) and node.arg in ("pattern", "regex"):
            yield Found(module, f"line {node.value.lineno}", pattern_of(module, node.value), 0, frozenset({"search"}))
        if not is_of_re(node):
            continue
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Attribute)
        target = targets.get(id(node))
        name = target.id if isinstance(target, ast.Name) else f"line {node.lineno}"
        if (module, ast.unparse(node.args[0])) in GIVEN:
            continue
        pattern, flags = read(module, name, node)
        uses = {node.func.attr} if node.func.attr != "compile" else uses_of(name, tree)
        yield Found(module, name, pattern, flags, frozenset(uses or handed_on(tree)))


def pattern_of(module: str, value: ast.expr) -> str:
    """Of a field: it stands there, or is a constant of the module by its name."""
    pattern: Any = None
    if isinstance(value, ast.Constant):
        pattern = value.value
    elif isinstance(value, ast.Name):
        pattern = getattr(importlib.import_module(f"batchpipe.{module.replace('/', '.')}"), value.id, None)
    assert isinstance(pattern, str), f"{module}: an expression that cannot be read"
    return pattern


def is_of_re(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr in FUNCTIONS
    )


def read(module: str, name: str, node: ast.Call) -> tuple[str | bytes, int]:
    first = node.args[0]
    if isinstance(first, ast.Constant) and isinstance(first.value, str | bytes):
        named = [part for part in ast.walk(node) if isinstance(part, ast.Attribute) and part.attr.isupper()]
        return first.value, sum(int(getattr(re, part.attr)) for part in named)
    found = getattr(importlib.import_module(f"batchpipe.{module.replace('/', '.')}"), name, None)
    assert isinstance(found, re.Pattern), f"{module}: {name} is made where nobody can read it: {ast.unparse(node)}"
    return found.pattern, found.flags & ~re.UNICODE


def uses_of(name: str, tree: ast.Module) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    } & USES


def handed_on(tree: ast.Module) -> set[str]:
    """How expressions are used in a module that stand in no name of their own: in a loop over several, say."""
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in USES]
    return {node.attr for node in attributes if not (isinstance(node.value, ast.Name) and node.value.id == "re")}


# -- hostile texts -------------------------------------------------------------------------------------------------


def examples(part: Any) -> str:
    """A text that a parsed expression matches, or nearly so; what may be repeated stands there twice."""
    text = ""
    for kind, value in part:
        if kind is sre.LITERAL:
            text += chr(value)
        elif kind is sre.NOT_LITERAL:
            text += "a" if value != ord("a") else "b"
        elif kind is sre.ANY:
            text += "a"
        elif kind is sre.IN:
            text += one_of(value)
        elif kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            text += examples(value[2]) * max(min(value[1], 2), value[0])
        elif kind is sre.SUBPATTERN:
            text += examples(value[3])
        elif kind is sre.BRANCH:
            text += max((examples(branch) for branch in value[1]), key=len)
        elif kind is sre.ATOMIC_GROUP:
            text += examples(value)
    return text


def one_of(items: Any) -> str:
    if items[0][0] is sre.NEGATE:
        return next(char for char in "a1 -_/" if not any(holds(item, ord(char)) for item in items[1:]))
    kind, value = items[0]
    if kind is sre.LITERAL:
        return chr(value)
    return chr(value[0]) if kind is sre.RANGE else {"DIGIT": "1", "SPACE": " ", "WORD": "a"}[str(value).split("_")[-1]]


def holds(item: Any, code: int) -> bool:
    kind, value = item
    if kind is sre.LITERAL:
        return bool(value == code)
    if kind is sre.RANGE:
        return bool(value[0] <= code <= value[1])
    word = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}[str(value).split("_")[-1]]
    return re.fullmatch(word, chr(code)) is not None


def hostile(pattern: str | bytes, flags: int, long: int) -> Iterator[str]:
    """Texts that make an expression with two ways to read them try both, again and again."""
    example = examples(sre_parser.parse(pattern, flags & ~re.UNICODE if isinstance(pattern, bytes) else flags))
    chars = list(dict.fromkeys([*example, "a", " ", "/"]))[:14]
    parts = {example[start:end] for start in range(len(example)) for end in range(start + 1, len(example) + 1)}
    units = [*chars, *(one + two for one, two in product(chars, chars)), *sorted(parts, key=len, reverse=True)[:30]]
    for unit in dict.fromkeys(unit for unit in units if unit):
        many = (unit * (long // len(unit) + 1))[:long]
        yield many
        yield f"{many}\x00\n"
    for end, char in islice(product(range(1, len(example) + 1), chars), 120):
        yield f"{example[:end]}{char * long}\x00"


class TooSlowError(Exception):
    """It is not linear."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Of processor time of this process, so that other work on the machine does not count."""

    def stop(*_: Any) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def slow_on(found: Found) -> str | None:
    """The beginning of a text on which it is too slow."""
    compiled = re.compile(found.pattern, found.flags)
    cut = CUT.get((found.module, found.name))
    for use in found.uses:
        run: Callable[..., Any] = getattr(compiled, use)
        for text in hostile(found.pattern, found.flags, LONG):
            given: Any = text[:cut] if isinstance(found.pattern, str) else text.encode("latin-1", "replace")[:cut]
            try:
                with limited(MOST_SECONDS):
                    if use in ("sub", "subn"):
                        run(given[:0], given)
                    elif use == "finditer":
                        sum(1 for _ in run(given))
                    else:
                        run(given)
            except TooSlowError:
                return f"{use} {text[:60]!r}"
    return None


@pytest.mark.parametrize("found", expressions(), ids=str)
def test_no_expression_takes_more_than_time_in_proportion_to_its_text(found: Found) -> None:
    """A new one is found in the source by itself; where the texts are short, say so in CUT, and cut them."""
    assert slow_on(found) is None


@pytest.mark.parametrize(
    ("pattern", "use"),
    [
        (r"(\w+)+=", "search"),
        (r"\s+$", "search"),
        (r"https?://[^\s]*[?&][^\s]*sig=", "search"),
        (r"(\?sig)*[^=]*(\?sig)*=", "search"),
        (r"(a|a)*b", "fullmatch"),
        (r'"[^"]*":\s*\s*"x', "match"),
        (r".*,.*,.*;", "match"),
    ],
)
def test_one_that_does_would_be_found(pattern: str, use: str) -> None:
    """Else the test above proves nothing."""
    assert slow_on(Found("x", "x", pattern, 0, frozenset({use}))) is not None


def test_all_that_stand_in_the_source_are_looked_at() -> None:
    """By another way of counting, so that none is left out where the reading of the source fails."""
    text = "".join(map(text_of, PATHS))
    calls = len(re.findall(rf"\bre\.(?:{'|'.join(FUNCTIONS)})\(", text))
    assert len(expressions()) >= calls - len(GIVEN)
