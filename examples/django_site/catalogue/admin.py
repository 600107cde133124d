from django.contrib import admin

from catalogue.models import Product


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ("name", "features", "description")
    search_fields = ("name", "features")
