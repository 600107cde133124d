"""The only place that touches files: local paths and fsspec URLs.

A file under a name is always complete: it is written elsewhere first and gets its name at the end.
Errors of other libraries become ours: what may pass is ``StorageTrouble``, the user's mistakes are ``InvalidInput``.
"""

from __future__ import annotations

from batchpipe.storage.atomic import Draft
from batchpipe.storage.backends import Checkpoint, local_path, read_lines
from batchpipe.storage.duplicates import DuplicateFinder
from batchpipe.storage.folder import Folder
from batchpipe.storage.globs import expanded, is_pattern
from batchpipe.storage.inputs import allowed, check_allowed, input_info, open_input
from batchpipe.storage.lines import LineFile
from batchpipe.storage.names import folded_place, place_name, real_place
from batchpipe.storage.partial import Partial, forget, partial, prune
from batchpipe.storage.rules import ANY_INPUT, InputRules
from batchpipe.storage.scratch import Scratch, temporary
from batchpipe.storage.spill import Spill
from batchpipe.storage.uploads import chunks_of, stored_at

__all__ = [
    "ANY_INPUT",
    "Checkpoint",
    "Draft",
    "DuplicateFinder",
    "Folder",
    "InputRules",
    "LineFile",
    "Partial",
    "Scratch",
    "Spill",
    "allowed",
    "check_allowed",
    "chunks_of",
    "expanded",
    "folded_place",
    "forget",
    "input_info",
    "is_pattern",
    "local_path",
    "open_input",
    "partial",
    "place_name",
    "prune",
    "read_lines",
    "real_place",
    "stored_at",
    "temporary",
]
