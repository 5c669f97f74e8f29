"""Keys: what may name a stored file. ``folder/…/name.ext`` in lowercase, and never a way out of the folder."""

from __future__ import annotations

import re

#: Folders whose files may be reached through a signed address, and that only `Storage.publish` writes to: pictures for
#: their owners, and what a review blocked for those who may see it.
PUBLISHED = "out"
UNSAFE = "unsafe"
SIGNED = frozenset({PUBLISHED, UNSAFE})
#: The folder that workers upload to.
RAW = "raw"

_MOST = 512
_KEY = re.compile(r"[a-z0-9_-]{1,64}(?:/[a-z0-9_-][a-z0-9_.-]{0,127})+")

MIME_TYPES = {
    "avif": "image/avif",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "png": "image/png",
    "webp": "image/webp",
}


def is_key(text: str) -> bool:
    """Whether this can name a file: two segments at least, none of which is hidden or leads upwards."""
    return len(text) <= _MOST and _KEY.fullmatch(text) is not None and ".." not in text


def checked(key: str) -> str:
    """The key itself. Keys are made by our own code, so a bad one is a mistake there: `ValueError`."""
    if not is_key(key):
        raise ValueError(f"not a storage key: {key!r}")
    return key


def folder_of(key: str) -> str:
    """The first segment, which decides what may be done with the file."""
    return key.partition("/")[0]


def mime_of(key: str) -> str:
    """By the extension: what lies under a key was named by us, never by a caller."""
    return MIME_TYPES.get(key.rpartition(".")[2], "application/octet-stream")
