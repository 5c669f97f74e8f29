"""The ways back from the pixels to the manifest: an id laid into them, and a code computed from them."""

import base64
import binascii
from dataclasses import replace

from compliance import fingerprint
from compliance.picture import Marked, SoftBinding
from compliance.pixelmark import ALGORITHM, PixelMark


def bound(marked: Marked, pixel_mark: PixelMark | None, payload: int) -> Marked:
    """The picture with the id in its pixels, where there is a mark and room for it, and with both soft bindings.

    The last that happens to the pixels: any later change would make the code another.
    """
    bindings: list[SoftBinding] = []
    if pixel_mark is not None and pixel_mark.carries(marked.pixels.size):
        marked = replace(marked, pixels=pixel_mark.embed(marked.pixels, payload))
        bindings.append(SoftBinding(alg=ALGORITHM, value=mark_value(payload)))
    return replace(marked, bindings=(*bindings, _code(marked)))


def coded(marked: Marked) -> Marked:
    """A rendition (a thumbnail) with the code of its own pixels: the id is too fine to outlive the scaling."""
    return replace(marked, bindings=(_code(marked),))


def code_in(marked: Marked) -> int:
    """The image code among its bindings."""
    (code,) = [fingerprint.code_of(each.value) for each in marked.bindings if each.alg == fingerprint.ISCC]
    assert code is not None
    return code


def mark_in(marked: Marked) -> int | None:
    """The id in its pixels, None when they carry none."""
    return next((mark_of(each.value) for each in marked.bindings if each.alg == ALGORITHM), None)


def mark_value(payload: int) -> str:
    """An id as the value of a soft binding."""
    return base64.b64encode(payload.to_bytes(6, "big")).decode()


def mark_of(value: str) -> int | None:
    """The id of a soft binding's value, None when it holds none."""
    try:
        data = base64.b64decode(value.strip().replace("-", "+").replace("_", "/").replace(" ", "+"), validate=True)
    except (ValueError, binascii.Error):
        return None
    return int.from_bytes(data, "big") if len(data) == 6 else None


def _code(marked: Marked) -> SoftBinding:
    code = fingerprint.image_code(marked.pixels)
    return SoftBinding(alg=fingerprint.ISCC, value=fingerprint.binding_value(code))
