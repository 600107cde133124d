"""The house rules, read from the imports and calls of every module: who may know whom, and who may touch what."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from batchpipe.model.provider import Provider
from tests.source import PACKAGE, PATHS, tree_of

#: From the bottom up. A module or package may import only from layers below its own; every one has a place here.
LAYERS: list[tuple[str, ...]] = [
    ("masking",),
    ("errors",),
    ("model",),
    ("config", "telemetry", "local_redis"),
    ("storage", "store", "provider"),
    ("pipeline",),
    ("tasks", "recover", "testing"),
    ("client",),
    ("worker", "monitoring", "webhooks"),
    ("cli", "metrics"),
    ("contrib", "__main__"),
]
#: Stands by itself: it imports nothing of the pipeline, and only these import it.
ISLAND, ISLAND_USERS = "sandbox", ("cli", "testing")
#: What people and other programs meet: they ask the client.
FRONTS = ("cli", "contrib", "monitoring", "webhooks")
#: The public face: it may name anything, and nobody inside imports a name from it.
FACADE = "__init__"
#: What the facade defines itself, so that importing it leads nowhere.
FACADE_OWN = {"__version__"}

#: library -> who may import it: a module, or all of a package. Everything else goes through that door.
DOORS: dict[str, tuple[str, ...]] = {
    "openai": ("provider",),
    "httpx2": ("provider", "sandbox"),  # openai's transport; the sandbox calls an upstream with it
    "redis": ("store",),
    "celery": ("tasks", "worker", "contrib"),
    "kombu": ("tasks", "worker"),
    "cronsim": ("model.schedule",),
    "jinja2": ("model.templates",),
    "jsonschema_rs": ("model.answer_checks",),
    "pyarrow": ("storage.tables.columnar", "pipeline.result_tables"),
    "polars": ("pipeline.result_tables",),
    "standardwebhooks": ("model.webhooks",),
    "flower": ("monitoring.flower",),
    "tornado": ("monitoring.flower",),
    "fsspec": ("storage",),
    "aiohttp": ("storage",),  # what fsspec reads the web with
    "prometheus_client": ("monitoring.prometheus",),
    "click": ("cli", "contrib"),
    "django": ("contrib.django",),
    "flask": ("contrib.flask",),
    "werkzeug": ("contrib.flask",),
    "blinker": ("contrib.flask",),
}

#: The calls that change something at the provider (``model.provider``), and who makes them. ``create_batch`` is paid.
CHANGES: dict[str, tuple[str, ...]] = {
    "upload": ("pipeline.steps.upload", "client.probe"),
    "create_batch": ("pipeline.steps.create", "client.probe"),
    "cancel_batch": (
        "client.probe",
        "pipeline.surplus",
        "pipeline.steps.poll",
        "pipeline.orphans",
        "recover.recovery",
    ),
    "delete_file": ("pipeline.steps.cleanup", "cli.files", "client.probe"),
}

#: Who reads the environment; the sandbox's command must not need the settings of the pipeline.
ENVIRONMENT = ("config.environment", "sandbox.__main__")

#: Who opens and changes files, and why.
FILES: dict[str, str] = {
    "storage": "the door",
    "config.environment": "dotenv does not tell which line of its file it cannot read",
    "local_redis": "locks, data and records of a server of ours, which other processes wait on",
    "sandbox": "stands by itself",
    "store.scripts": "reads the Lua files of the package",
}

_OS_WRITES = {
    *("open", "fdopen", "mkdir", "makedirs", "remove", "unlink", "rmdir", "removedirs", "rename", "renames"),
    *("replace", "link", "symlink", "truncate", "chmod", "chown", "utime", "mkfifo"),
}
_PATH_CALLS = {
    *("open", "write_text", "write_bytes", "read_text", "read_bytes", "mkdir", "touch", "unlink", "rmdir"),
    *("rename", "symlink_to", "hardlink_to", "chmod"),
}
_HARMLESS_SHUTIL = {"which", "copyfileobj", "disk_usage", "get_terminal_size"}


@dataclass(frozen=True)
class Module:
    """A source file; ``name`` is relative to the package: ``store.leases``, or ``store`` for its ``__init__``."""

    name: str
    path: Path

    @property
    def tree(self) -> ast.Module:
        return tree_of(self.path)

    @property
    def unit(self) -> str:
        """What has a place in the layers: a top-level module or package."""
        return self.name.partition(".")[0]

    def imports(self) -> Iterator[tuple[str, str]]:
        """(module, name) of each import, wherever it stands; the name is "" for a plain import."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.module or "", alias.name) for alias in node.names)

    def inner_imports(self) -> set[str]:
        """Modules of this package that are imported, by their relative names."""
        found = set()
        for module, name in self.imports():
            if module == "batchpipe" and name not in FACADE_OWN:
                found.add(name)
            elif module.startswith("batchpipe."):
                inner = module.removeprefix("batchpipe.")
                found.add(f"{inner}.{name}" if f"{inner}.{name}" in NAMES else inner)
        return found

    def is_in(self, places: tuple[str, ...]) -> bool:
        return any(self.name == place or self.name.startswith(f"{place}.") for place in places)


