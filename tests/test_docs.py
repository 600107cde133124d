"""The documentation cannot lie: what it takes from the code is compared, what it shows is run."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import batchpipe
from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.config.target import Target
from tests.python_process import python
from tests.test_layers import LAYERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "bench" / "README.md",
    *sorted(DOCS.glob("*.md")),
]
PAGES += sorted((ROOT / "examples").rglob("README.md"))
#: Where pages that are read elsewhere find our files.
REPOSITORY = "https://github.com/batchpipe/batchpipe/"

DOCUMENTS: dict[Path, str] = runpy.run_path(str(ROOT / "tests" / "regen_docs.py"))["documents"]()


# -- what is taken from the code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    """After a change of options or settings: python tests/regen_docs.py."""
    assert path.read_text(encoding="utf-8") == DOCUMENTS[path]


def test_cli_md_says_what_help_prints() -> None:
    """The page holds the very text of a terminal with 100 columns."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    environment = {**os.environ, "COLUMNS": "100"}
    for command in ([], ["run"], ["worker"]):
        says = python("-m", "batchpipe", *command, "--help", env=environment).stdout

        assert says in page


def _example_lines() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    found = [(match[1], match[2]) for line in lines if (match := re.fullmatch(r"#([A-Z_]+)=(.*)", line))]
    assert len(found) == len({name for name, _ in found})
    return dict(found)


def test_env_example_names_every_setting_and_nothing_else() -> None:
    """The file is the complete list, of accounts too."""
    tables = ("accounts", "schedules", "targets")
    own = {f"BATCHPIPE_{name.upper()}" for name in Settings.model_fields if name not in tables}
    fallbacks = {name.removeprefix("BATCHPIPE_") for name in own if name.startswith("BATCHPIPE_OPENAI_")}
    own = {name for name in own if not name.startswith("BATCHPIPE_OPENAI_")}
    accounts = {f"BATCHPIPE_ACCOUNTS__NAME__{name.upper()}" for name in Account.model_fields}

    targets = {f"BATCHPIPE_TARGETS__NAME__{name.upper()}" for name in Target.model_fields}

    assert _example_lines().keys() == own | fallbacks | accounts | targets


def test_every_setting_has_a_comment_of_its_own() -> None:
    """One line says what it is, the next is the setting."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    comments = [before for before, line in pairwise(lines) if re.match(r"#[A-Z]", line)]

    assert all(re.fullmatch(r"# \S.{10,}", comment) for comment in comments)
    assert len(comments) == len(_example_lines())


def test_env_example_uncommented_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values that it shows are the defaults."""
    for name in os.environ:
        if name.startswith(("BATCHPIPE_", "OPENAI_")):
            monkeypatch.delenv(name)
    lines = [f"{name}={value}" for name, value in _example_lines().items()]
    (tmp_path / "env").write_text("\n".join(lines))
    shown = Settings(_env_file=tmp_path / "env")

    assert shown.model_dump(exclude={"accounts"}) == Settings(_env_file=None).model_dump(exclude={"accounts"})
    assert shown.accounts["name"] == Account()


