"""notifications: those that are not delivered, and how to send them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batchpipe.cli.common import clock, emit_json, open_client, out, say
from batchpipe.cli.options import WholeNumber, json_option
from batchpipe.errors import InvalidInput
from batchpipe.masking import one_line, without_secrets

if TYPE_CHECKING:
    from batchpipe.model.notifications import Notification


@click.command("notifications")
@click.option("--dead", is_flag=True, help="Those that were given up, instead of those that are tried again.")
@click.option("--resend", metavar="ID|all", help="Send this one now and for another day, or all that were given up.")
@click.option("--limit", type=WholeNumber(1, 1_000), default=100, show_default=True, help="How many are listed.")
@json_option
def notifications_command(dead: bool, resend: str | None, limit: int, as_json: bool) -> None:
    """List notifications that are not delivered, or send them again."""
    told = open_client().notifications()
    if resend is not None:
        ids = [note.id for note in told.dead(1_000)] if resend == "all" else [resend]
        count = told.send_again(ids)
        if resend != "all" and not count:
            raise InvalidInput(f"{resend[:80]!r} was delivered, or is not known; list: batchpipe notifications --dead")
        return say(f"{count} to be sent again; delivered now: {told.deliver()}")
    found = told.dead(limit) if dead else told.waiting(limit)
    if as_json:
        return emit_json([_shown(note) for note in found])
    for note in found:
        about = note.job or f"account {note.account}"
        when = f"given up after {note.tries} tries" if dead else f"next try {clock(note.due_at)}"
        reason = one_line(told.why(note))[:200]
        out(f"{note.id}  {note.type}  {about}  to {without_secrets(note.target)}  {when}: {reason}")
    counts = told.counts()
    full = ": no further ones are recorded" if counts.full else ""
    return say(f"{counts.waiting} to be tried again{full}, {counts.given_up} given up (--dead)")


def _shown(note: Notification) -> dict[str, object]:
    return {
        "id": note.id,
        "type": note.type,
        "target": without_secrets(note.target),
        "account": note.account,
        "job": note.job or None,
        "tries": note.tries,
        "error": note.error or None,
        "created_at": note.created_at,
        "due_at": None if note.dead else note.due_at,
        "dead": note.dead,
    }
