"""Formats, their effective settings, and thumbnails."""

import io

import numpy as np
import pytest
from PIL import Image

from compliance.encode import THUMBNAIL_OPTIONS, EncodeOptions, encode, thumbnail
from compliance.errors import EncodingFailed
from compliance.fingerprint import fingerprint, image_code
from compliance.picture import Edit, Marked, sniff
from tests.compliance.samples import FORMATS, noise, pixels_of, scene

# What was asked for, and what it comes to (quality, lossless).
EFFECTIVE = [
    ("jpeg", 80, False, (80, False)),
    ("jpeg", 80, True, (80, False)),
    ("png", 80, False, (None, True)),
    ("png", 80, True, (None, True)),
    ("webp", 80, False, (80, False)),
    ("webp", 80, True, (None, True)),
    ("avif", 80, False, (80, False)),
    ("avif", 80, True, (None, True)),
]


@pytest.mark.parametrize(("format", "quality", "lossless", "effective"), EFFECTIVE)
def test_settings_without_meaning_are_ignored_and_the_effective_ones_told(format, quality, lossless, effective):
    encoded = encode(Marked(pixels=scene(64, 48)), EncodeOptions(format=format, quality=quality, lossless=lossless))
    assert (encoded.quality, encoded.lossless) == effective
    assert (encoded.width, encoded.height) == (64, 48)
    assert sniff(encoded.data) == encoded.mime


@pytest.mark.parametrize("format", ["png", "webp", "avif"])
@pytest.mark.parametrize(
    "image",
    [noise(), scene(), noise(1, 1), noise(3, 200), noise(200, 1), noise(24, 12).resize((192, 96), 0)],
    ids=["odd", "scene", "dot", "tall", "row", "drawing"],
)
def test_lossless_is_exact(format, image):
    encoded = encode(Marked(pixels=image), EncodeOptions(format=format, lossless=True))
    assert encoded.lossless
    assert np.array_equal(pixels_of(encoded.data), np.asarray(image))


@pytest.mark.parametrize("format", ["jpeg", "webp", "avif"])
def test_less_quality_means_fewer_bytes_at_both_ends_of_the_scale(format):
    sizes = [
        len(encode(Marked(pixels=scene()), EncodeOptions(format=format, quality=q)).data) for q in (1, 50, 95, 100)
    ]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("format", FORMATS)
def test_a_lossy_picture_still_looks_like_the_original(format):
    data = encode(Marked(pixels=scene()), EncodeOptions(format=format)).data
    assert np.abs(pixels_of(data).astype(int) - np.asarray(scene()).astype(int)).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (97, 61)], ids=str)
@pytest.mark.parametrize("quality", [1, 95, 99, 100])
def test_an_avif_is_what_pillow_would_have_written_whatever_its_size(size, quality):
    """Half as many colours as pixels have odd edges."""
    image, pillow = noise(*size), io.BytesIO()
    image.save(pillow, "AVIF", quality=quality, speed=9)
    ours = pixels_of(encode(Marked(pixels=image), EncodeOptions(format="avif", quality=quality)).data)
    assert ours.shape == (size[1], size[0], 3)
    off = [np.abs(pixels.astype(int) - np.asarray(image)).mean() for pixels in (ours, pixels_of(pillow.getvalue()))]
    assert abs(off[0] - off[1]) < 0.5


@pytest.mark.parametrize("lossless", [False, True])
def test_an_avif_says_that_its_colours_are_srgb(lossless):
    data = encode(Marked(pixels=scene()), EncodeOptions(format="avif", lossless=lossless)).data
    assert data.count(b"colrnclx\x00\x01\x00\x0d") == 1


def test_the_extension_of_a_jpeg_is_jpg():
    assert encode(Marked(pixels=scene()), EncodeOptions()).extension == "jpg"


@pytest.mark.parametrize("options", [{"format": "gif"}, {"quality": 0}, {"quality": 101}])
def test_bad_options_are_not_accepted(options):
    with pytest.raises(ValueError, match=r"format|quality"):
        EncodeOptions(**options)


def test_a_codec_that_gives_up_is_our_error():
    with pytest.raises(EncodingFailed, match="jpeg"):
        encode(Marked(pixels=Image.new("RGB", (70_000, 1))), EncodeOptions())


@pytest.mark.parametrize(
    ("size", "edge", "expected"), [((1344, 768), 320, 320), ((768, 1344), 256, 256), ((80, 60), 320, 80)]
)
def test_a_thumbnail_fits_and_is_never_enlarged(size, edge, expected):
    marked = Marked(pixels=scene(*size), edits=(Edit(action="c2pa.edited", description="a mark"),))
    small = thumbnail(marked, edge)
    assert max(small.pixels.size) == expected
    assert marked.pixels.size == size
    assert [edit.action for edit in small.edits] == ["c2pa.edited", "c2pa.resized"]
    assert encode(small, THUMBNAIL_OPTIONS).mime == "image/jpeg"


def test_the_fingerprint_is_the_sha256_of_the_bytes():
    assert fingerprint(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_image_code_survives_recompression_and_tells_pictures_apart():
    def apart(a, b):
        return (image_code(a) ^ image_code(b)).bit_count()

    recompressed = Image.fromarray(pixels_of(encode(Marked(pixels=scene()), EncodeOptions(quality=60)).data))
    assert apart(scene(), recompressed) <= 4
    assert apart(scene(), scene().resize((128, 96))) <= 6
    assert apart(scene(), scene(seed=9)) > 12
