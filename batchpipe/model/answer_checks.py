"""Whether an answer is what was asked for: it parses, fits the schema, was not cut and not refused. The only door to
jsonschema_rs."""

from __future__ import annotations

from typing import Any

import msgspec

from batchpipe.errors import InvalidInput, shortened
from batchpipe.model.answer_text import Said

#: Characters of a complaint.
MOST_COMPLAINT = 500


class Complaint(msgspec.Struct, frozen=True):
    """Why an answer is not ok. ``kind``: ``invalid``, ``cut`` or ``refused``. ``message`` is for the model and people;
    it may quote the answer.
    """

    kind: str
    message: str


def validator_of(schema: dict[str, Any]) -> Any:
    """Raises InvalidInput for a schema that cannot be used."""
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for(schema)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        words = " ".join(str(error).split())
        raise InvalidInput(f"is no JSON Schema that can be used: {shortened(words, 200)}", field="answer") from None


class AnswerCheck:
    """Checks the answers of one job."""

    def __init__(self, schema: dict[str, Any] | None) -> None:
        self._validator = validator_of(schema) if schema is not None else None

    def complaint(self, said: Said) -> Complaint | None:
        """None for an answer that is what was asked for."""
        if said.refusal is not None:
            return Complaint("refused", f"it was refused: {shortened(said.refusal, MOST_COMPLAINT)}")
        if said.is_cut:
            return Complaint("cut", "it was cut off at the limit of tokens")
        if said.is_filtered:
            return Complaint("refused", "it was cut off by the content filter")
        if self._validator is None:
            return None
        if said.text is None:
            return Complaint("invalid", "it has no text")
        try:
            value = msgspec.json.decode(said.text)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            return Complaint("invalid", f"it is not JSON: {shortened(str(error), MOST_COMPLAINT)}")
        for wrong in self._validator.iter_errors(value):
            where = "/".join(map(str, wrong.instance_path))
            place = f"at {where}: " if where else ""
            return Complaint("invalid", shortened(f"{place}{wrong.message}", MOST_COMPLAINT))
        return None
