"""The options that several commands share, and the types of their values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click

from batchpipe.model.ranges import in_range
from batchpipe.model.records import DEFAULT_ACCOUNT, DEFAULT_ENDPOINT, DEFAULT_WINDOW

F = TypeVar("F", bound=Callable[..., Any])


class Pair(click.ParamType[tuple[str, Any]]):
    """KEY=VALUE; with ``as_json`` the value is JSON."""

    name = "KEY=VALUE"

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.name = "KEY=JSON" if as_json else "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, sign, text = str(value).partition("=")
        if not sign or not key:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        if not self.as_json:
            return key, text
        try:
            return key, json.loads(text, parse_constant=_no_constant)
        except ValueError as error:
            reason = getattr(error, "msg", str(error))
            self.fail(f"{key}: {text!r} is not JSON ({reason}); strings need quotes of their own", param, ctx)


class WholeNumber(click.IntRange):
    """A whole number of a range; what is wrong is said in plain words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            return self.fail(
                f"must be a whole number{in_range(self.min, self.max)}, not {str(value)[:40]!r}", param, ctx
            )


class Number(click.FloatRange):
    """A number of a range, and not ``nan``."""

    noun = "a number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = math.nan
        with suppress(click.BadParameter):
            found = super().convert(value, param, ctx)
        if math.isfinite(found):
            return found
        return self.fail(f"must be {self.noun}{in_range(self.min, self.max)}, not {str(value)[:40]!r}", param, ctx)


class Seconds(Number):
    """A number of seconds from 0 on."""

    name, noun = "SECONDS", "a number of seconds"

    def __init__(self) -> None:
        super().__init__(min=0)


class Place(click.ParamType[str]):
    """A folder or URL."""

    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("is empty", param, ctx)
        return str(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
endpoint_option = click.option(
    "--endpoint", help=f"Of every row.  [default: the url of the first request; of a table {DEFAULT_ENDPOINT}]"
)


class Text(click.ParamType[str]):
    """A text, or with a leading @ the name of a file with it; @@ is an @."""

    name = "TEXT|@FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text.startswith("@"):
            return text
        from batchpipe.client.recipes import text_or_file
        from batchpipe.errors import InvalidInput

        try:
            return text_or_file(text, "") or ""
        except InvalidInput as error:
            return self.fail(error.message, param, ctx)


class Delimiter(click.ParamType[str]):
    """One character; a tab may be written as it is in programs."""

    name = "CHARACTER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = {"\\t": "\t", "tab": "\t"}.get(str(value), str(value))
        if len(text) != 1:
            self.fail(f"must be one character, or tab, not {text[:40]!r}", param, ctx)
        return text


def size_options(otherwise: str = "") -> Callable[[F], F]:
    """The limits of a shard. ``otherwise``: where the default comes from, for the help."""
    words = f"  [default: {otherwise}]" if otherwise else ""
    return _all(
        click.option("--max-rows", type=WholeNumber(min=1), help=f"Rows per shard at most.{words}"),
        click.option("--max-bytes", type=WholeNumber(min=1), help=f"Bytes per shard at most.{words}"),
    )


def submit_options(command: F) -> F:
    """INPUT and the options of ``run`` and ``submit``, as ``SubmitOptions`` has them; an account that is not given is
    None."""
    return _all(
        click.argument("input", metavar="INPUT...", nargs=-1, required=True),
        click.option("-o", "--output", required=True, type=Place(), help="Folder or URL for the results."),
        endpoint_option,
        click.option("--completion-window", default=DEFAULT_WINDOW, show_default=True, help="For the provider."),
        _pairs_option("--metadata", Pair(), "For the provider's batches; repeatable."),
        _pairs_option("--extra", Pair(as_json=True), "Passed on to batches.create."),
        click.option("--account", metavar="NAME", help=f"Account of the settings.  [default: {DEFAULT_ACCOUNT}]"),
        click.option("--name", metavar="TEXT", help="For people."),
        click.option("--key", metavar="TEXT", help="Idempotency key: the same key returns the first job."),
        click.option(
            "--notify", metavar="TARGET", multiple=True, help="Tell this target of its end: a name or URL; repeatable."
        ),
        size_options(),
        click.option("--attempts", type=WholeNumber(1, 100), help="Rounds a row may go through."),
        click.option(
            "--priority",
            type=WholeNumber(-100, 100),
            help="Goes before jobs of a lower one where shards wait for room at the provider.  [default: 0]",
        ),
        recipe_options,
        click.option(
            "--format",
            type=click.Choice(["csv", "parquet"]),
            multiple=True,
            help="Write the results as a table too, beside the JSONL; repeatable.",
        ),
        click.option("--excel", is_flag=True, help="Make the CSV safe to open in a spreadsheet."),
    )(command)


def recipe_options(command: F) -> F:
    """What makes requests of the rows of a table, and what their answers must be."""
    return _all(
        click.option("--prompt", type=Text(), help="Make a request of each row: 'Describe {{ name }}'."),
        click.option("--system", type=Text(), help="System message, a template too."),
        click.option("--model", metavar="NAME", help="Of all rows of a table."),
        click.option(
            "--param",
            "params",
            type=Pair(as_json=True),
            multiple=True,
            callback=lambda ctx, param, pairs: dict(pairs) or None,
            help="A field of each body, such as temperature=0; repeatable.",
        ),
        click.option("--answer", metavar="FILE", help="JSON Schema of the answers: asked for, and checked."),
        click.option("--id", metavar="COLUMN", help="Column with the custom_id.  [default: the row's number]"),
        click.option("--image", metavar="COLUMN", help="Column with a URL or file of an image."),
        click.option("--text", metavar="COLUMN", help="Column that is embedded or moderated."),
        click.option("--body", type=Text(), help="Template of a whole body, as JSON."),
        click.option(
            "--on-invalid",
            type=click.Choice(["reask", "fail", "keep"]),
            help="For an answer that is invalid, cut or refused.  [default: reask with --answer]",
        ),
        click.option("--grow-tokens", is_flag=True, help="Ask again with a higher limit where an answer was cut."),
        click.option("--delimiter", type=Delimiter(), help="Of a CSV.  [default: found]"),
        click.option("--header/--no-header", default=None, help="Whether a CSV has one.  [default: found]"),
        click.option("--encoding", metavar="NAME", help="Of a CSV, such as cp1252.  [default: UTF-8]"),
    )(command)


def _pairs_option(name: str, kind: Pair, words: str) -> Callable[[F], F]:
    return click.option(name, type=kind, multiple=True, help=words, callback=lambda ctx, param, pairs: dict(pairs))


def _all(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Options in the order of the help."""

    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate
