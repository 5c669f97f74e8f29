"""Logos: pictures that callers want to see on their own, measured and written anew before anything else is done."""

import functools
import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from compliance.errors import LogoRefused
from compliance.picture import Raw, sniff

MOST_BYTES = 2 * 1024 * 1024
MOST_PIXELS = 2048 * 2048
_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
_SEND = "Send a PNG, JPEG or WebP picture."
#: An opacity (of 255) below which nothing is seen.
_FAINT = 8
#: The longer side of what reviewers see of a logo, in pixels: that of the largest picture.
_REVIEWED = 1344
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True)
class Logo:
    """A logo as RGBA pixels without metadata; `data` is the same as a PNG, `sha256` the hex digest of that."""

    sha256: str
    data: bytes = field(repr=False, compare=False)
    pixels: Image.Image = field(repr=False, compare=False)

    def over(self, colour: str, rotation: int = 0) -> Raw:
        """What it looks like on a ground of one colour, turned by so many degrees clockwise, for those who review it.

        Without an empty margin, and as large as if it filled a picture: a caller may lay it so, and a reviewer that
        knows pictures of one size must find in it what it would find in those.
        """
        pixels = self.pixels
        if rotation % 360:
            pixels = pixels.rotate(-rotation, Image.Resampling.BICUBIC, expand=True)
        seen = pixels.getchannel("A").point([0] * _FAINT + [255] * (256 - _FAINT))
        pixels = pixels.crop(seen.getbbox())
        shown = Image.alpha_composite(Image.new("RGBA", pixels.size, colour), pixels).convert("RGB")
        scale = _REVIEWED / max(shown.size)
        width, height = (max(1, round(edge * scale)) for edge in shown.size)
        shown = shown.resize((width, height), Image.Resampling.BICUBIC)
        data = _png(shown)
        return Raw(data=data, sha256=hashlib.sha256(data).hexdigest(), mime="image/png", pixels=shown)


def read_logo(data: bytes, declared: str = "") -> Logo:
    """A logo from the bytes of a PNG, JPEG or WebP picture; `declared` is the type that the sender gave, if any.

    Raises LogoRefused, and only that, whatever the bytes are. CPU work, for a thread.
    """
    if not data:
        raise LogoRefused("is empty", fix=_SEND)
    if len(data) > MOST_BYTES:
        raise LogoRefused(f"has {len(data)} bytes", fix=f"Send {MOST_BYTES} bytes at most.")
    mime = sniff(data)
    if mime not in _TYPES:
        vector = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<svg", b"<?xml", b"<!DOCTYPE svg"))
        raise LogoRefused("is an SVG" if vector else "is no picture of a type that is taken", fix=_SEND)
    if declared and declared.lower() != mime:
        raise LogoRefused(f"is declared as {declared[:40]}, but is {mime}", fix="Declare the type that it has.")
    return _logo(_read(data, _TYPES[mime]))


def kept_logo(data: bytes, sha256: str) -> Logo:
    """A logo from its own `data`, which may be larger than what a sender may send; `sha256` is what it had.

    Raises LogoRefused when these are other bytes. CPU work, for a thread.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LogoRefused("is not the one that was kept", fix=_SEND)
    return Logo(sha256, data, _read(data, "PNG"))


@functools.cache
def badge() -> Logo:
    """The built-in mark "AI", for operators who want every picture to show it: legible on light and on dark.

    Drawn at four times its size and made smaller, so that no font is needed and its edges are smooth.
    """
    width, height = 1120, 800
    large = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    pen = ImageDraw.Draw(large)
    pen.rounded_rectangle((8, 8, width - 9, height - 9), 180, fill=(16, 18, 24, 200), outline="white", width=44)
    letters = [
        [(250, 610), (430, 190), (510, 190), (690, 610)],
        [(330, 470), (610, 470)],
        [(850, 160), (850, 615)],
    ]
    for line in letters:
        pen.line(line, fill="white", width=80, joint="curve")
    return _logo(large.resize((width // 4, height // 4), Image.Resampling.LANCZOS))


def _read(data: bytes, kind: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Of a size that Pillow finds suspicious we judge ourselves.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                width, height = image.size
                if width < 1 or height < 1:
                    raise LogoRefused("has no pixels", fix=_SEND)
                if width * height > MOST_PIXELS:
                    raise LogoRefused(f"has {width}x{height} pixels", fix=f"Send {MOST_PIXELS} pixels at most.")
                if getattr(image, "n_frames", 1) != 1:
                    raise LogoRefused("is animated", fix="Send a still picture.")
                ImageOps.exif_transpose(image, in_place=True)
                return image.convert("RGBA")
    except Image.DecompressionBombError as exc:
        raise LogoRefused("has too many pixels", fix=f"Send {MOST_PIXELS} pixels at most.") from exc
    except (UnidentifiedImageError, *_DAMAGE) as exc:
        raise LogoRefused("is damaged or cut short", fix=_SEND) from exc


def _logo(pixels: Image.Image) -> Logo:
    bare = Image.new("RGBA", pixels.size)
    bare.paste(pixels)
    data = _png(bare)
    return Logo(hashlib.sha256(data).hexdigest(), data, bare)


def _png(pixels: Image.Image) -> bytes:
    out = io.BytesIO()
    pixels.save(out, "PNG", compress_level=1)
    return out.getvalue()
