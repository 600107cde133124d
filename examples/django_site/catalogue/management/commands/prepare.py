from typing import Any

from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand

from catalogue.models import Product


class Command(BaseCommand):
    help = "Make the database, with products and somebody who may log in; a second time changes nothing."

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0)
        if not Product.objects.exists():
            call_command("loaddata", "products", verbosity=0)
        if not User.objects.filter(username="admin").exists():
            User.objects.create_superuser("admin", "admin@example.org", "admin")
