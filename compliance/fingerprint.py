"""Two ways to recognise a picture: exactly by its bytes, and roughly by what one sees.

The second is the image code of the International Standard Content Code (ISO 24138:2024), 64 bits of it, which C2PA
lists as the soft binding `io.iscc.v0`. Two pictures of which few bits differ may be the same; that proves nothing.
"""

import base64
import binascii
import functools
import hashlib
import math

import numpy as np
from PIL import Image

#: Its name in C2PA's list of soft binding algorithms.
ISCC = "io.iscc.v0"
# Content code, image, version 0, and how many times 32 bits after the first 32: 64, 128, 256.
_HEADERS = {bytes([0x21, 0x01]): 8, bytes([0x21, 0x03]): 16, bytes([0x21, 0x07]): 32}


def fingerprint(data: bytes) -> str:
    """Lowercase hex sha256 of the delivered bytes: 64 characters."""
    return hashlib.sha256(data).hexdigest()


def image_code(pixels: Image.Image) -> int:
    """The image code of an RGB picture, 64 bits: the signs of the 8x8 lowest DCT frequencies around their median."""
    small = pixels.convert("L").resize((32, 32), Image.Resampling.BICUBIC)
    basis = _cosines()
    low = (basis @ np.asarray(small, dtype=np.float64) @ basis.T).ravel()
    # A picture of one colour has no frequencies but the first; what rounding leaves of the others is nothing.
    low[np.abs(low) < 1e-6] = 0.0
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def iscc(code: int) -> str:
    """The code as ISO 24138 writes it: `ISCC:EEA…`."""
    return "ISCC:" + base64.b32encode(_unit(code)).decode().rstrip("=")


def binding_value(code: int) -> str:
    """The code as the value of a soft binding: Base64 of a sequence of ISCC units (IEP-0020), here of one."""
    return base64.b64encode(_unit(code)).decode()


def code_of(value: str) -> int | None:
    """The image code of a soft binding's value, or of an `ISCC:` text; None when it holds none.

    Of a code of more than 64 bits these are the first.
    """
    try:
        if value.upper().startswith("ISCC:"):
            text = value[5:].strip().upper()
            units = base64.b32decode(text + "=" * (-len(text) % 8))
        else:
            text = value.strip().replace("-", "+").replace("_", "/").replace(" ", "+").rstrip("=")
            units = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        return None
    while len(units) >= 2:
        length = 4 * ((units[1] & 0x0F) + 1)
        if _HEADERS.get(units[:2]) == length and len(units) >= 2 + length:
            return int.from_bytes(units[2:10], "big")
        units = units[2 + length :]
    return None


def _unit(code: int) -> bytes:
    return bytes([0x21, 0x01]) + code.to_bytes(8, "big")


@functools.cache
def _cosines() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The first 8 rows of the 32-point DCT-II, shape 8x32."""
    rows = [[math.cos(math.pi * k * (2 * n + 1) / 64) for n in range(32)] for k in range(8)]
    return np.array(rows, dtype=np.float64)
