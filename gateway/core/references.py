"""Reference pictures that callers send: sniffed, measured, decoded and written anew before anything else is done."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from compliance.sources import carries
from gateway.errors import InvalidField

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 10_000_000
MOST_PIXELS = 40_000_000
#: No model looks at more; what is larger is made smaller, in pixels of the longer side.
LONGEST_SIDE = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenReference:
    """A picture as a caller sent it; role and strength as in `gateway.core.images.Reference`."""

    data: bytes
    role: str
    strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanReference:
    """The same as an upright RGB PNG without any metadata, and the SHA-256 of its bytes.

    ``sent`` is the picture as it came, and ``signed`` says that its content credentials are to be carried along.
    """

    data: bytes
    sha256: str
    role: str
    strength: float
    sent: bytes
    sent_sha256: str
    signed: bool


def clean(index: int, given: GivenReference) -> CleanReference:
    """CPU work, for a thread. Raises `InvalidField` for what is no picture, or too large a one."""
    if len(given.data) > MOST_BYTES:
        raise _invalid(index, "is too large", f"Send {MOST_BYTES // 1_000_000} MB at most.")
    try:
        with warnings.catch_warnings():
            # Of a size that Pillow finds suspicious we judge ourselves.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(given.data), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise _invalid(index, "has too many pixels", f"Send {MOST_PIXELS // 1_000_000} million pixels at most.")
        upright = _upright_rgb(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as exc:
        raise _invalid(index, "is no picture that can be read", f"Send one of: {', '.join(FORMATS)}.") from exc
    upright.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    data = buffer.getvalue()
    return CleanReference(
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        role=given.role,
        strength=given.strength,
        sent=given.data,
        sent_sha256=hashlib.sha256(given.data).hexdigest(),
        signed=carries(given.data),
    )


def _upright_rgb(image: Image.Image) -> Image.Image:
    """As a viewer shows it, on white where it is transparent, in pixels that carry nothing else."""
    upright = ImageOps.exif_transpose(image)
    assert upright is not None
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    bare = Image.new("RGB", upright.size)
    bare.paste(upright.convert("RGB"))
    return bare


def _invalid(index: int, problem: str, fix: str) -> InvalidField:
    return InvalidField("references", f"picture {index} {problem}", fix=fix)
