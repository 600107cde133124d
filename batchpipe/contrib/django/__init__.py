"""batchpipe in a Django site: put ``batchpipe.contrib.django`` into INSTALLED_APPS. See docs/django.md."""
