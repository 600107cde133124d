"""Which job owns an output, where results lie, and the files from which a Redis that lost everything is rebuilt."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import msgspec
import orjson

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import FILE_MISSING, InvalidInput, PermanentError, StorageTrouble
from batchpipe.model.records import ENDED, JobRecord, ShardRecord, State
from batchpipe.model.views import EARLIER, ERROR_FILE, JOB_FILE, OUTPUT_FILE
from batchpipe.pipeline.results import WORKING
from batchpipe.pipeline.sharding import Prepared
from batchpipe.storage import Folder, InputRules, LineFile, folded_place, place_name
from batchpipe.store.redis_label import label_of

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WORKSPACES = "workspaces.jsonl"

RESULT_FILES = (OUTPUT_FILE, ERROR_FILE)
#: Tables of results, which a job may have beside them.
TABLE_FILES = ("output.csv", "output.parquet")
_OURS = (*RESULT_FILES, *TABLE_FILES, JOB_FILE)
#: Bytes that a job.json may have before its shards.
_HEAD_BYTES = 1 << 24
_SHARDS_BEGIN = b'  "shards": [\n'
#: Bytes of the list of workspaces that are read, and the size from which on it is shortened.
_MOST_NOTED, PRUNED_BYTES = 1 << 28, 1 << 24
#: How long a job that Redis does not know may still be recovered.
_LOST_SECONDS = 30 * 86_400.0
_JOB_ID = re.compile(r"job_[0-9a-z]{19}")


def manifest(job: JobRecord, done: Iterable[ShardRecord], prepared: Prepared, redis: str) -> Iterator[bytes]:
    """What recover needs to know of a job when its next round begins, as the text of a JSON object, a part at a time:
    there may be 100,000 shards. It contains no secrets.

    ``done`` are the complete shards of the rounds before; of the new ones only what the provider cannot tell is
    written. ``redis`` is the label of the Redis that the job belongs to.
    """
    head = {
        **basics(job),
        "redis": redis,
        "round": job.round + 1,
        "order_files": [*job.order_files, prepared.order_file],
        "rows": prepared.rows if job.total is None else job.total,
    }
    yield orjson.dumps(head, option=orjson.OPT_INDENT_2).removesuffix(b"\n}") + b',\n  "shards": ['
    between = b"\n    "
    for shard in done:
        yield between + msgspec.json.encode(shard)
        between = b",\n    "
    for plan in prepared.shards:
        yield between + orjson.dumps({"round": job.round + 1, **msgspec.to_builtins(plan)})
        between = b",\n    "
    yield b"\n  ]\n}\n" if between[:1] == b"," else b"]\n}\n"


def basics(job: JobRecord) -> dict[str, Any]:
    """The fields of a job that never change."""
    fields = (
        *("v", "id", "name", "account", "endpoint", "completion_window", "metadata", "extra", "tags", "key", "queue"),
        *("input", "input_here", "spooled", "output", "workspace", "max_rows", "max_bytes", "attempts"),
        *("priority", "on_done", "notify_sites", "notify", "created_at"),
        *("inputs", "recipe", "rows_file", "formats", "excel", "retry_of", "owns"),
    )
    return {name: getattr(job, name) for name in fields}


def note_workspace(settings: Settings, job: JobRecord, **more: Any) -> None:
    """Note on this host where the workspace of a job lies: recover reads that when Redis has lost its records.

    ``more``: its ``record`` while it has no manifest; ``cancel`` if it was cancelled; ``taken``: the Redis from which
    recover has taken it over.
    """
    label = current_site().keep(label_of, settings)
    line = {"job": job.id, "workspace": job.workspace, "output": job.output, "redis": label, **more}
    try:
        _workspaces(settings).append(orjson.dumps(line))
    except (StorageTrouble, OSError) as error:  # a read-only home must not stop a job
        logger.warning("workspace not noted: %s", error, extra={"event": "workspace_not_noted", "job": job.id})


def noted_workspaces(settings: Settings) -> Iterator[bytes]:
    """The lines that ``note_workspace`` has written, the newest 256 MB of them. Raises StorageTrouble."""
    return _workspaces(settings).newest(_MOST_NOTED)


def _workspaces(settings: Settings) -> LineFile:
    return current_site().keep(_list_of, settings)


def _list_of(settings: Settings) -> LineFile:
    return LineFile(settings.home / WORKSPACES)


def prune_workspaces(settings: Settings, closed: Callable[[Sequence[str]], Mapping[str, bool]], now: float) -> None:
    """Once the list is long, remove the jobs that need no ``recover`` any more.

    ``closed`` returns, for the jobs that Redis knows, whether they are closed. A job that Redis does not know may be
    lost; after a month it is removed, too, because its batches are not listed any more.
    """
    oldest = now - max(settings.ttl_seconds, _LOST_SECONDS)

    def keep(lines: Sequence[bytes]) -> list[bool]:
        jobs = [_job_of(line) for line in lines]
        known = closed([job for job in dict.fromkeys(jobs) if job])
        return [bool(job) and not known.get(job, 0 < submitted_at(job) < oldest) for job in jobs]

    try:
        _workspaces(settings).prune(keep, beyond=PRUNED_BYTES)
    except (StorageTrouble, InvalidInput, OSError) as error:
        logger.warning("%s not made shorter: %s", WORKSPACES, error, extra={"event": "workspaces_not_pruned"})


def _job_of(line: bytes) -> str:
    """The job that a line is about; "" for an unreadable line."""
    try:
        job = orjson.loads(line)["job"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return job if isinstance(job, str) else ""


def submitted_at(job_id: str) -> float:
    """When a job was submitted, from its id; 0 if the id does not tell."""
    try:
        return int(job_id.removeprefix("job_")[:9], 36) / 1000 if len(job_id) == 23 else 0.0
    except ValueError:
        return 0.0


def planned_orders(workspace: Folder) -> list[str]:
    """The order files that the manifest of a workspace names, if it has one: recover needs them."""
    try:
        with workspace.reader(MANIFEST) as file:
            names = _head_of_view(file).get("order_files")
    except StorageTrouble:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def input_rules(settings: Settings) -> InputRules:
    """Which inputs these settings allow."""
    return InputRules(
        roots=settings.roots(),
        private_addresses=settings.allow_private_addresses,
        most_bytes=settings.max_input_bytes,
        most_line=settings.max_line_bytes,
        most_expansion=settings.max_expansion,
        rate=settings.transfer_bytes_per_second,
    )


def workspace_of(job: JobRecord, settings: Settings) -> Folder:
    """The folder of a job's working files; if roots are set, it cannot lead out of them."""
    return Folder(job.workspace, private=True, roots=settings.roots())


