from django.db import models


class Product(models.Model):
    name = models.CharField(max_length=100, unique=True)
    features = models.CharField(max_length=300)
    description = models.TextField(blank=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return str(self.name)


class Run(models.Model):
    """Each time that descriptions were asked for; the job itself is batchpipe's."""

    job = models.CharField(max_length=64, unique=True)
    started = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-started",)

    def __str__(self) -> str:
        return str(self.job)
