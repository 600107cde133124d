"""One row of a job's results, and what people want of it: its text, its answer, its embedding, its cost. Pure."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

import orjson

from batchpipe.model.answer_text import NOTHING, Said, said_in
from batchpipe.model.answers import OutcomeState
from batchpipe.model.bodies import tokens_of

_PICO_PER_DOLLAR = 10**12
#: Pico-dollars for a row by its model and tokens; None where the price is not known.
Price = Callable[[str | None, dict[str, int]], int | None]


@dataclass(frozen=True)
class Reads:
    """How the answers of a job are read. ``parse``: an answer is JSON; ``model``: a pydantic model that it must be."""

    parse: bool = False
    model: Any = None
    price: Price | None = None


PLAIN = Reads()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row of a job's results. ``index`` counts from 0: its place in the input, where that is known.

    ``state`` is ok, failed (the provider or model refused it, or its answer is not what was asked for) or missing (no
    answer came). ``response`` and ``error`` are the provider's, decoded. ``input`` is the data row that it came from,
    by column; None where the input had requests. What the properties say is None where there is none; they never raise
    for an odd body.
    """

    index: int
    custom_id: str
    state: OutcomeState
    response: Any = None
    error: Any = None
    attempts: int = 1
    input: dict[str, Any] | None = None
    reads: Reads = field(default=PLAIN, repr=False, compare=False)

    @property
    def id(self) -> str:
        """Its ``custom_id``: the value of the id column, or the number of the row."""
        return self.custom_id

    @property
    def body(self) -> Any:
        """The body of the response."""
        return self.response.get("body") if isinstance(self.response, Mapping) else None

    @cached_property
    def _said(self) -> Said:
        try:
            return said_in(self.body)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError):
            return NOTHING

    @property
    def text(self) -> str | None:
        """What the model said: all parts of it, joined."""
        return self._said.text

    @property
    def refusal(self) -> str | None:
        """Why the model refused, in its words."""
        return self._said.refusal

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length`` and so on; of ``/v1/responses`` the status, or why it is incomplete."""
        return self._said.finish_reason

    @cached_property
    def answer(self) -> Any:
        """The text as JSON, where the job asked for answers of a schema; an object of the model where one was given.
        None where it is not valid: ``text`` has what was said. The text itself where nothing was asked for.
        """
        if self.reads.model is not None:
            return self._validated()
        if not self.reads.parse or self.text is None:
            return self.text
        try:
            return orjson.loads(self.text)
        except (orjson.JSONDecodeError, UnicodeEncodeError):
            return None

    def _validated(self) -> Any:
        if self.text is None:
            return None
        try:
            return self.reads.model.model_validate_json(self.text)
        except ValueError:  # pydantic's ValidationError is one
            return None

    @cached_property
    def embeddings(self) -> list[array[float]]:
        """One for each input of a row for ``/v1/embeddings``."""
        data = self.body.get("data") if isinstance(self.body, Mapping) else None
        found = (
            [_floats(one.get("embedding")) for one in data or () if isinstance(one, Mapping)] if _is_list(data) else []
        )
        return [one for one in found if one is not None]

    @property
    def embedding(self) -> array[float] | None:
        """That of its only, or first, input."""
        return self.embeddings[0] if self.embeddings else None

    @cached_property
    def usage(self) -> dict[str, int]:
        """Tokens: ``input_tokens``, ``output_tokens``, ``total_tokens``, ``cached_tokens``, ``reasoning_tokens``, ...;
        without zeros.
        """
        return tokens_of(self.body.get("usage")) if isinstance(self.body, Mapping) else {}

    @property
    def model(self) -> str | None:
        """The model that answered."""
        found = self.body.get("model") if isinstance(self.body, Mapping) else None
        return found if isinstance(found, str) else None

    @property
    def cost(self) -> Decimal | None:
        """Dollars at list prices of batches, an estimate; None where the price or the tokens are not known, 0 in a
        sandbox. Of a row that was asked again, that of its last answer.
        """
        if not self.usage:
            return None
        pico = self.reads.price(self.model, self.usage) if self.reads.price is not None else None
        return None if pico is None else Decimal(pico) / _PICO_PER_DOLLAR

    @property
    def reason(self) -> str | None:
        """Why it is not ok, in a word: the code of its error, or the HTTP status."""
        if self.state is OutcomeState.OK:
            return None
        error = self.error
        if not isinstance(error, Mapping) and isinstance(self.body, Mapping):
            error = self.body.get("error")
        if isinstance(error, Mapping):
            found = error.get("code") or error.get("type") or error.get("message")
            if found:
                return str(found)
        status = self.response.get("status_code") if isinstance(self.response, Mapping) else None
        return str(status) if status is not None else self.state.value


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _floats(value: Any) -> array[float] | None:
    """Numbers, or base64 of 32-bit ones."""
    try:
        if isinstance(value, str):
            found = array("f")
            found.frombytes(base64.b64decode(value))
            return found
        return array("d", value) if isinstance(value, list) else None
    except (TypeError, ValueError):
        return None
