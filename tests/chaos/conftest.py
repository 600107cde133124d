"""The fault suite imports its own modules as ``tests.chaos``, as ``python -m tests.chaos`` does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
