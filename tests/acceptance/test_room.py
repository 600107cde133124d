"""Real workers against a provider whose queue of tokens is too small for all shards at once."""

from __future__ import annotations
