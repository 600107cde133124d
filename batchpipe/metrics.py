"""What Prometheus reads, under the name that sites use: ``batchpipe.metrics.render``."""

from batchpipe.monitoring.prometheus import collector, render, serve, wsgi_app

__all__ = ["collector", "render", "serve", "wsgi_app"]
