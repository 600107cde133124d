"""Known names of OpenAI's models, to tell a typing error from a name of another provider."""

from __future__ import annotations

import re
from difflib import get_close_matches

#: Without dates; as of November 2026.
_GPT = (
    *("3.5-turbo", "3.5-turbo-16k", "3.5-turbo-instruct", "4", "4-32k", "4-turbo", "4-turbo-preview"),
    *("4-vision-preview", "4.1", "4.1-mini", "4.1-nano", "4.5-preview", "4o", "4o-mini", "4o-audio-preview"),
    *("4o-mini-audio-preview", "4o-search-preview", "4o-mini-search-preview", "4o-transcribe", "4o-mini-transcribe"),
    *("4o-mini-tts", "5", "5-chat-latest", "5-codex", "5-image", "5-image-mini", "5-mini", "5-nano", "5-pro"),
    *("5-search-api", "5.1", "5.1-chat-latest", "5.1-codex", "5.1-codex-mini", "5.2", "5.2-pro", "5.3", "5.3-codex"),
    *("5.4", "5.4-image-2", "5.4-mini", "5.4-nano", "5.4-pro", "5.5", "5.5-cyber", "5.5-pro", "5.6-cyber", "5.6-luna"),
    *("5.6-sol", "5.6-terra", "6-astra", "6-cyber", "6-luna", "6-rosalind", "6-sol", "6.1-sol", "6.1-terra", "audio"),
    *("audio-mini", "chat-latest", "image-1", "image-1-mini", "image-1.5", "image-2", "image-2.5-flare"),
    *("image-2.5-sunburst", "oss-120b", "oss-20b", "oss-safeguard-20b", "transcribe"),
)
NAMES = frozenset(
    {
        *(f"gpt-{name}" for name in _GPT),
        *("o1", "o1-mini", "o1-preview", "o1-pro", "o3", "o3-mini", "o3-pro", "o3-deep-research", "o4-mini"),
        *("o4-mini-deep-research", "codex-mini-latest", "computer-use-preview", "chatgpt-4o-latest"),
        *("text-embedding-3-large", "text-embedding-3-small", "text-embedding-ada-002"),
        *("omni-moderation-latest", "text-moderation-latest", "text-moderation-stable", "omni-moderation"),
        *(
            "babbage-002",
            "davinci-002",
            "dall-e-2",
            "dall-e-3",
            "sora-2",
            "sora-2-pro",
            "tts-1",
            "tts-1-hd",
            "whisper-1",
        ),
    }
)
#: Names that begin like this are OpenAI's, so an unknown one is a typing error.
_FAMILIES = ("gpt-", "text-embedding-", "omni-moderation", "o1-", "o3-", "o4-", "dall-e-")
_DATE = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})$")
_CLOSE = 0.85


def is_slip(model: str) -> bool:
    """Whether a name looks like one of OpenAI's but is not. Fine-tuned models are accepted."""
    base = _DATE.sub("", model[:200])
    if base in NAMES or base.startswith("ft:"):
        return False
    return base.startswith(_FAMILIES) or bool(get_close_matches(base, NAMES, n=1, cutoff=_CLOSE))


def nearest(model: str) -> str | None:
    """The known name that is most similar to this one."""
    found = get_close_matches(_DATE.sub("", model[:200]), NAMES, n=1)
    return found[0] if found else None
