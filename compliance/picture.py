"""The stages of a picture on its way out, one type each, so that the wrong order does not type-check.

    bytes → Raw → Reviewed → Marked → Encoded → Signed
                ↘ Blocked

Pixels are Pillow images, always mode RGB, 8 bits, sRGB, without any metadata. A stage never changes the pixels of the
stage before it: each step that edits works on a copy.
"""

import hashlib
import hmac
import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import Literal

import imagecodecs
from PIL import Image, ImageOps, UnidentifiedImageError

from compliance.errors import PictureRefused
from compliance.verdict import Verdict

# The largest picture that we ever ask for has 1.05 million pixels; four times the edge leaves room for upscalers.
MAX_PIXELS = 4096 * 4096
MAX_BYTES = 64 * 1024 * 1024
# Modes whose conversion to RGB keeps what one sees. 16-bit and float greys do not: Pillow clips them.
_MODES = frozenset({"RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1"})
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, struct.error, zlib.error)

Mime = Literal["image/jpeg", "image/png", "image/webp", "image/avif"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A picture as the worker drew it: the bytes that it uploaded, their hash, and their pixels."""

    data: bytes = field(repr=False)
    sha256: str
    mime: Mime
    pixels: Image.Image = field(repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """A picture with a safe verdict. An unsafe one can't be built."""

    pixels: Image.Image = field(repr=False, compare=False)
    verdict: Verdict

    def __post_init__(self) -> None:
        if not self.verdict.safe:
            raise ValueError("a picture with an unsafe verdict is Blocked, not Reviewed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A picture that may not leave. Nothing takes this type but a quarantine."""

    raw: Raw
    verdict: Verdict

    def __post_init__(self) -> None:
        if self.verdict.safe:
            raise ValueError("a picture with a safe verdict is Reviewed, not Blocked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One thing that was done to the picture after it was drawn: a C2PA action name and a sentence for people."""

    action: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftBinding:
    """A way from the pixels alone to the manifest, for the day when the metadata is gone (C2PA 2.2, "Soft bindings").

    `alg` names the algorithm, `value` is what it finds in these pixels.
    """

    alg: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A picture with every mark that it must carry, which may be none. Edits and bindings end up in its manifest."""

    pixels: Image.Image = field(repr=False, compare=False)
    edits: tuple[Edit, ...] = ()
    bindings: tuple[SoftBinding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A picture in its delivery format, not signed yet.

    `quality` and `lossless` are the effective values: `quality` is None where it has no meaning.
    """

    data: bytes = field(repr=False)
    mime: Mime
    extension: str
    width: int
    height: int
    quality: int | None
    lossless: bool
    edits: tuple[Edit, ...] = ()
    bindings: tuple[SoftBinding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A picture that may leave: its bytes carry a C2PA manifest. Any further change breaks the signature.

    `sha256` is lowercase hex over `data`; `manifest` is the C2PA manifest store (JUMBF) alone, `label` the manifest's
    URN. `stamped` says whether the signature has a time stamp, and None where none was asked for.
    """

    data: bytes = field(repr=False)
    mime: Mime
    extension: str
    width: int
    height: int
    quality: int | None
    lossless: bool
    sha256: str
    manifest: bytes = field(repr=False)
    label: str
    stamped: bool | None = None


def sniff(data: bytes) -> Mime | None:
    """The type that the first bytes show, or None when it is none of the four that we know. Names and headers lie."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp" and b"avif" in data[8 : 8 + 56]:
        return "image/avif"
    return None


def decode(data: bytes, sha256: str, *, max_pixels: int = MAX_PIXELS) -> Raw:
    """Decodes what a worker uploaded: PNG, lossless WebP or JPEG, into RGB pixels without metadata.

    `sha256` is the lowercase hex that the worker reported; other bytes than those are not the picture that was drawn.
    Transparency is laid over white. Raises PictureRefused for everything else, and only that, whatever the bytes are.
    """
    actual = hashlib.sha256(data).hexdigest()
    if not hmac.compare_digest(actual.encode(), sha256.lower().encode()):
        raise PictureRefused(f"The picture's sha256 is {actual}, but {sha256!r} was reported.")
    if len(data) > MAX_BYTES:
        raise PictureRefused(f"The picture has {len(data)} bytes; at most {MAX_BYTES} are taken.")
    mime = sniff(data)
    if mime is None or mime == "image/avif":
        raise PictureRefused("The picture is neither PNG nor lossless WebP nor JPEG.")
    if mime == "image/webp" and not _is_lossless_webp(data):
        raise PictureRefused("The picture is a lossy WebP; a worker uploads PNG, lossless WebP or JPEG.")
    return Raw(data=data, sha256=actual, mime=mime, pixels=_pixels(data, mime, max_pixels))


def pixels_of(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB pixels of a JPEG, PNG, WebP or AVIF of anybody's, for those who only look. Raises PictureRefused."""
    mime = sniff(data)
    if mime is None:
        raise PictureRefused("This is not a JPEG, PNG, WebP or AVIF picture.")
    return _pixels(data, mime, max_pixels)


def _pixels(data: bytes, mime: Mime, max_pixels: int) -> Image.Image:
    """RGB pixels; the size is checked from the header, before a single pixel is unpacked."""
    try:
        with Image.open(io.BytesIO(data), formats=[mime.removeprefix("image/").upper()]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise PictureRefused(f"The picture has {width}x{height} pixels; at most {max_pixels} are taken.")
            if getattr(image, "n_frames", 1) != 1:
                raise PictureRefused("The picture is animated.")
            if image.mode not in _MODES:
                raise PictureRefused(f"The picture has mode {image.mode}; 8 bits per channel are taken.")
            if (pixels := _quickly(data, mime, image.size)) is not None:
                return pixels
            ImageOps.exif_transpose(image, in_place=True)
            return _plain_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise PictureRefused(f"The picture is too large: {exc}.") from exc
    except UnidentifiedImageError as exc:
        # Pillow names the object that it read from, with its address in memory.
        raise PictureRefused("The picture can't be decoded: its header is damaged.") from exc
    except _DAMAGE as exc:
        raise PictureRefused(f"The picture can't be decoded: {exc}.") from exc


def _quickly(data: bytes, mime: Mime, size: tuple[int, int]) -> Image.Image | None:
    """The pixels of a file that has nothing but them, faster than Pillow; None for every other file.

    To be called after the checks of the header. Raises PictureRefused for damage: libspng sees missing rows, which
    Pillow fills with black.
    """
    try:
        if mime == "image/png" and _is_bare_png(data):
            pixels = imagecodecs.spng_decode(data)  # its png_decode drops a reference to None with each error
        elif mime == "image/webp" and _is_bare_webp(data):
            pixels = imagecodecs.webp_decode(data, hasalpha=False)
        else:
            return None
    except (RuntimeError, ValueError) as exc:
        raise PictureRefused(f"The picture can't be decoded: {exc}.") from exc
    if pixels.shape != (size[1], size[0], 3) or pixels.dtype != "uint8":
        raise PictureRefused("The picture can't be decoded: its header is damaged.")
    return Image.fromarray(pixels)


def _is_bare_png(data: bytes) -> bool:
    """True for 8-bit RGB, not interlaced, in the three critical chunks alone (PNG, "Chunk layout")."""
    offset, names = 8, set()
    while offset + 12 <= len(data) and b"IEND" not in names:
        names.add(data[offset + 4 : offset + 8])
        offset += 12 + int.from_bytes(data[offset : offset + 4], "big")
    return names == {b"IHDR", b"IDAT", b"IEND"} and offset <= len(data) and data[24:29] == b"\x08\x02\0\0\0"


def _is_bare_webp(data: bytes) -> bool:
    """True for the simple lossless file without alpha (RFC 9649, 2.6 and 3.4): bit 28 of its header is the hint."""
    return data[12:16] == b"VP8L" and len(data) >= 25 and not data[24] & 0x10


def _plain_rgb(image: Image.Image) -> Image.Image:
    """A copy with nothing but pixels; transparency over white."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    rgb = image.copy() if image.mode == "RGB" else image.convert("RGB")
    rgb.info = {}
    return rgb


def _is_lossless_webp(data: bytes) -> bool:
    """True when the pixels are in a VP8L chunk (RFC 9649). An animation has them in ANMF chunks and is not taken."""
    offset = 12
    while offset + 8 <= len(data):
        chunk = data[offset : offset + 4]
        if chunk in (b"VP8L", b"VP8 ", b"ANMF"):
            return chunk == b"VP8L"
        offset += 8 + (size := int.from_bytes(data[offset + 4 : offset + 8], "little")) + (size & 1)
    return False
