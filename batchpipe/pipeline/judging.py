"""Judges the answers of a job by its recipe, where they are collected."""

from __future__ import annotations

import orjson

from batchpipe.model.answer_checks import AnswerCheck
from batchpipe.model.answer_text import said_in
from batchpipe.model.answers import OutcomeState, error_line, raw_error, read_answer, strict_json
from batchpipe.model.outcomes import INVALID, INVALID_FOR_NOW
from batchpipe.model.reasons import INVALID_CODE
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import ShardRecord
from batchpipe.model.rendering import CHAT, RESPONSES


class Judge:
    """Decides whether an answer that came is what was asked for. ``mark``: that of a row whose answer is not."""

    def __init__(self, recipe: Recipe, mark: bytes) -> None:
        self.mark = mark
        self._check = AnswerCheck(recipe.answer)

    def refuse(self, line: bytes, shard: ShardRecord) -> bytes | None:
        """The line of ``errors.jsonl`` for an ok line with an answer that is not what was asked for; None if it is."""
        try:
            response = orjson.loads(line).get("response")
        except orjson.JSONDecodeError:
            strict = strict_json(line)
            response = orjson.loads(strict).get("response") if strict is not None else None
        body = response.get("body") if isinstance(response, dict) else None
        complaint = self._check.complaint(said_in(body))
        if complaint is None:
            return None
        found = read_answer(line)
        error = raw_error(INVALID_CODE, complaint.message)
        return error_line(found.custom_id, OutcomeState.FAILED, shard.round, found.response, error)


def judge_of(recipe: Recipe | None, shard: ShardRecord, endpoint: str) -> Judge | None:
    """None where answers are not checked. A shard that is collected again later asks nobody again."""
    if recipe is None or recipe.on_invalid not in ("reask", "fail") or endpoint not in (CHAT, RESPONSES):
        return None
    return Judge(recipe, INVALID if recipe.on_invalid == "fail" or shard.landing else INVALID_FOR_NOW)
