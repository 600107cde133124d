"""Images that a column of a table names: sent as they are if they are URLs, else read and sent within the request."""

from __future__ import annotations

import base64
from collections.abc import Callable

from batchpipe.errors import InvalidInput, StorageTrouble
from batchpipe.storage import InputRules, open_input

#: Bytes of one image: providers take about 20 MB, and base64 adds a third.
MAX_IMAGE = 20_000_000
#: How the files begin that providers take.
_KINDS = (
    (b"\x89PNG\r\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


def image_reader(rules: InputRules) -> Callable[[str], str]:
    """Gives an image as a URL. ``rules`` say which files may be read."""

    def read(source: str) -> str:
        if source.startswith(("http://", "https://", "data:image/")):
            return source
        try:
            with open_input(source, rules) as file:
                data = file.read(MAX_IMAGE + 1)
        except StorageTrouble as error:
            if error.code != "input_missing":
                raise
            raise InvalidInput(f"{source}: no such image; give a path, a URL, or a data: URL", field="image") from None
        if len(data) > MAX_IMAGE:
            raise InvalidInput(f"{source}: is larger than {MAX_IMAGE:,} bytes", field="image")
        return f"data:{_kind(data, source)};base64,{base64.b64encode(data).decode()}"

    return read


def _kind(data: bytes, source: str) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    for beginning, kind in _KINDS:
        if data.startswith(beginning):
            return kind
    raise InvalidInput(f"{source}: is no PNG, JPEG, GIF or WebP image", field="image")
