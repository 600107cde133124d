"""Integrations with web frameworks. Nothing here is imported unless a site asks for it."""
