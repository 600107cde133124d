"""A local OpenAI-compatible Files and Batches server for tests, demos and development.

It is independent: nothing of the pipeline is imported here.
"""

from batchpipe.sandbox.faults import Fault
from batchpipe.sandbox.server import Sandbox, answers, serve

__all__ = ["Fault", "Sandbox", "answers", "serve"]
