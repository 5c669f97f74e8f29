"""A mark in the pixels is read back from what becomes of a picture, is not seen, and is not found where there is none.

The pictures are the built-in model's own, one of each size, kept at the size of their art (an art pixel is 16 pixels).
"""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bench.pixelmark import attacks, cropped, picture, psnr, recoded, resized, ssim
from compliance.pixelmark import ALGORITHM, SIZES, PixelMark, code
from compliance.pixelmark.tile import Patterns
from gateway.dialects.imgen.request import SIZES as PRODUCT_SIZES
from handler.pixelart import upscale
from tests.compliance.samples import scene

ART = Path(__file__).with_name("pictures")
MARK = PixelMark(b"a secret of the tests")
PAYLOAD = 0xA1B2C3D4E5F6
payloads = st.integers(0, 2**48 - 1)
names = [f"{width}x{height}" for width, height in SIZES]


def drawn(name):
    return upscale(Image.open(ART / f"{name}.png").convert("RGB"), 16)


@pytest.fixture(scope="module")
def marked():
    return {name: MARK.embed(drawn(name), PAYLOAD) for name in names}


def chance(seed, width, height):
    """Every pixel by chance."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_its_sizes_are_the_product_s():
    assert set(SIZES) == set(PRODUCT_SIZES)


def test_the_algorithm_has_a_name_that_is_ours_for_ever():
    assert ALGORITHM == "com.efficientstack.imgen.pixelmark.1"


@pytest.mark.parametrize("name", names)
def test_the_id_is_read_back_at_every_size(marked, name):
    found = MARK.detect(marked[name])
    assert (found.payload, found.mirrored, found.scale) == (PAYLOAD, False, 1.0)
    assert found.score > 20


@pytest.mark.parametrize("attack", attacks())
@pytest.mark.parametrize("name", ["1024x1024", "1344x768", "896x1152"])
def test_the_id_is_read_back_after(marked, attack, name):
    found = MARK.detect(attacks()[attack](marked[name]))
    assert found is not None
    assert (found.payload, found.mirrored) == (PAYLOAD, attack == "mirror")


def test_the_scale_of_a_copy_is_told(marked):
    assert MARK.detect(resized(marked["1344x768"], 512)).scale == pytest.approx(512 / 1344, abs=1e-3)


def test_a_small_mirrored_copy_with_a_border_is_read(marked):
    framed = ImageOps.mirror(ImageOps.expand(resized(marked["1216x832"], 608), 3, "white"))
    assert MARK.detect(framed).payload == PAYLOAD


def test_what_was_cropped_and_then_resized_takes_a_deep_search(marked):
    part = cropped(marked["1152x896"], 0.2)
    copy = recoded(resized(part, round(0.8 * part.width)), "JPEG", 80)
    assert MARK.detect(copy) is None
    found = MARK.detect(copy, deep=True)
    assert found.payload == PAYLOAD
    assert found.scale == pytest.approx(0.8, abs=0.02)


def test_another_secret_finds_nothing(marked):
    other = PixelMark(b"a secret of the tests!")
    assert [other.detect(marked[name]) for name in names] == [None] * len(names)


@pytest.mark.parametrize("attack", ["none", "JPEG 75", "512 px, JPEG 75", "mirror"])
def test_an_unmarked_picture_has_no_mark(attack):
    assert [MARK.detect(attacks()[attack](drawn(name))) for name in names] == [None] * len(names)


@pytest.mark.parametrize("size", [(1, 1), (40, 900), (63, 64), (64, 64), (300, 300), (1024, 1024)])
def test_neither_noise_nor_plain_colours_have_a_mark(size):
    plain = [Image.new("RGB", size, colour) for colour in ("black", "white", "#3d9bf0")]
    assert [MARK.detect(image) for image in (*plain, chance(3, *size))] == [None] * 4


@given(payload=payloads)
@settings(max_examples=12, deadline=None)
def test_every_id_comes_back(payload):
    image = drawn("1024x1024").crop((200, 300, 200 + 384, 300 + 320))
    assert MARK.detect(MARK.embed(image, payload)).payload == payload


@pytest.mark.parametrize("payload", [0, 2**48 - 1])
def test_the_least_and_the_greatest_id_come_back(payload):
    assert MARK.detect(MARK.embed(drawn("1344x768"), payload)).payload == payload


@pytest.mark.parametrize("payload", [-1, 2**48])
@pytest.mark.parametrize("size", [(1024, 1024), (16, 16)])
def test_an_id_of_more_than_48_bits_is_refused(payload, size):
    with pytest.raises(ValueError, match="48 bits"):
        MARK.embed(Image.new("RGB", size), payload)


def test_an_empty_secret_is_refused():
    with pytest.raises(ValueError, match="empty"):
        PixelMark(b"")


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (255, 2000), (2000, 255)])
def test_a_picture_that_is_too_small_is_returned_as_it_was(size):
    image = chance(1, *size) if all(size) else Image.new("RGB", size)
    assert not MARK.carries(size)
    assert MARK.embed(image, PAYLOAD).tobytes() == image.tobytes()
    assert MARK.detect(image) is None


@pytest.mark.parametrize("size", [(256, 256), (257, 511), (333, 1001)])
def test_odd_sizes_and_the_smallest_carry_a_mark(size):
    image = drawn("1152x896").resize(size, Image.Resampling.BICUBIC)
    assert MARK.carries(size)
    marked = MARK.embed(image, PAYLOAD)
    assert marked.size == size
    assert MARK.detect(marked).payload == PAYLOAD


@pytest.mark.parametrize("attack", ["JPEG 50", "512 px, JPEG 75", "crop 20 %, JPEG 75"])
def test_a_picture_full_of_texture_is_read_too(attack):
    image = scene(1344, 768)
    assert MARK.detect(attacks()[attack](MARK.embed(image, PAYLOAD))).payload == PAYLOAD


def test_a_picture_and_its_marked_copy_are_two(marked):
    image = drawn("1024x1024")
    before = image.tobytes()
    MARK.embed(image, PAYLOAD)
    assert image.tobytes() == before


@pytest.mark.parametrize("name", names)
def test_the_mark_of_a_drawn_picture_is_faint(marked, name):
    assert psnr(drawn(name), marked[name]) > 46
    assert ssim(drawn(name), marked[name]) > 0.985


@given(
    kind=st.sampled_from(["black", "white", "grey", "noise", "specks", "scene"]),
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(256, 400), st.integers(256, 400)),
)
@settings(max_examples=40, deadline=None)
def test_the_psnr_is_never_below_40_db(kind, seed, size):
    if kind == "noise":
        image = chance(seed, *size)
    elif kind == "specks":
        image = Image.fromarray(np.where(np.asarray(chance(seed, *size)) > 250, 255, 0).astype(np.uint8))
    elif kind == "scene":
        image = picture(seed, ART).resize(size)
    else:
        image = Image.new("RGB", size, kind)
    assert psnr(image, MARK.embed(image, seed)) >= 40


def test_threads_share_a_mark(marked):
    def there_and_back(payload):
        return MARK.detect(MARK.embed(drawn("1024x1024").crop((0, 0, 512, 512)), payload)).payload

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, range(1000, 1024))) == list(range(1000, 1024))


def test_the_same_id_makes_the_same_pixels(marked):
    assert (
        PixelMark(b"a secret of the tests").embed(drawn("832x1216"), PAYLOAD).tobytes() == marked["832x1216"].tobytes()
    )


def test_what_a_secret_decides_never_changes():
    """Marks that are out there rely on it. If this fails, the algorithm needs another name, and this one stays."""
    patterns, digest = Patterns(b"golden"), hashlib.sha256()
    for pattern in patterns.bands:
        for values, kind in ((pattern.u, "<i4"), (pattern.v, "<i4"), (pattern.sign, "<i4"), (pattern.bit, "<i4")):
            digest.update(np.ascontiguousarray(values).astype(kind).tobytes())
    digest.update(patterns.scrambler.tobytes())
    digest.update(np.packbits(code.encode(code.word(PAYLOAD)) < 0).tobytes())
    assert digest.hexdigest() == "5d6891221dbb9373fc0352d0f250d9022da653b371ccd72e4e6d6239175f0d2c"


def test_an_old_marked_picture_is_still_read():
    """A copy that was marked when the algorithm was new: other programs of ours must read it for ever."""
    old = Image.open(ART / "marked" / "1024x1024.jpg")
    assert MARK.detect(old).payload == PAYLOAD


def test_what_was_found_can_not_be_changed(marked):
    with pytest.raises(dataclasses.FrozenInstanceError):
        MARK.detect(marked["1024x1024"]).payload = 1


@given(payload=payloads, flips=st.lists(st.integers(0, code.CODE_BITS - 1), max_size=30, unique=True))
@settings(max_examples=25, deadline=None)
def test_the_code_repairs_a_tenth_of_its_bits_or_says_that_it_can_not(payload, flips):
    said = code.encode(code.word(payload))
    said[flips] *= -1
    assert code.payload_of(code.decode(said[None])[0]) in ((payload,) if len(flips) <= 20 else (payload, None))
