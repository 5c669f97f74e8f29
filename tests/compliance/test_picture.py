"""Decoding what a worker uploaded."""

import gc
import hashlib
import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from compliance.errors import PictureRefused
from compliance.picture import Blocked, Reviewed, decode, sniff
from compliance.verdict import Verdict
from tests.compliance.samples import bytes_of, decoded, noise, scene

GOOD = bytes_of(scene(32, 24))


@pytest.mark.parametrize(
    ("format", "settings"), [("PNG", {}), ("WEBP", {"lossless": True, "method": 0}), ("PNG", {"optimize": True})]
)
def test_lossless_uploads_give_the_pixels_that_were_drawn(format, settings):
    image = noise()
    raw = decoded(bytes_of(image, format, **settings))
    assert raw.size == (97, 61)
    assert np.array_equal(np.asarray(raw.pixels), np.asarray(image))


def test_a_jpeg_is_taken():
    assert decoded(bytes_of(scene(), "JPEG")).mime == "image/jpeg"


def test_other_bytes_than_the_worker_reported_are_refused():
    with pytest.raises(PictureRefused, match="sha256"):
        decode(GOOD, hashlib.sha256(b"another picture").hexdigest())


@pytest.mark.parametrize("reported", ["", "é", "0" * 63], ids=["empty", "not-hex", "short"])
def test_a_malformed_hash_is_refused(reported):
    with pytest.raises(PictureRefused):
        decode(GOOD, reported)


def test_the_hash_may_be_written_in_capitals():
    assert decode(GOOD, hashlib.sha256(GOOD).hexdigest().upper()).size == (32, 24)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<svg/>", id="svg"),
        pytest.param(bytes_of(scene(), "GIF"), id="gif"),
        pytest.param(bytes_of(scene(), "AVIF"), id="avif"),
        pytest.param(bytes_of(scene(), "WEBP", quality=95), id="lossy-webp"),
        pytest.param(GOOD[: len(GOOD) // 2], id="half-a-png"),
        pytest.param(GOOD[:8], id="only-a-signature"),
        pytest.param(bytes_of(Image.new("I;16", (8, 8))), id="16-bit"),
        pytest.param(
            bytes_of(scene(), "WEBP", lossless=True, save_all=True, append_images=[noise(256, 192)]), id="animated-webp"
        ),
        pytest.param(bytes_of(scene(), save_all=True, append_images=[noise(256, 192)]), id="animated-png"),
    ],
)
def test_what_is_not_a_plain_picture_is_refused(data):
    with pytest.raises(PictureRefused):
        decoded(data)


def bomb(width, height):
    """A PNG whose header promises far more pixels than its few bytes hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("edge", [4097, 12_000, 50_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(edge):
    with pytest.raises(PictureRefused, match=r"pixels|large|decoded"):
        decoded(bomb(edge, edge))


def test_the_limit_of_pixels_is_the_callers_choice():
    with pytest.raises(PictureRefused, match="at most 767"):
        decode(GOOD, hashlib.sha256(GOOD).hexdigest(), max_pixels=32 * 24 - 1)


def test_no_metadata_survives():
    told = PngInfo()
    told.add_text("parameters", "a secret prompt")
    exif = Image.Exif()
    exif[0x9286] = "where I live"
    raw = decoded(bytes_of(scene(), pnginfo=told, exif=exif, dpi=(300, 300), icc_profile=b"profile"))
    assert raw.pixels.info == {}
    assert not dict(raw.pixels.getexif())
    assert b"secret" not in bytes_of(raw.pixels)


def test_a_turned_photograph_is_turned_back():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decoded(bytes_of(scene(40, 20), "JPEG", exif=exif)).size == (20, 40)


def test_transparency_lies_over_white():
    raw = decoded(bytes_of(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))
    assert raw.pixels.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_eight_bit_mode_becomes_rgb(mode):
    assert decoded(bytes_of(scene().convert(mode))).pixels.mode == "RGB"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "WEBP", "AVIF"]), st.data())
def test_no_bytes_raise_anything_but_a_refusal(noise, format, data):
    good = bytes_of(scene(16, 16), format, **({"lossless": True} if format == "WEBP" else {}))
    cut = data.draw(st.integers(0, len(good)))
    mixed = good[:cut] + noise + good[cut + len(noise) :]
    for candidate in (noise, mixed):
        try:
            assert decoded(candidate).pixels.mode == "RGB"
        except PictureRefused:
            pass


def test_the_type_is_read_from_the_bytes():
    kinds = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "AVIF": "avif"}
    assert all(sniff(bytes_of(scene(8, 8), name)) == f"image/{mime}" for name, mime in kinds.items())
    assert sniff(b"GIF89a") is None


def test_an_unsafe_verdict_never_makes_a_reviewed_picture():
    raw = decoded(GOOD)
    with pytest.raises(ValueError, match="Blocked"):
        Reviewed(pixels=raw.pixels, verdict=Verdict(safe=False, ruleset="default", ruleset_version="1"))
    with pytest.raises(ValueError, match="Reviewed"):
        Blocked(raw=raw, verdict=Verdict(safe=True, ruleset="default", ruleset_version="1"))


# The quick decoders


def slowly(data):
    """What Pillow alone makes of the bytes; None when it refuses them."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error):
        return None


