"""Notifications as mail, through the backend that the site has set up."""

from __future__ import annotations

#: Seconds that a mail server gets; Django's own default is for ever.
MAIL_SECONDS = 10


def send(subject: str, text: str, to: list[str]) -> None:
    """From ``DEFAULT_FROM_EMAIL``. Raises what the backend raises."""
    from django.core.mail import EmailMessage, get_connection

    connection = get_connection()
    if getattr(connection, "timeout", MAIL_SECONDS) is None:
        connection.timeout = MAIL_SECONDS
    EmailMessage(subject, text, None, to, connection=connection).send()
