"""Front doors for webhooks that need no framework: an ASGI app, and the process that serves it."""
