"""The app: what a Django site registers with batchpipe at its start. That loads none of our libraries."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.signals import setting_changed

from batchpipe.config.site import DJANGO, Site, current_site, install_site
from batchpipe.contrib.django import conf, mail, notify, transactions
from batchpipe.contrib.django.checks import check_deployment, check_site


class BatchpipeConfig(AppConfig):
    name = "batchpipe.contrib.django"
    label = "batchpipe"
    verbose_name = "batchpipe"

    def ready(self) -> None:
        self.install()
        checks.register(check_site, "batchpipe")
        checks.register(check_deployment, "batchpipe", deploy=True)
        setting_changed.connect(_reread, dispatch_uid="batchpipe")

    @staticmethod
    def install() -> None:
        """From now on settings are read, submits delayed and ends of jobs signalled in Django's way."""
        site = Site(conf.read_settings)
        site.on_commit = transactions.hold
        site.send_mail = mail.send
        site.receivers[DJANGO] = notify.notify
        install_site(site)


def _reread(*, setting: str, **_: Any) -> None:
    """Tests override settings: those of batchpipe are read again at their next use."""
    if setting == conf.NAME:
        current_site().settings = None
