"""The recipe of a job: how a request is made of a data row, and what its answer must be. Pure.

Prompts are data, so a recipe lies in the workspace of its job (``pipeline/recipes``); its record has only the digest.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal, Self

import msgspec

#: What becomes of an answer that is not as the schema says, was cut, or was refused.
OnInvalid = Literal["reask", "fail", "keep"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request is made of a data row; without templates the rows of the input are requests already."""

    endpoint: str
    model: str | None = None
    prompt: str | None = None  #: template of the user's message
    system: str | None = None  #: template of the system message
    params: dict[str, Any] = {}  #: further fields of the body
    answer: dict[str, Any] | None = None  #: JSON Schema of the answer
    answer_name: str = "answer"  #: its name in ``response_format``
    id: str | None = None  #: column of the ``custom_id``; None: the number of the row
    image: str | None = None  #: column with an image, or its URL
    text: str | None = None  #: column that is embedded or moderated
    body: str | None = None  #: template of a whole body, as JSON
    on_invalid: OnInvalid | None = None
    grow_tokens: bool = False  #: a cut answer is asked for again with a higher limit
    delimiter: str | None = None  #: of a CSV; None: found
    header: bool | None = None  #: whether a CSV's first line names its columns; None: found
    encoding: str | None = None  #: of a text file; None: found

    @property
    def makes_requests(self) -> bool:
        """Whether rows are data; else they are requests, and go through unchanged."""
        return not (self.prompt is None and self.image is None and self.text is None and self.body is None)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Raises msgspec.DecodeError."""
        return msgspec.json.decode(text, type=cls)

    @property
    def digest(self) -> str:
        """The same for equal recipes."""
        return blake2b(self.to_json(), digest_size=16).hexdigest()