def test_links_lead_somewhere() -> None:
    """Every link to a file of ours names one that is there, and a heading that it has."""
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            target, _, heading = re.sub(rf"^{REPOSITORY}(blob|tree)/main/", f"{ROOT}/", link).partition("#")
            path = page.parent / target if target else page
            if "://" not in target and not (path.exists() and (not heading or heading in headings(path))):
                broken.append(f"{page.relative_to(ROOT)}: {link}")

    assert broken == []


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub and the site builder make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_site_of_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    """A page that is in no menu, and a link that leads nowhere or out of docs/, would be one."""
    if importlib.util.find_spec("mkdocs") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("mkdocs is not installed: pip install 'batchpipe[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    assert {page.stem for page in DOCS.glob("*.md")} <= {page.stem for page in (tmp_path / "site").glob("*.html")}


def test_every_setting_that_a_page_names_is_one() -> None:
    """With its prefix; what only the command of the sandbox or a framework reads has no field of its own."""
    others = {"ENV_FILE", "SANDBOX_UPSTREAM_KEY", "SECRETS_DIR", "VIEW_PERMISSION", "SCHEDULES", "ACCOUNTS"}
    others |= {"SANDBOX_WEBHOOK_SECRET"}
    known = {name.upper() for kind in (Settings, Account, Target) for name in kind.model_fields} | others
    wrong = {
        f"{page.name}: {name}"
        for page in PAGES
        for name in re.findall(r"BATCHPIPE_(\w+)", page.read_text(encoding="utf-8"))
        if re.sub(r"^(ACCOUNTS|TARGETS)__[a-zA-Z]+__", "", name).upper() not in known
    }

    assert wrong == set()


def test_the_layers_of_the_architecture_are_those_that_are_held() -> None:
    """Each module has its row, from the bottom up."""
    table = (DOCS / "architecture.md").read_text(encoding="utf-8").partition("| layer |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines()[2:]]
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer if name != "__main__"}

    assert sorted(name for row in rows for name in row) == sorted(level)
    levels = [{level[name] for name in row} for row in rows]
    assert all(len(row) == 1 for row in levels), "a row is one layer"
    assert levels == sorted(levels, key=min)


def test_what_contributing_names_is_there() -> None:
    """Files and folders, targets of make, tests to run, and the tables of tests/test_layers.py."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"\b((?:batchpipe|tests)/[\w/.]*\w/?)", page))
    targets = set(re.findall(r"\bmake ([a-z]+)\b", "".join(re.findall(r"`[^`]+`|^make .*$", page, flags=re.MULTILINE))))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    assert [name for name in sorted(targets) if f"\n{name}:" not in makefile] == []
    for path, name in re.findall(r"^pytest (\S+) -k (\w+)$", page, flags=re.MULTILINE):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
    layers = (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8")
    assert [name for name in ("LAYERS", "DOORS") if f"`{name}`" not in page or f"\n{name}: " not in layers] == []


def test_the_page_of_operations_says_what_to_do_at_each_alert() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8").partition("## What to do when")[2]
    alerts = re.findall(
        r"- alert: (\w+)", (ROOT / "examples" / "monitoring" / "alerts.yml").read_text(encoding="utf-8")
    )

    assert sorted(re.findall(r"`(Batchpipe\w+)`", page)) == sorted(alerts)


# -- the public face -----------------------------------------------------------------------------------------------


def test_public_names() -> None:
    """Names live for ever: adding one is a decision, removing one a major version."""
    assert sorted(batchpipe.__all__) == [
        "BatchResult",
        "BatchpipeError",
        "InvalidInput",
        "Job",
        "JobNotFound",
        "Outcome",
        "OutputInUse",
        "PermanentError",
        "SettingsError",
        "State",
        "StoreUnavailable",
        "TransientError",
        "cancel",
        "get_job",
        "list_jobs",
        "setup",
        "submit",
    ]


def test_every_public_name_is_there() -> None:
    """What __all__ promises can be had."""
    assert [name for name in batchpipe.__all__ if getattr(batchpipe, name, None) is None] == []


def test_python_md_documents_every_public_name() -> None:
    """The page of the Python API is complete."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")

    assert [name for name in batchpipe.__all__ if f"`{name}" not in page] == []


@pytest.mark.parametrize(
    "code",
    [
        "import batchpipe",
        "from batchpipe.cli import main\ntry: main(['--help'])\nexcept SystemExit as end: assert not end.code",
    ],
    ids=["import", "help"],
)
def test_a_start_loads_no_heavy_library(code: str) -> None:
    """A Django start, and a look at the help, do not wait for libraries that they do not need."""
    heavy = ("openai", "celery", "kombu", "redis", "fsspec", "pydantic", "starlette", "uvicorn")
    say = f"import sys; print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"

    assert python("-c", f"{code}\n{say}").stderr.strip() == "[]"


