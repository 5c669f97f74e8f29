"""Image codes: those of ISO 24138, written and read as C2PA's soft bindings have them."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compliance.binding import bound, code_in, coded, mark_in, mark_of, mark_value
from compliance.encode import thumbnail
from compliance.fingerprint import binding_value, code_of, image_code, iscc
from compliance.picture import Marked
from compliance.pixelmark import ALGORITHM, PixelMark
from tests.compliance.samples import scene

#: Computed with the standard's own implementation (iscc-core 1.5.0) from the same 32x32 grey values.
REFERENCE = [
    (1, "ISCC:EEA3OOBNGLBKVFHZ"),
    (2, "ISCC:EEAZFXABNVN4KFT5"),
    (3, "ISCC:EEA3EOINHLYUP2C2"),
    (4, "ISCC:EEAZ3SS2QR2ZDK7Q"),
]


def grey(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)).convert("RGB")


@pytest.mark.parametrize(("seed", "code"), REFERENCE)
def test_codes_are_those_of_the_standard(seed, code):
    assert iscc(image_code(grey(seed))) == code


def test_a_picture_of_one_colour_has_the_code_of_nothing():
    assert iscc(image_code(Image.new("RGB", (64, 64)))) == "ISCC:EEAQAAAAAAAAAAAA"


@given(st.integers(0, 2**64 - 1))
def test_a_code_is_read_as_it_is_written(code):
    assert code_of(iscc(code)) == code_of(binding_value(code)) == code
    urlsafe = binding_value(code).replace("+", "-").replace("/", "_").rstrip("=")
    assert code_of(urlsafe) == code


def test_the_image_code_among_others_is_found_and_of_a_longer_one_the_beginning():
    data = bytes.fromhex("300705b41f3472493225d27edcbdb63236846a53ee28deca5e3561acc0c9bbdf81b5")
    long = bytes([0x21, 0x07]) + bytes(range(32))
    assert code_of(base64.b64encode(data + long).decode()) == int.from_bytes(range(8), "big")


@given(st.text(max_size=60))
def test_any_text_is_a_code_or_none(text):
    code = code_of(text)
    assert code is None or 0 <= code < 2**64
    mark = mark_of(text)
    assert mark is None or 0 <= mark < 2**48


def test_a_small_copy_is_near_and_another_picture_is_far():
    one, other = scene(640, 480, seed=1), scene(640, 480, seed=2)
    assert (image_code(one) ^ image_code(one.resize((320, 240)))).bit_count() <= 2
    assert (image_code(one) ^ image_code(other)).bit_count() > 12


def test_a_picture_is_bound_by_both_and_its_thumbnail_by_its_own_code():
    mark = PixelMark(b"secret")
    marked = bound(Marked(pixels=scene(512, 384)), mark, 7)
    assert (mark_in(marked), code_in(marked)) == (7, image_code(marked.pixels))
    assert mark_of(next(each.value for each in marked.bindings if each.alg == ALGORITHM)) == mark_of(mark_value(7)) == 7
    small = coded(thumbnail(marked))
    assert mark_in(small) is None and code_in(small) == image_code(small.pixels)
    assert mark_in(bound(Marked(pixels=scene(200, 100)), mark, 7)) is None, "too small to carry one"
    assert mark_in(bound(Marked(pixels=scene(512, 384)), None, 7)) is None