def _load(path: Path) -> Module:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
    return Module(name, path)


MODULES = [_load(path) for path in PATHS]
NAMES = {module.name for module in MODULES}
INSIDE = [module for module in MODULES if module.name != FACADE]
STEPS = [module for module in MODULES if module.name.startswith("pipeline.steps.")]
HEIGHT = {unit: height for height, layer in enumerate(LAYERS) for unit in layer}


def offenders(find: Callable[[Module], set[str]], modules: Iterable[Module] = INSIDE) -> dict[str, set[str]]:
    """Module -> what it does against a rule."""
    return {module.name: found for module in modules if (found := find(module))}


def of(unit: str) -> list[Module]:
    """The modules of a package."""
    return [module for module in MODULES if module.unit == unit]


def test_every_module_has_a_place_in_the_layers() -> None:
    """A new file is put into the table above (and into docs/architecture.md) before anything may use it."""
    units = {module.unit for module in INSIDE}

    assert units - HEIGHT.keys() - {ISLAND} == set()


def test_no_module_has_two_places() -> None:
    """Each name stands once in the table."""
    assert sum(len(layer) for layer in LAYERS) == len(HEIGHT)


def test_imports_only_go_down() -> None:
    """A module knows what lies below it, never what lies above or beside it; inside a package, see the next test."""

    def upward(module: Module) -> set[str]:
        others = {name for name in module.inner_imports() if _unit(name) not in (module.unit, ISLAND)}
        return {name for name in others if HEIGHT.get(_unit(name), len(LAYERS)) >= HEIGHT[module.unit]}

    assert offenders(upward, [module for module in INSIDE if module.unit != ISLAND]) == {}


def _unit(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("package", sorted({module.unit for module in MODULES if "." in module.name}))
def test_a_package_has_no_cycle_inside(package: str) -> None:
    """The modules of one package can be put into an order, too; ``__init__`` only collects their names."""
    inside = [module for module in MODULES if module.unit == package]
    graph = {module.name: module.inner_imports() & {other.name for other in inside} for module in inside}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"cycle: {error.args[1]}")
    assert len(inside) == len(order)


def test_steps_do_not_import_each_other() -> None:
    """A step can be read, and changed, without reading another."""
    assert (
        offenders(lambda step: {name for name in step.inner_imports() if name.startswith("pipeline.steps.")}, STEPS)
        == {}
    )


def test_steps_know_neither_the_store_nor_the_provider_nor_the_settings() -> None:
    """What a step may touch is what its signature gives it: records, files, and a protocol for the rest. The same is
    true for the modules of the pipeline that steps are made of.
    """
    forbidden = {"store", "provider", "config"}
    parts = _with_what_they_import(STEPS, "pipeline")

    assert offenders(lambda step: {name for name in step.inner_imports() if _unit(name) in forbidden}, parts) == {}


def _with_what_they_import(modules: list[Module], unit: str) -> list[Module]:
    """These modules and those of the unit that they import, directly or not."""
    found = {module.name: module for module in modules}
    left = list(modules)
    while left:
        names = left.pop().inner_imports() - found.keys()
        new = [module for module in of(unit) if module.name in names]
        found |= {module.name: module for module in new}
        left += new
    return list(found.values())


