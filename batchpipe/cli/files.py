"""files: what batchpipe has uploaded to an account, and what of it can go to make room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batchpipe.cli.common import emit_json, number, open_client, say
from batchpipe.cli.options import json_option
from batchpipe.errors import Gone, JobNotFound

if TYPE_CHECKING:
    from batchpipe.client.client import Client
    from batchpipe.model.provider import StoredFile

#: Files that are looked at; the newest come first.
MOST_FILES = 100_000


@click.command("files")
@click.argument("account", default="default")
@click.option("--delete", is_flag=True, help="Delete those of jobs that have ended.")
@json_option
def files_command(account: str, delete: bool, as_json: bool) -> None:
    """List the files that batchpipe has uploaded to an account. [default account: default]

    Those of jobs that have ended are no longer needed, and can be deleted to make room. Files of a job that is
    not known to this Redis are left alone: they may belong to another one.
    """
    from itertools import islice

    from batchpipe.model.records import UPLOAD_NAME
    from batchpipe.provider import Apis

    client = open_client()
    api, states = Apis(client.settings)(account), dict[str, str]()
    found: dict[str, list[StoredFile]] = {"ended": [], "running": [], "unknown": []}
    for file in islice(api.iter_files(0.0), MOST_FILES):
        name = UPLOAD_NAME.fullmatch(file.name or "")
        if name is not None:
            found[states.setdefault(name[1], _state(client, name[1]))].append(file)
    deleted = 0
    for file in found["ended"] if delete else ():
        try:
            api.delete_file(file.id)
            deleted += 1
        except Gone:  # it has expired, or was deleted elsewhere
            continue
    shown = {
        state: {"files": len(files), "bytes": sum(file.bytes or 0 for file in files)} for state, files in found.items()
    }
    if as_json:
        return emit_json({"account": account, **shown, "deleted": deleted})
    for state, words in (("ended", "of jobs that have ended"), ("running", "in use"), ("unknown", "of unknown jobs")):
        click.echo(f"{number(shown[state]['files']):>8} files {shown[state]['bytes'] / 1e6:>10.1f} MB  {words}")
    if delete:
        return say(f"{deleted} deleted")
    if found["ended"]:
        say(f"delete those of ended jobs: batchpipe files {account} --delete")
    return None


def _state(client: Client, job_id: str) -> str:
    try:
        job = client.get_job(job_id)
    except JobNotFound:
        return "unknown"
    return "ended" if job.record.closed and job.id == job_id else "running"
