"""Which pictures from outside bring content credentials that our own may carry along."""

import json

import c2pa

from compliance.picture import sniff
from compliance.reader import new_context, read_in_detail

# Of the store as JSON, which is somewhat longer than the store. What is larger is known by its hash alone.
MAX_STORE = 256 * 1024
_PICTURES = ("c2pa.thumbnail", "c2pa.icon", "c2pa.embedded-data", "c2pa.databoxes", "c2pa.data")


def carries(data: bytes) -> bool:
    """Whether the file has a manifest store that holds, whoever signed it, and that is fit to go out in our pictures.

    One with pictures in it (thumbnails, icons, embedded files) is not: nobody has reviewed them. Never raises on
    account of `data`, and never opens a connection.
    """
    mime = sniff(data)
    if mime is None:
        return False
    try:
        store = read_in_detail(data, mime, new_context(b""))
    except (c2pa.C2paError, json.JSONDecodeError, UnicodeError):
        return False
    if store.get("validation_state") not in ("Valid", "Trusted"):
        return False
    manifests = store.get("manifests")
    if not isinstance(manifests, dict) or len(json.dumps(store)) > MAX_STORE:
        return False
    return not any(name.startswith(_PICTURES) for manifest in manifests.values() for name in _names(manifest))


def _names(manifest: object) -> list[str]:
    """Labels of everything that a manifest holds."""
    if not isinstance(manifest, dict):
        return []
    return [str(name) for part in ("assertion_store", "databoxes") for name in _labels(manifest, part)]


def _labels(manifest: dict[str, object], part: str) -> list[str]:
    held = manifest.get(part)
    labels = [str(label) for label in held] if isinstance(held, dict) else []
    # A box of data has no label that says what it is.
    return [f"c2pa.databoxes/{label}" for label in labels] if part == "databoxes" else labels