def copy_aside(output: Folder, owner: str) -> str:
    """Results of an earlier job in the same output are paid for: they are moved, not overwritten. Returns where to."""
    for name in _OURS:
        output.copy(name, f"{EARLIER}/{owner}/{name}")
    return output.path(f"{EARLIER}/{owner}")


def remove_copied(output: Folder, owner: str) -> None:
    """The second half of the move; job.json, which names the job that they belong to, goes last."""
    for name in _OURS:
        if output.is_copied(name, f"{EARLIER}/{owner}/{name}"):
            output.remove(name)


class Owner(NamedTuple):
    """The job that a job.json is about."""

    id: str
    account: str
    ended: bool
    has_files: bool  #: the job has written result files beside it


def read_owner(output: Folder) -> Owner | None:
    """The owner that the job.json of an output names; None if there is no job.json.

    Raises InvalidInput (``output_foreign``) for one that is not ours or cannot be understood, because somebody else
    may own it; (``output_unwritable``) for one that may not be read; StorageTrouble.
    """
    try:
        with output.reader(JOB_FILE) as file:
            view = _head_of_view(file)
    except StorageTrouble as error:
        if error.code == FILE_MISSING or isinstance(error.__cause__, NotADirectoryError):
            return None
        if isinstance(error.__cause__, IsADirectoryError):
            raise foreign(output, JOB_FILE) from error
        if isinstance(error.__cause__, PermissionError):
            message = f"{error}, so the owner of the results there is unknown; choose another output"
            raise InvalidInput(message, field="output", code="output_unwritable") from error
        raise
    owner, state = view.get("id"), view.get("state")
    if not isinstance(owner, str) or not owner.isidentifier():  # it becomes part of a path, so it must be our id
        raise foreign(output, JOB_FILE)
    if state not in {state.value for state in State} or not {"account", "output", "output_file", "rows"} <= view.keys():
        raise foreign(output, JOB_FILE)
    ended = state in {state.value for state in ENDED}
    here = f"{str(view['output']).rstrip('/')}/{OUTPUT_FILE}"  # else the results went to a place of their own
    return Owner(owner, str(view["account"]), ended, view["output_file"] == here)


