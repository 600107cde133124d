"""What docs/django.md shows is there."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests import django_project

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "django.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_its_code_imports_what_there_is() -> None:
    """Names of batchpipe and Django; those of the reader's project are the reader's."""
    django_project.configure()
    for block in PYTHON:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("batchpipe", "django"):
                module = import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_every_check_is_in_the_table() -> None:
    from batchpipe.contrib.django import checks

    source = Path(checks.__file__).read_text(encoding="utf-8")
    ids = set(re.findall(r'"batchpipe\.([EW]\d{3})"', source)) | {f"W0{n}" for n in checks.APP_NUMBERS.values()}

    assert set(re.findall(r"^\| `batchpipe\.(\w+)` \|", PAGE, flags=re.MULTILINE)) == ids | {"W019"}


@pytest.mark.parametrize(
    "name", ["batchpipe.contrib.django.access.owner_or_staff", "batchpipe.monitoring.prometheus.render"]
)
def test_dotted_names_lead_somewhere(name: str) -> None:
    module, _, attribute = name.rpartition(".")

    assert name.removeprefix("batchpipe.") in PAGE or attribute in PAGE
    assert hasattr(import_module(module), attribute)
