"""Write what the documentation takes from the code: ``python tests/regen_docs.py``; a test compares.

The parts between ``<!-- generated -->`` and ``<!-- end -->`` of docs/cli.md and docs/settings.md, and all of
.env.example. Everything around them is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from batchpipe.cli import COMMANDS, cli
from batchpipe.config.account import Account
from batchpipe.config.environment import PREFIX
from batchpipe.config.settings import Settings
from batchpipe.config.target import Target

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- generated: python tests/regen_docs.py -->\n", "<!-- end -->"
WIDTH = 98  # what click makes of a terminal with 100 columns

#: Settings that are read under the names which every OpenAI program knows, for the account `default`.
FALLBACKS = {
    "openai_api_key": ("API_KEY", "the provider's API key"),
    "openai_org_id": ("ORGANIZATION", "OpenAI organization id"),
    "openai_project_id": ("PROJECT", "OpenAI project id"),
    "openai_base_url": ("BASE_URL", "URL of an OpenAI-compatible server, with its /v1"),
    "openai_webhook_secret": ("WEBHOOK_SECRET", "secret of the provider's webhooks"),
}
#: Defaults that are found at run time: what to say instead of a value.
FOUND = {"home": "the platform's user data folder", "broker_url": "REDIS_URL"}

ENV_HEAD = """\
# All settings of batchpipe, with their defaults. Copy this to .env and uncomment what you change;
# variables of the environment win over this file, and both win over files in /run/secrets.
# docs/settings.md says more. docker-compose.yml needs one more line here, REDIS_PASSWORD=...: see docs/deploy.md.
"""


def documents() -> dict[Path, str]:
    """Each file with what it must hold."""
    return {
        ROOT / "docs" / "cli.md": _filled(ROOT / "docs" / "cli.md", _help_texts()),
        ROOT / "docs" / "settings.md": _filled(ROOT / "docs" / "settings.md", _tables()),
        ROOT / ".env.example": _env_example(),
    }


def _filled(path: Path, generated: str) -> str:
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has lost its marks: {BEGIN.strip()} ... {END}")
    return f"{head}{BEGIN}\n{generated}\n{END}{tail}"


# -- the command line ----------------------------------------------------------------------------------------------


def _help_texts() -> str:
    parts = [_help_text("batchpipe", cli)]
    with click.Context(cli, info_name="batchpipe") as context:
        for name in COMMANDS:
            command = cli.get_command(context, name)
            assert command is not None
            parts.append(_help_text(f"batchpipe {name}", command))
            if isinstance(command, click.Group):
                parts += [_help_text(f"batchpipe {name} {sub}", inner) for sub, inner in command.commands.items()]
    return "\n".join(parts)


def _help_text(name: str, command: click.Command) -> str:
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    settings["help_option_names"] = ["-h", "--help"]  # as the group hands them down
    with click.Context(command, info_name=name, **settings) as context:
        return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


# -- settings ------------------------------------------------------------------------------------------------------


def _own_settings() -> Iterator[tuple[str, FieldInfo]]:
    for name, field in Settings.model_fields.items():
        if name not in FALLBACKS and name not in ("accounts", "schedules", "targets"):
            yield name, field


def _value(field: FieldInfo) -> str:
    """A default as it is written in the environment; "" where there is none."""
    value = field.default
    if field.default_factory is not None or value is None or value == ():
        return ""
    if isinstance(value, SecretStr):
        raise ValueError("a secret has no default")
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tables() -> str:
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in _own_settings():
        default = f"`{_value(field)}`" if _value(field) else FOUND.get(name, "unset")
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    lines += ["", "Each account has:", "", "| variable | default | meaning |", "| --- | --- | --- |"]
    also = {short: name.upper() for name, (short, _) in FALLBACKS.items()}
    for name, field in Account.model_fields.items():
        default = f"`{_value(field)}`" if _value(field) else "unset"
        if name.upper() in also:
            default += f"; account `default`: `{also[name.upper()]}`"
        lines.append(f"| `{PREFIX}ACCOUNTS__NAME__{name.upper()}` | {default} | {field.description} |")
    lines += ["", "Each target of [notifications](notifications.md) has:", ""]
    lines += ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Target.model_fields.items():
        default = f"`{_value(field)}`" if _value(field) else "unset"
        lines.append(f"| `{PREFIX}TARGETS__NAME__{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _env_example() -> str:
    lines = [ENV_HEAD]
    lines += ["# -- the account `default`, under the names that every OpenAI program knows", ""]
    for name, (_, meaning) in FALLBACKS.items():
        lines += [f"# {meaning}", f"#{name.upper()}=", ""]
    lines += ["# -- batchpipe", ""]
    for name, field in _own_settings():
        note = f"; default: {FOUND[name]}" if name in FOUND and field.default_factory is not None else ""
        lines += [f"# {field.description}{note}", f"#{PREFIX}{name.upper()}={_value(field)}", ""]
    lines += ["# -- further accounts: any name in place of NAME; submit with --account NAME", ""]
    for name, field in Account.model_fields.items():
        lines += [f"# {field.description}", f"#{PREFIX}ACCOUNTS__NAME__{name.upper()}={_value(field)}", ""]
    lines += ["# -- targets of notifications: any name in place of NAME", ""]
    for name, field in Target.model_fields.items():
        lines += [f"# {field.description}", f"#{PREFIX}TARGETS__NAME__{name.upper()}=", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
