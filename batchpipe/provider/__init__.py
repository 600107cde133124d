"""The provider: files and batches, over the real SDK. The only importer of openai.

The SDK's own retries are off (Celery does the retries, and a repeated create would pay twice); its errors become
ours; its responses are read as raw JSON, because it validates nothing and a wrong object would pass.
"""

from batchpipe.provider.api import Api, Apis
from batchpipe.provider.parse import parse_batch
from batchpipe.provider.sdk import warm_up

__all__ = ["Api", "Apis", "parse_batch", "warm_up"]
