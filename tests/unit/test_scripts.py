"""What is written above the Lua scripts is true, and stays on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from batchpipe.client.rooms import MOST_OF_A_NAME
from batchpipe.model.admission import RATIO_MARGIN, SPAN, Kind
from batchpipe.model.records import JobRecord, Record, ShardRecord
from batchpipe.store import scripts
from batchpipe.store.scripts import source

FOLDER = Path(scripts.__file__).parent
PARTS = (*scripts.SHARED, *scripts.OF_ROOM)
COMMON = "".join((FOLDER / f"{name}.lua").read_text(encoding="utf-8") for name in PARTS)
DICTIONARY = COMMON.partition("-- END OF THE DICTIONARY")[0]
NAMES = sorted(path.stem for path in FOLDER.glob("*.lua") if path.stem not in PARTS)
#: What follows the script: its answer is given after what it has changed of hashes is written.
TAIL = ["end", "return run(script)"]
#: Fields that only scripts know.
ONLY_THERE = {"last", "to_land", "drafted", "due_from", "due_now", "STATE_at"}


def script(name: str) -> str:
    return (FOLDER / f"{name}.lua").read_text(encoding="utf-8")


def documented(title: str) -> list[str]:
    """The names that a section of the dictionary explains."""
    section = DICTIONARY.split(f"\n-- {title}", 1)[1].split("\n--\n", 1)[0]
    return re.findall(r"^--   (\S+) +\S", section, flags=re.MULTILINE)


def line(head: str, what: str) -> str:
    found = re.findall(rf"^-- {what} .+$", head, flags=re.MULTILINE)
    assert len(found) == 1, found
    return str(found[0])


@pytest.mark.parametrize("name", NAMES)
def test_redis_is_sent_the_code_without_comment_lines_and_with_the_same_line_numbers(name: str) -> None:
    """Only whole lines of comment are left out; no long string or comment is there that a line could be part of."""
    parts = "".join((FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in scripts.parts_of(name))
    whole, sent = (parts + script(name)).splitlines(), source(name).splitlines()
    assert not [line for line in sent if re.search(r"\[=*\[", line)]
    assert not [line for line in whole if re.search(r"--\[=*\[", line)]
    begins = len(parts.splitlines())
    assert sent[begins] == "local function script()"
    assert whole[begins].startswith("--")
    sent[begins] = ""
    assert sent == ["" if line.lstrip().startswith("--") else line for line in whole] + TAIL


def test_the_parts_about_room_are_in_the_scripts_that_call_them_and_in_no_others() -> None:
    """A function that is not there is an error of the script, in Redis."""
    parts = "".join((FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in scripts.OF_ROOM)
    functions = ["note_end_of_batch", *re.findall(r"^local function (\w+)", parts, flags=re.MULTILINE)]
    calls = re.compile(rf"\b(?:{'|'.join(functions)})\(|\b(?:admission\.|read_rooms\b|reading\b)")
    code = {name: re.sub(r"--.*", "", script(name)) for name in NAMES}

    assert sorted(name for name in NAMES if calls.search(code[name])) == sorted(scripts.NEEDS_ROOM)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_names_its_keys_its_arguments_and_its_answers_at_its_top(name: str) -> None:
    """They are numbered without a gap, and none is used that is not named."""
    text = script(name)
    head = re.findall(r"\A(?:--.*\n)+", text)[0].replace("\n--   ", " ")  # one line each, that is
    for what in ("KEYS", "ARGV"):
        named = [int(number) for number in re.findall(r"(?:: |, |and )(\d+) [a-z]", line(head, f"{what}:"))]
        used = [int(number) for number in re.findall(rf"{what}\[(\d+)\]", text)]
        assert named == list(range(1, len(named) + 1))
        assert max(used, default=1) <= len(named)
    assert re.search(r" \d clock$", line(head, "KEYS:"))
    assert line(head, "->")


def test_the_dictionary_explains_every_field_of_the_records_once() -> None:
    """And of those that only scripts know, all, and no others."""
    both, of_jobs, of_shards = (
        documented("Fields of both"),
        documented("Fields of a job"),
        documented("Fields of a shard"),
    )
    every = both + of_jobs + of_shards
    assert len(set(every)) == len(every)
    jobs, shards = set(JobRecord.__struct_encode_fields__), set(ShardRecord.__struct_encode_fields__)
    assert set(both) - ONLY_THERE == jobs & shards >= set(Record.__struct_encode_fields__)
    assert set(of_jobs) - ONLY_THERE == jobs - shards
    assert set(of_shards) - ONLY_THERE == shards - jobs
    assert set(every) >= ONLY_THERE


def test_the_dictionary_explains_every_key() -> None:
    """Whatever the scripts and the store put after the prefix; no family that is not used."""
    texts = [path.read_text(encoding="utf-8") for path in (*FOLDER.glob("*.lua"), *FOLDER.parent.glob("*.py"))]
    pattern = r"""(?:(?:prefix|ARGV\[2\]|ARGV\[3\]) \.\. '|\.prefix\}|\{prefix\})([a-z_]+)"""
    used = {family for text in texts for family in re.findall(pattern, text)}
    assert {name.partition(":")[0] for name in documented("Keys, each after the prefix.")} == used


def test_numbers_of_admission_that_python_has_too_are_the_same() -> None:
    """Estimates, spans and names are made on both sides."""
    assert float(re.findall(r"^local RATIO_MARGIN = (\S+)$", COMMON, flags=re.MULTILINE)[0]) == RATIO_MARGIN
    (span,) = re.findall(r"^local SPAN = \{(.+)\}$", COMMON, flags=re.MULTILINE)
    assert {name: float(seconds) for name, seconds in re.findall(r"(\w+) = (\d+)", span)} == dict(SPAN)
    (kinds,) = re.findall(r"^local KINDS = \{(.+)\}$", COMMON, flags=re.MULTILINE)
    assert tuple(re.findall(r"'(\w+)'", kinds)) == get_args(Kind)
    assert re.findall(r"string\.sub\(without_date\(name\), 1, (\d+)\)", COMMON) == [str(MOST_OF_A_NAME)]
