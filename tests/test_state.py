"""State of a process has one place, ``config/site.py``: found by reading every module, so that it stays so."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.source import PACKAGE, PATHS, tree_of

#: Where the state of a process lives.
HOME = "config/site.py"
#: What else may be changed at the level of a module, and why: nothing here makes one site notice another.
ALLOWED: dict[str, dict[str, str]] = {
    "__init__.py": {"globals()": "public names, loaded at their first use"},
    "contrib/django/notify.py": {"_said": "of the calling context: lines of the log while signals are sent"},
    "telemetry/logs.py": {"_about": "of the calling context: the ids that its log lines get"},
    "worker/process.py": {"globals()": "the app that `celery -A batchpipe.worker` finds, made when asked for"},
}
#: Functions that remember what they have returned. For the same arguments it is the same in every site and at any time.
PURE = {
    "_json_fields": "the fields of a kind of record",
    "source": "the text of a Lua script of the package",
    "rates_of": "prices of a model on a day",
    "_openai": "the price list of a library",
}
#: Methods that change a collection, an event or a variable of a context.
_CHANGING = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "set"),
    *("setdefault", "sort", "update"),
}
#: Kinds that are made only to be changed.
_MUTABLE = {
    *("Barrier", "Condition", "ContextVar", "Counter", "Event", "Lock", "RLock", "Semaphore", "WeakKeyDictionary"),
    *("WeakSet", "WeakValueDictionary", "defaultdict", "deque", "local"),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    return ((str(path.relative_to(PACKAGE)), tree_of(path)) for path in PATHS)


def test_no_module_but_the_site_keeps_state() -> None:
    """Two sites of one process, and two tests, cannot disturb each other by what a module remembers."""
    left = {name: state_of(tree) - ALLOWED.get(name, {}).keys() for name, tree in modules() if name != HOME}

    assert {name: changed for name, changed in left.items() if changed} == {}


def test_only_pure_functions_remember_what_they_returned() -> None:
    """A cache is state, too, where its function may return something else the next time."""
    caching = {function for _, tree in modules() for function in caching_in(tree)}

    assert caching == PURE.keys()


def test_each_exception_is_needed() -> None:
    """An exception that nobody needs any more is removed."""
    spare = {name: why.keys() - state_of(tree_of(PACKAGE / name)) for name, why in ALLOWED.items()}

    assert {name: unused for name, unused in spare.items() if unused} == {}


def test_the_look_finds_each_way_to_keep_state() -> None:
    """Else the two tests above could pass for nothing."""
    ways = {
        "x = 0\ndef f():\n    global x\n    x = 1": {"x"},
        "x = {}\ndef f():\n    x['a'] = 1": {"x"},
        "x = {}\ndef f():\n    del x['a']": {"x"},
        "x: list[int] = []\ndef f():\n    x[:] = [1]": {"x"},
        "x = []\ndef f():\n    x.append(1)": {"x"},
        "x = {}\nf = lambda: x.setdefault(1, 2)": {"x"},
        "class X:\n    a = 0\ndef f():\n    X.a = 1": {"X"},
        "class X:\n    a = 0\n    @classmethod\n    def f(cls):\n        cls.a += 1": {"X"},
        "x = WeakSet()": {"x"},
        "x = threading.Lock()": {"x"},
        "def f():\n    globals()['x'] = 1": {"globals()"},
        "def f():\n    f.times = 1": {"f"},
        "x = {}\ndef f(x):\n    x['a'] = 1": set(),
        "x = {}\ndef f():\n    x = {}\n    x['a'] = 1": set(),
        "x = {}\nx['a'] = 1": set(),
        "def f():\n    def x():\n        return lock\n    lock = Lock()": set(),
    }

    assert {code: state_of(ast.parse(code)) for code in ways} == ways


def caching_in(tree: ast.Module) -> set[str]:
    """Names of functions, and methods, that ``functools`` keeps results of for as long as the process lives."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {it.name for it in functions if any(_is_cache(mark) for mark in it.decorator_list)}


def _is_cache(decorator: ast.expr) -> bool:
    made = decorator.func if isinstance(decorator, ast.Call) else decorator
    return _last_name(made) in ("cache", "lru_cache")


def state_of(tree: ast.Module) -> set[str]:
    """Names at the level of a module that are made to be changed, or that its functions change."""
    return set(_made_to_change(tree)) | set(_changed_inside(tree, _names_of(tree)))


def _made_to_change(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Call) and _last_name(value.func) in _MUTABLE:
            yield from _bound_by(node)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):  # deque[int]()
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _names_of(tree: ast.Module) -> set[str]:
    """What the module itself makes; an imported name is another's."""
    return {name for statement in _statements(tree.body) for name in _bound_by(statement)}


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, within its conditions and loops, too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):
            yield from _statements([part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)])


def _bound_by(node: ast.AST) -> Iterator[str]:
    """Names that a statement, or a parameter, binds."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.For() | ast.With() | ast.NamedExpr():
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield part.id
        case ast.arg(arg=name):
            yield name


def _changed_inside(tree: ast.AST, outer: set[str], owner: str = "") -> Iterator[str]:
    """What functions change of the names outside of them. ``owner``: the class that ``cls`` stands for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _changed_by(node, outer, owner)
        else:
            yield from _changed_inside(node, outer, node.name if isinstance(node, ast.ClassDef) else owner)


def _changed_by(function: ast.AST, outer: set[str], owner: str) -> Iterator[str]:
    parts = list(ast.walk(function))
    declared = {name for part in parts if isinstance(part, ast.Global) for name in part.names}
    yield from declared
    local = {name for part in parts if part is not function for name in _bound_by(part)} - declared
    for part in parts:
        for target in _targets(part):
            name = _root(target)
            if name == "cls" and owner:
                yield owner
            elif name == "globals()" or (name in outer and name not in local):
                yield name


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement or a call changes: the ``x`` of ``x[1] = 2``, ``x.y = 2``, ``del x[1]`` and ``x.add(2)``."""
    match node:
        case ast.Subscript(value=value, ctx=ast.Store() | ast.Del()):
            yield value
        case ast.Attribute(value=value, ctx=ast.Store() | ast.Del()):
            yield value
        case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in _CHANGING:
            yield value


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    match node:
        case ast.Call(func=ast.Name(id=("globals" | "vars") as name)):
            return f"{name}()"
        case ast.Name(id=name):
            return name
    return ""
