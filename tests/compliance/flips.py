"""Where the bytes of a signed file may be flipped so that every reader must see it."""

from collections.abc import Iterator

from compliance.picture import Signed


def flipped(data: bytes, at: int) -> bytes:
    """The file with one bit of one byte changed, as `path@offset` of c2pa_ts/verify.mjs does it."""
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


def covered(picture: Signed) -> dict[str, list[range]]:
    """Offsets that the signature covers: of the picture, of its manifest, and of manifests that a reference brought.

    Left out is what says nothing: labels and lengths of boxes, padding, and the frame of the store in its container.
    """
    start = picture.data.index(picture.manifest)
    end = start + len(picture.manifest)
    # Of AVIF the first box, ftyp, is not hashed either (C2PA 2.2, "BMFF-based hash").
    first = int.from_bytes(picture.data[:4], "big") if picture.mime == "image/avif" else 0
    found: dict[str, list[range]] = {"picture": [range(first, start - 60), range(end + 8, len(picture.data))]}
    for label, a, b in _signed(picture.manifest, 0, len(picture.manifest), ()):
        found.setdefault("manifest" if label == picture.label else "brought", []).append(range(start + a, start + b))
    return {part: [region for region in regions if len(region) > 0] for part, regions in found.items()}


def _signed(store: bytes, start: int, end: int, path: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """What is hashed or signed of a JUMBF store (ISO 19566-5): assertions, claims and signatures, each with the label
    of its manifest."""
    while start < end:
        size = int.from_bytes(store[start : start + 4], "big")
        if store[start + 4 : start + 8] == b"jumb":
            # The description box: length, type, 16 bytes of a UUID, one of toggles, the label.
            label = store[start + 33 : store.index(b"\0", start + 33)].decode()
            if path[2:] == ("c2pa.assertions",):
                yield path[1], start + 8, start + size
            else:
                inner = start + 8 + int.from_bytes(store[start + 8 : start + 12], "big")
                yield from _signed(store, inner, start + size, (*path, label))
        elif path[2:] == ("c2pa.claim.v2",):
            yield path[1], start + 8, start + size
        elif path[2:] == ("c2pa.signature",):
            # COSE_Sign1: the protected header, then padding, and the 64 bytes of the signature at the end.
            yield path[1], start + 8, store.index(b"cpad", start)
            yield path[1], start + size - 64, start + size
        start += size