def test_what_changes_something_at_the_provider_is_called_in_few_places() -> None:
    """``ProviderReads`` is for everybody; each of the other calls has a place here before anything may make it."""

    def calls(module: Module) -> set[str]:
        found = {
            node.func.attr
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        return {name for name in found & CHANGES.keys() if not module.is_in(CHANGES[name])}

    assert CHANGES.keys() == {name for name in vars(Provider) if not name.startswith("_")}
    assert offenders(calls, [module for module in INSIDE if module.unit != ISLAND]) == {}


def test_only_who_makes_clients_knows_the_provider_package() -> None:
    """Everybody else is given a ``Provider``, so that tests may give another."""
    makers = ("provider", "tasks", "worker", "cli")
    others = [module for module in INSIDE if module.unit not in makers and module.name != "client.probe"]

    assert offenders(lambda module: {n for n in module.inner_imports() if _unit(n) == "provider"}, others) == {}


def test_steps_take_the_provider_as_the_protocol_that_they_need() -> None:
    """A step that only reads says so in its signature: types then forbid it the rest."""

    def takes(module: Module) -> set[str]:
        functions = [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef)]
        parameters = [one for node in functions for one in (*node.args.args, *node.args.kwonlyargs)]
        types = {ast.unparse(one.annotation) for one in parameters if one.arg == "api" and one.annotation}
        changing = {place for places in CHANGES.values() for place in places}
        return types - {"ProviderReads"} - ({"Provider"} if module.name in changing else set())

    assert offenders(takes, _with_what_they_import(STEPS, "pipeline")) == {}


def test_commands_sites_and_monitors_ask_the_client() -> None:
    """Neither the store nor the pipeline, not even by way of the client: what they need is a method there."""

    def behind(module: Module) -> set[str]:
        reached = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)} & {"store"}
        return reached | {name for name in module.inner_imports() if _unit(name) in ("store", "pipeline")}

    assert offenders(behind, [module for module in MODULES if module.unit in FRONTS]) == {}


def test_the_sandbox_imports_nothing_of_the_pipeline() -> None:
    """The stand-in for the provider must not share our mistakes."""
    assert offenders(lambda part: {name for name in part.inner_imports() if _unit(name) != ISLAND}, of(ISLAND)) == {}


def test_the_pipeline_does_not_know_the_sandbox() -> None:
    """Only who starts one imports it; to everybody else it is a provider like any other."""
    strangers = [module for module in INSIDE if module.unit not in (ISLAND, *ISLAND_USERS)]

    assert offenders(lambda module: {n for n in module.inner_imports() if _unit(n) == ISLAND}, strangers) == {}


def test_nobody_inside_imports_from_the_facade() -> None:
    """``from batchpipe import submit`` is for users: inside it would load everything, in a circle."""

    def named(module: Module) -> set[str]:
        return {name for source, name in module.imports() if source == "batchpipe"} - FACADE_OWN - NAMES

    assert offenders(named) == {}


def test_each_library_has_one_door() -> None:
    """A library's quirks, and its next major version, are the business of the few modules that import it."""

    def foreign(module: Module) -> set[str]:
        used = {source.partition(".")[0] for source, _ in module.imports()}
        return {library for library in used & DOORS.keys() if not module.is_in(DOORS[library])}

    assert offenders(foreign) == {}


def test_only_the_settings_read_the_environment() -> None:
    """Everybody else is given values."""

    def reads(module: Module) -> set[str]:
        attributes = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
        imported = {name for source, name in module.imports() if source == "os"}
        return (attributes | imported) & {"environ", "environb", "getenv", "putenv"}

    assert offenders(reads, [module for module in INSIDE if not module.is_in(ENVIRONMENT)]) == {}


def test_only_the_storage_touches_files() -> None:
    """Errors of disks and remote storages are turned into ours at one place, and files are whole or not there."""

    def touched(module: Module) -> set[str]:
        calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
        return {f"line {call.lineno}" for call in calls if _touches(call)}

    assert offenders(touched, [module for module in INSIDE if not module.is_in(tuple(FILES))]) == {}


def _touches(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id="open"):
            return True
        case ast.Attribute(value=ast.Name(id="os"), attr=attr):
            return attr in _OS_WRITES
        case ast.Attribute(value=ast.Name(id="shutil"), attr=attr):
            return attr not in _HARMLESS_SHUTIL
        case ast.Attribute(value=ast.Name(id="tempfile")):
            return True
        case ast.Attribute(attr="replace"):  # Path.replace has one argument, str.replace at least two
            return len(call.args) == 1 and not call.keywords
        case ast.Attribute(attr=attr):
            return attr in _PATH_CALLS
    return False


def test_the_tables_name_only_what_exists() -> None:
    """An exception that nobody needs any more is removed."""
    coming = {"contrib"}
    named = {*HEIGHT, *FILES, *ENVIRONMENT}
    named |= {place for places in (*DOORS.values(), *CHANGES.values()) for place in places}
    packages = {name.rpartition(".")[0] for name in NAMES}

    assert named - NAMES - packages - coming == set()
