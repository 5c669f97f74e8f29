"""The imperceptible mark: it is found in what becomes of pictures, and nowhere else."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from compliance.pixelmark import PixelMark, code
from compliance.pixelmark.mark import SIZES
from compliance.pixelmark.tile import Patterns
from gateway.dialects.imgen.request import SIZES as PRODUCT_SIZES
from handler.builtin.world import draw, sample
from tests.compliance.samples import noise, scene

MARK = PixelMark(b"a secret of the deployment")


def landscape(size: tuple[int, int] = (1344, 768), seed: int = 7) -> Image.Image:
    """A picture as the built-in model would draw it at its best: flat squares of eight pixels."""
    return Image.fromarray(draw(sample(Random(seed)), size)).resize(size, Image.Resampling.NEAREST)


def saved(picture: Image.Image, kind: str, quality: int) -> Image.Image:
    out = io.BytesIO()
    picture.save(out, kind, quality=quality)
    return Image.open(out).convert("RGB")


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.LANCZOS)


def cropped(picture: Image.Image, share: float) -> Image.Image:
    x, y = round(picture.width * share / 2), round(picture.height * share / 2)
    return picture.crop((x + 1, y, picture.width - x, picture.height - y))


def bordered(picture: Image.Image, edge: int) -> Image.Image:
    framed = Image.new("RGB", (picture.width + 2 * edge, picture.height + 2 * edge), "white")
    framed.paste(picture, (edge, edge))
    return framed


def noisy(picture: Image.Image, deviation: float) -> Image.Image:
    values = np.asarray(picture) + np.random.default_rng(1).normal(0, deviation, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


ATTACKS = {
    "nothing": lambda picture: picture,
    "jpeg75": lambda picture: saved(picture, "JPEG", 75),
    "jpeg50": lambda picture: saved(picture, "JPEG", 50),
    "webp75": lambda picture: saved(picture, "WEBP", 75),
    "half-jpeg75": lambda picture: saved(scaled(picture, 0.5), "JPEG", 75),
    "512": lambda picture: scaled(picture, 512 / max(picture.size)),
    "512-jpeg75": lambda picture: saved(scaled(picture, 512 / max(picture.size)), "JPEG", 75),
    "larger": lambda picture: saved(scaled(picture, 1.5), "JPEG", 75),
    "crop5": lambda picture: cropped(picture, 0.05),
    "crop20": lambda picture: cropped(picture, 0.20),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.8),
    "contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.2),
    "gamma": lambda picture: picture.point([round(255 * (value / 255) ** 0.7) for value in range(256)] * 3),
    "blur": lambda picture: picture.filter(ImageFilter.GaussianBlur(1)),
    "noise": lambda picture: noisy(picture, 4),
    "border": lambda picture: saved(bordered(picture, 2), "JPEG", 75),
    "border-512": lambda picture: saved(bordered(scaled(picture, 512 / max(picture.size)), 2), "JPEG", 75),
    "mirror": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
}


@pytest.fixture(scope="module")
def marked() -> Image.Image:
    return MARK.embed(landscape(), 0xBADC0FFEE123)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_the_id_outlives_what_happens_to_pictures(marked, attack):
    found = MARK.detect(attack(marked))
    assert found is not None and found.payload == 0xBADC0FFEE123
    assert found.mirrored is (attack is ATTACKS["mirror"])


@pytest.mark.parametrize("size", PRODUCT_SIZES, ids=str)
def test_every_size_carries_it(size):
    picture = landscape(size, seed=3)
    after = MARK.embed(picture, 2**48 - 1)
    assert after.size == size and after.mode == "RGB"
    for copy in (after, saved(after, "JPEG", 75), saved(scaled(after, 512 / max(size)), "JPEG", 75)):
        found = MARK.detect(copy)
        assert found is not None and (found.payload, found.size) == (2**48 - 1, size)


def test_the_sizes_that_the_detector_tries_are_those_that_can_be_asked_for():
    assert set(SIZES) == set(PRODUCT_SIZES)


def test_any_size_is_found_when_one_looks_deeply(marked):
    copy = saved(scaled(cropped(marked, 0.2), 0.77), "JPEG", 85)
    assert MARK.detect(copy) is None
    found = MARK.detect(copy, deep=True)
    assert found is not None and found.payload == 0xBADC0FFEE123


def test_no_mark_is_found_where_there_is_none(marked):
    assert PixelMark(b"another secret").detect(marked) is None
    for seed in range(8):
        assert MARK.detect(saved(landscape(SIZES[seed % 7], seed), "JPEG", 75)) is None
    for picture in (noise(640, 480), scene(640, 480), Image.new("RGB", (512, 512)), Image.new("RGB", (40, 900), "red")):
        assert MARK.detect(picture) is None


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**48 - 1),
    st.integers(256, 400),
    st.integers(256, 400),
    st.sampled_from(["black", "white", "flat", "noise", "scene", "grid"]),
)
def test_it_is_never_seen_and_always_read(payload, width, height, kind):
    picture = {
        "black": lambda: Image.new("RGB", (width, height)),
        "white": lambda: Image.new("RGB", (width, height), "white"),
        "flat": lambda: Image.new("RGB", (width, height), (90, 140, 60)),
        "noise": lambda: noise(width, height),
        "scene": lambda: scene(width, height),
        "grid": lambda: Image.fromarray((np.indices((height, width)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB"),
    }[kind]()
    after = MARK.embed(picture, payload)
    error = np.square(np.asarray(after, float) - np.asarray(picture, float)).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 40
    if kind in ("flat", "scene"):
        found = MARK.detect(after)
        assert found is not None and found.payload == payload


def test_a_picture_that_is_too_small_stays_as_it_is():
    picture = scene(255, 600)
    assert not MARK.carries(picture.size)
    assert MARK.embed(picture, 1) is picture
    assert MARK.detect(Image.new("RGB", (1, 1))) is None


@pytest.mark.parametrize("payload", [-1, 2**48])
def test_an_id_that_does_not_fit_is_refused(payload):
    with pytest.raises(ValueError, match="48 bits"):
        MARK.embed(scene(300, 300), payload)


def test_threads_share_one(marked):
    pictures = [landscape((1024, 1024), seed) for seed in range(4)]

    def there_and_back(index: int) -> int | None:
        found = MARK.detect(MARK.embed(pictures[index], index))
        return found and found.payload

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there_and_back, range(4))) == [0, 1, 2, 3]


def test_the_same_picture_and_id_give_the_same_pixels():
    assert (
        MARK.embed(scene(300, 300), 5).tobytes()
        == PixelMark(b"a secret of the deployment").embed(scene(300, 300), 5).tobytes()
    )


def test_what_a_secret_means_never_changes():
    """Marks that are out there are read with what this digest is over."""
    patterns = Patterns(b"golden")
    digest = hashlib.sha256(patterns.scrambler.tobytes())
    for pattern in patterns.bands:
        for values in (pattern.u, pattern.v, pattern.bit, pattern.sign.astype(np.int64)):
            digest.update(np.ascontiguousarray(values, "<i8").tobytes())
    assert digest.hexdigest() == "26dbaee261e62f95379171ba0fa5859660749d2b40866890224119688f5a2577"


# The code


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**48 - 1), st.integers(0, 2**32 - 1))
def test_a_word_comes_back_through_noise(payload, seed):
    sent = code.encode(code.word(payload))
    heard = sent + np.random.default_rng(seed).normal(0, 0.8, sent.shape).astype(np.float32)
    (bits,) = code.decode(heard[None])
    assert code.payload_of(bits) == payload


def test_words_are_decoded_side_by_side():
    payloads = [3, 2**47, 12345678]
    bits = code.decode(np.stack([code.encode(code.word(payload)) for payload in payloads]))
    assert [code.payload_of(each) for each in bits] == payloads


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**48 - 1), st.integers(0, code.WORD_BITS - 1))
def test_a_word_with_a_wrong_bit_is_none(payload, at):
    bits = code.word(payload)
    bits[at] ^= 1
    assert code.payload_of(bits) is None


def test_the_checksum_is_openpgp_s():
    assert code._crc24(b"123456789") == 0x21CF02