def test_python_md_shows_the_signature_of_submit() -> None:
    """Each argument with its default, in order."""
    page = " ".join((DOCS / "python.md").read_text(encoding="utf-8").split())
    shown = re.findall(r"`submit\((.*?)\) -> Job`", page)[0]
    arguments = ast.parse(f"def submit({shown}): ...").body[0]
    assert isinstance(arguments, ast.FunctionDef)
    defaults = [ast.literal_eval(value) for value in arguments.args.kw_defaults if value is not None]
    words = list(inspect.signature(batchpipe.submit).parameters.values())[1:]

    assert [argument.arg for argument in arguments.args.kwonlyargs] == [word.name for word in words]
    assert defaults == [word.default for word in words]


# -- what pages promise has a test ------------------------------------------------------------------------------------


def test_each_way_in_of_strangers_has_a_test_that_is_there() -> None:
    """Named with its file, or of the module about strangers."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    named = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", page)
    files = [path or "tests/unit/test_untrusted_input.py" for path, _ in named]
    missing = [
        name
        for path, (_, name) in zip(files, named, strict=True)
        if not re.search(rf"def {name}\b", (ROOT / path).read_text())
    ]

    assert missing == []
    assert [row[:60] for row in rows if "`test_" not in row and "::test_" not in row] == []


def test_each_proof_that_the_guarantees_name_is_a_test() -> None:
    """And each promise of the first part names one."""
    page = (ROOT / "docs" / "guarantees.md").read_text()
    proofs = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    missing = [name for path, name in proofs if f"def {name}(" not in (ROOT / path).read_text()]
    assert missing == []
    promises = page.partition("\n## What holds")[2].partition("\n## What has a limit")[0]
    assert [text[:60] for text in re.split(r"\n\n(?=\*\*)", promises)[1:] if "*Proof:*" not in text] == []


# -- the page of compatibility -------------------------------------------------------------------------------------

#: A row: what, its version, the tests, who runs them.
Tried = tuple[str, str, list[str], str]


def _compatibility() -> list[Tried]:
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    rows = [row for row in rows if row[0] != "what" and row[0].strip("-")]
    return [(what, version, re.findall(r"`(tests/[^`]+::[^`]+)`", test), by) for what, version, test, by in rows]


def _collected(*arguments: str) -> set[str]:
    """The ids of the tests that these arguments of pytest select; also those without what is in brackets."""
    lines = python("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments, cwd=ROOT).stdout
    found = {line for line in lines.splitlines() if "::" in line}
    return found | {name.partition("[")[0] for name in found}


def test_each_row_about_compatibility_has_a_version_and_a_test_that_is_there_or_says_untried() -> None:
    """Down to the brackets of its id; and no test of the matrix is left out of the page."""
    rows = _compatibility()
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    cited = {name for _, _, names, _ in rows for name in names}
    files = sorted({name.partition("::")[0] for name in cited})
    there = _collected(*files, "tests/matrix")

    assert len(rows) > 40
    assert sorted(cited - there) == []
    honest = [bool(version and names and by) or not (version or names or by) for _, version, names, by in rows]
    assert [row[0] for row, is_honest in zip(rows, honest, strict=True) if not is_honest] == []
    assert page.count("| untried | |") == sum(not names for _, _, names, _ in rows)
    tested = {name.partition("[")[0] for name in there if name.startswith("tests/matrix/")}
    assert tested - {name.partition("[")[0] for name in cited} == set()


def test_the_page_about_compatibility_says_what_ci_runs() -> None:
    """Of the matrix a part; of the other tests all."""
    in_ci = _collected("-m", "matrix and ci", "tests/matrix")
    wrong = []
    for what, _, names, by in _compatibility():
        of_matrix = [name for name in names if name.startswith("tests/matrix/")]
        every = all(name in in_ci for name in of_matrix)
        if names and by != ("CI" if every else "`make matrix`"):
            wrong.append(what)

    assert wrong == []
