from django.urls import path

from catalogue import views

urlpatterns = [
    path("", views.index, name="index"),
    path("describe/", views.describe_all, name="describe_all"),
    path("forget/", views.forget_all, name="forget_all"),
]
