from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("catalogue.urls")),
    path("batchpipe/", include("batchpipe.contrib.django.urls")),
    path("admin/", admin.site.urls),
]