BARE = {"png": GOOD, "webp": bytes_of(scene(32, 24), "WEBP", lossless=True, method=0)}


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(BARE)),
    at=st.integers(0, 2000),
    damage=st.binary(min_size=1, max_size=6),
    cut=st.booleans(),
    mended=st.booleans(),
)
def test_damage_is_seen_by_the_quick_decoders_too(kind, at, damage, cut, mended):
    """Bytes that nobody wrote never become pixels: what is taken is what Pillow takes, with the same pixels."""
    good = BARE[kind]
    at %= len(good)
    data = good[:at] + damage + (b"" if cut else good[at + len(damage) :])
    if mended and kind == "png":
        data = with_checksums(data)
    try:
        pixels = np.asarray(decoded(data).pixels)
    except PictureRefused:
        return
    expected = slowly(data)
    assert expected is not None and np.array_equal(pixels, expected)


def with_checksums(data):
    """The PNG with the CRC of each chunk made to fit, so that the damage gets as far as the pixels."""
    out, offset = bytearray(data), 8
    while offset + 12 <= len(out):
        size = int.from_bytes(out[offset : offset + 4], "big")
        end = offset + 8 + size
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[offset + 4 : end]))
        offset = end + 4
    return bytes(out)


def test_too_few_rows_are_no_picture():
    """A decoder that filled only half of its memory would hand out what lay there before."""
    rows = b"".join(b"\0" + bytes([7, 8, 9] * 32) for _ in range(12))

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 32, 24, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(PictureRefused, match="too short"):
        decoded(data)


def test_damage_costs_the_process_nothing():
    """A decoder that loses count of a reference with each error ends the process after some thousands of them."""
    png = bytearray(BARE["png"])
    png[60] ^= 255
    damaged = (bytes(png), with_checksums(bytes(png)), BARE["webp"][:60])
    gc.collect()
    before = sys.getrefcount(None)
    for data in damaged * 1500:
        with pytest.raises(PictureRefused):
            decoded(data)
    gc.collect()
    assert abs(sys.getrefcount(None) - before) < 1000


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_every_mode_gives_the_pixels_that_pillow_sees(mode, format):
    image = scene(33, 17).convert(mode)
    data = bytes_of(image, format, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(np.asarray(decoded(data).pixels), np.asarray(image.convert("RGB")))


def test_a_bare_picture_with_rows_in_seven_passes_is_read_like_any_other():
    interlaced = bytearray(GOOD)
    interlaced[28] = 1  # the pixels then come in another order, of which Pillow and we think the same
    data = with_checksums(bytes(interlaced))
    expected = slowly(data)
    if expected is None:
        with pytest.raises(PictureRefused):
            decoded(data)
    else:
        assert np.array_equal(np.asarray(decoded(data).pixels), expected)
