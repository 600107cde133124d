"""Models of the tests' site. Their app is in nobody's list, so no migrations are asked for."""

from __future__ import annotations

from django.core.files.storage import FileSystemStorage, Storage
from django.db import models


class FarAway(FileSystemStorage):
    """Like S3: files are there, and have no path."""

    def path(self, name: str) -> str:
        raise NotImplementedError("This backend doesn't support absolute paths.")

    def _open(self, name: str, mode: str = "rb") -> object:
        from django.core.files import File

        return File(open(super().path(name), mode))  # who asked closes it

    def _save(self, name: str, content: object) -> str:
        return str(FileSystemStorage(self.location).save(name, content))

    def exists(self, name: str) -> bool:
        return False


class Note(models.Model):
    text = models.CharField(max_length=200)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return str(self.text)


def far_away() -> Storage:
    return FarAway()


class Upload(models.Model):
    near = models.FileField(blank=True)
    far = models.FileField(blank=True, storage=far_away)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return str(self.pk)
