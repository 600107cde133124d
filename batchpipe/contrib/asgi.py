"""``app.mount("/batchpipe", WebhookApp())`` in Starlette or FastAPI, or an app of its own: see docs/webhooks.md."""

from batchpipe.webhooks.asgi import WebhookApp

__all__ = ["WebhookApp"]