def _head_of_view(file: BinaryIO) -> dict[str, Any]:
    """A job.json without its shards, of which there may be tens of thousands; {} if it is not a JSON object."""
    lines: list[bytes] = []
    left = _HEAD_BYTES
    while line := file.readline(left + 1):
        if line == _SHARDS_BEGIN:
            lines = [*lines[:-1], lines[-1].rstrip().rstrip(b","), b"}"] if lines else []
            break
        lines.append(line)
        left -= len(line)
        if left < 0:
            return {}
    try:
        view = orjson.loads(b"".join(lines))
    except orjson.JSONDecodeError:
        return {}
    return view if isinstance(view, dict) else {}


def foreign(output: Folder, name: str) -> InvalidInput:
    return InvalidInput(
        f"{output.path(name)} is there and batchpipe did not write it, or it is damaged: move it away or choose "
        "another output",
        field="output",
        code="output_foreign",
    )


def check_no_results(
    output: Folder, *, but: Mapping[str, Collection[int]] | None = None, also: Collection[str] = ()
) -> None:
    """Raises InvalidInput (``output_foreign``) if files with the names of result files lie there.

    ``but``: files of these sizes belong to the caller. ``also``: further names.
    """
    for name in (*RESULT_FILES, *also):
        if output.exists(name) and (but is None or output.size(name) not in but[name]):
            raise foreign(output, name)


def check_output_here(output: str) -> None:
    """Check a local output before anything is submitted. Raises InvalidInput (``output_foreign``).

    Errors while reading it are ignored: the caller may see less than the workers do.
    """
    folder = Folder(output)
    if not folder.is_local or not folder.exists():
        return
    try:
        owner = read_owner(folder)
        if owner is None or (owner.ended and not owner.has_files):
            check_no_results(folder)
    except StorageTrouble:
        return
    except InvalidInput as error:
        if error.code == "output_foreign":
            raise


def check_apart(source: str, output: str) -> None:
    """Raises InvalidInput if the results would overwrite the input."""
    if posixpath.basename(folded_place(source)) not in _OURS:
        return
    folder = place_name(output)
    if place_name(source) in {f"{folder.rstrip('/')}/{name}" for name in _OURS}:
        raise InvalidInput(f"{source}: would be overwritten by the results; choose another output", field="input")


def check_no_workspace(output: str, job_id: str, workspaces: str | None, *, name: str | None = None) -> None:
    """Raises InvalidInput for an output that is, or lies among, the working files of another job.

    ``workspaces``: the folder of the WORKSPACE setting. ``name``: that of the output, where the caller has it.
    """
    name, common = name or place_name(output), place_name(workspaces).rstrip("/") if workspaces else None
    parts = name.split("/")
    for at, part in enumerate(parts):
        if part == job_id or not _JOB_ID.fullmatch(part):
            continue
        below, above = parts[at + 1 :], "/".join(parts[:at])
        if above.endswith(f"/{EARLIER}") or (above == common and below[:1] in ([], *([name] for name in WORKING))):
            message = f"{output} belongs to the working files of job {part}; choose another output"
            raise InvalidInput(message, field="output", code="output_foreign")


def own_place(job: JobRecord) -> str:
    """Where a job's results go if they must not go to its output."""
    return Folder(job.workspace).path("results")


def results_place(job: JobRecord, roots: Sequence[str] = ()) -> Folder:
    """Where an ended job's results lie now. Raises PermanentError (``no_results``, or ``results_gone``: results of
    another job are in their place), StorageTrouble.

    ``roots``: the folders that they must lie under. Redis may not know the place: a job of another Redis may have
    moved them, or a link in their path may have changed.
    """
    if not job.results:
        raise PermanentError(f"job {job.id} has no result files", code="no_results")
    unnamed: Folder | None = None
    for place in dict.fromkeys(filter(None, (job.results, job.real))):
        folder, owner = Folder(place, roots=roots), None
        with suppress(InvalidInput):  # a damaged job.json names no other job
            owner = read_owner(folder)
        there = folder.exists(OUTPUT_FILE)
        if there and owner is not None and owner.id == job.id:
            return folder
        earlier = folder.child(f"{EARLIER}/{job.id}")
        if earlier.exists(OUTPUT_FILE):
            return earlier
        if there and owner is None:
            unnamed = unnamed or folder
    if unnamed is None:
        raise PermanentError(f"the results of job {job.id} are no longer in {job.results}", code="results_gone")
    return unnamed


def located(job: JobRecord, *, remote: bool = False, roots: Sequence[str] = ()) -> JobRecord:
    """A job's record with the place where its results lie now; that of a URL is looked at only if ``remote``."""
    if not job.state.ended or not (remote or Folder(job.results).is_local):
        return job
    with suppress(PermanentError, StorageTrouble):
        return job.evolve(results=results_place(job, roots).url)
    return job


def pretty(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"
