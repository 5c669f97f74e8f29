"""Snapping finds the right palette, repairs what a model blurs, and enlarges by whole pixels."""

import json
from random import Random

import numpy as np
import pytest
from PIL import Image

from handler.builtin.colours import palettes
from handler.builtin.world import Scene, Thing, draw, sample
from handler.pixelart import read_palettes, snap, upscale

SQUARE = (1024, 1024)


def drawn(scene):
    return Image.fromarray(draw(scene, SQUARE))


def test_a_true_drawing_is_left_nearly_as_it_is():
    rng = Random(3)
    for _ in range(30):
        picture = drawn(sample(rng))
        after = np.asarray(snap(upscale(picture, 2), palettes(), 2))
        assert (after != np.asarray(picture)).any(-1).mean() < 0.003


@pytest.mark.parametrize("time", ["noon", "dawn", "sunset", "night"])
def test_noise_is_snapped_away_with_the_palette_of_the_time(time):
    picture = drawn(Scene(time=time, things=(Thing(name="aya"),)))
    noise = np.random.default_rng(0).normal(0, 6, (128, 128, 3))
    noisy = Image.fromarray(np.clip(np.asarray(upscale(picture, 2)) + noise, 0, 255).astype(np.uint8))
    after = np.asarray(snap(noisy, palettes(), 2))
    assert (after == np.asarray(picture)).all(-1).mean() > 0.99


def test_one_odd_pixel_takes_the_colour_around_it():
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[3, 3] = 0
    after = np.asarray(snap(Image.fromarray(pixels), [[(255, 255, 255), (0, 0, 0)]], 1))
    assert (after == 255).all()


def test_two_pixels_that_belong_together_stay():
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[3, 3:5] = 0
    after = np.asarray(snap(Image.fromarray(pixels), [[(255, 255, 255), (0, 0, 0)]], 1))
    assert (after == pixels).all()


def test_only_one_palette_is_used():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :6] = (250, 0, 0)
    pixels[:, 6:] = (0, 0, 250)
    after = snap(Image.fromarray(pixels), [[(255, 0, 0), (90, 0, 90)], [(0, 0, 255), (80, 80, 80)]], 1)
    assert {colour for _, colour in after.getcolors()} == {(255, 0, 0), (90, 0, 90)}


def test_a_cell_becomes_one_pixel_and_a_pixel_becomes_a_square():
    picture = drawn(Scene())
    assert snap(upscale(picture, 4), palettes(), 4).size == (64, 64)
    large = np.asarray(upscale(picture, 16))
    assert large.shape == (1024, 1024, 3)
    assert (large[::16, ::16] == np.asarray(picture)).all()
    assert (large[15::16, 15::16] == np.asarray(picture)).all()


def test_palettes_are_read_from_json(tmp_path):
    path = tmp_path / "palette.json"
    path.write_text(json.dumps([["000000", "ff8001"], ["102030"]]), encoding="utf-8")
    first, second = read_palettes(path)
    assert first.tolist() == [[0, 0, 0], [255, 128, 1]]
    assert second.tolist() == [[16, 32, 48]]


def test_a_palette_file_with_a_bad_colour_is_refused(tmp_path):
    path = tmp_path / "palette.json"
    path.write_text('[["12345"]]', encoding="utf-8")
    with pytest.raises(ValueError, match="fromhex"):
        read_palettes(path)
