"""The one place that opens a C2PA reader: trust settings, and no network whatever a manifest asks for."""

import io
import json
from typing import Any

import c2pa

from compliance.credentials import certificates

# Purposes that a signing certificate may have. Setting any replaces the SDK's own list, so its defaults are repeated:
# e-mail protection, document signing, time stamping, OCSP signing; and the one of C2PA itself.
_PURPOSES = "\n".join(
    ["1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.5.5.7.3.8", "1.3.6.1.5.5.7.3.9", "1.3.6.1.4.1.62558.2.1"]
)


def new_context(anchors_pem: bytes, **more: Any) -> c2pa.Context:
    """A context that trusts `anchors_pem` (PEM roots, or nothing) and never opens a connection.

    It dies at a fork: make it where it is used. Raises BadCredentials when the anchors do not read, since the SDK may
    take rubbish for an empty list.
    """
    trust = {"trust_config": _PURPOSES}
    if anchors_pem.strip():
        certificates(anchors_pem, "The list of anchors")
        trust["user_anchors"] = anchors_pem.decode("ascii", "replace")
    settings: dict[str, Any] = {
        "trust": trust,
        "verify": {
            "verify_after_sign": True,
            "verify_trust": True,
            "ocsp_fetch": False,
            "remote_manifest_fetch": False,
        },
    }
    return c2pa.Context.from_dict(settings | more)


def read(data: bytes, mime: str, context: c2pa.Context) -> dict[str, Any]:
    """The manifest store as the reader's JSON. Raises c2pa.C2paError, and ManifestNotFound among it."""
    with c2pa.Reader(mime, io.BytesIO(data), context=context) as reader:
        return dict(json.loads(reader.json()))


def active_manifest(store: bytes) -> bytes:
    """The manifest store with its active manifest alone, which is the last (C2PA 2.2, "Manifest store").

    A store is a JUMBF superbox: a description, then a superbox for each manifest. ValueError when it is none.
    """
    boxes, at = [], 8
    while at < len(store):
        size = int.from_bytes(store[at : at + 4], "big")
        if size < 8 or at + size > len(store):
            raise ValueError("not a manifest store")
        boxes.append(store[at : at + size])
        at += size
    if len(boxes) < 2:
        raise ValueError("not a manifest store")
    content = boxes[0] + boxes[-1]
    return (8 + len(content)).to_bytes(4, "big") + store[4:8] + content


def read_in_detail(data: bytes, mime: str, context: c2pa.Context) -> dict[str, Any]:
    """As `read`, with every assertion of every manifest by its label."""
    with c2pa.Reader(mime, io.BytesIO(data), context=context) as reader:
        return dict(json.loads(reader.detailed_json()))
